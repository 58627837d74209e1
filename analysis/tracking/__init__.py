"""Runs written into the stores of experiment trackers."""
