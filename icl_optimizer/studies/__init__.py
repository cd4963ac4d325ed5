"""Studies: measured tables of the documentation, each with the command that repeats it."""
