"""Prompt templates (Jinja2), one folder per system; a user overrides any of them by folder."""
