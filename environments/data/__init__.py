"""Measured tables that ship with the package; SOURCES.md names where each comes from."""
