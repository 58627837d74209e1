"""One work unit on one device: models, corpora, the pruned cache, perplexity, generation. Knows nothing of
grids or files."""
