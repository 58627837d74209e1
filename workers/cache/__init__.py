"""Where a prune happens: the cache of one text that prunes itself, its layers, and attention over what they
hold."""
