"""Timed generation through the pruned cache."""
