"""A router in front of language-model servers: chooses, forwards, retries, learns."""
