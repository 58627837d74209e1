"""Tables and charts of timed generation."""
