"""What a model is, from its files alone: architecture, weights, limits, BOS. Imports no torch."""
