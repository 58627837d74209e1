"""Bytes that a model, its caches and its passes take, by shapes and settings alone: plain integers, no torch.

The one accounting. A worker sizes its batches of windows, cells, questions and contexts by it; the plan adds
up the same figures, so that a place is found that holds them. Nothing here asks what memory is free, because
a batch of another size has other last bits: a row must not depend on what else its machine was doing.
"""
