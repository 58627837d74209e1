"""What travels between driver and worker: work units, what is told of them, results and failures."""
