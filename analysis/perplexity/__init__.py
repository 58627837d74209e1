"""Tables and charts of perplexity."""
