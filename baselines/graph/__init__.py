"""Learners for routing that see the requests at each expert as a graph (torch loads when used)."""
