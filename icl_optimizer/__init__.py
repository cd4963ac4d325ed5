"""A language model makes network decisions by in-context learning."""
