"""What a machine is and how it is doing: CPUs and GPUs, clocks, memory; which code runs on it."""
