"""What is measured: one cell, one planned unit of cells, and what they are estimated to take."""
