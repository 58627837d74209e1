"""What the commands beside `kvsweep run` do and print."""
