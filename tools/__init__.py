"""Programs that make what the project ships; not needed to use it."""
