"""What is done with a model once it is in memory, before its first unit: self-check, diagnosis, pace."""
