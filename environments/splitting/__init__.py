"""A language model split between a device and the edge: channel, costs, measured perplexity."""
