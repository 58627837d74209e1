"""Questions about long texts, answered through the pruned cache."""
