"""Decides what runs where and what is already done; never imports torch."""
