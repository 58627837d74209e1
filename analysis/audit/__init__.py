"""Claims of others, judged by rows; tables of others, looked over for signs of measuring errors."""
