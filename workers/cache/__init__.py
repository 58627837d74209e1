"""Where a prune happens: the cache that prunes itself, its layers, and attention over what they hold."""
