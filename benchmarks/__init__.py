"""Ratios measured side by side in one run; an absolute time on a shared machine proves nothing."""
