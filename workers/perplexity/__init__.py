"""Sliding perplexity through the pruned cache: event-driven, and by the reference of one token per pass."""
