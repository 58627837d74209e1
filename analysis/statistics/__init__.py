"""What may be concluded: intervals, corrections for many tests, margins, pairs of cells."""
