"""Parquet rows to tables, charts and one HTML report; never imports torch or ray."""
