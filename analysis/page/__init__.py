"""The report: one HTML file, its tables and charts, and the same as files."""
