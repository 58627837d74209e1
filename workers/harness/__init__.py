"""Tasks of EleutherAI's lm-evaluation-harness through the pruned cache."""
