"""How a run lies in its directory: places, parts, columns, run.json, the lease."""
