"""A run from its start to its report: what is left to do, progress, time left, results stored as they
come."""
