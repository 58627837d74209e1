"""The caches of many cells that go through a model together."""
