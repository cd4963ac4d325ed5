"""Language models: embedded, behind an API, or scripted for tests."""
