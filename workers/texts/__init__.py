"""What a model reads: text as tokens, cut into windows; questions hidden in it. Imports no torch."""
