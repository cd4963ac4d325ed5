"""Comparison of policies over scenarios and seeds with shared random numbers."""
