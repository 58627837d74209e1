"""How the code reads, as numbers: density, lengths, calls between command and policy."""
