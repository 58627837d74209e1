"""The front door: what the commands ``kvsweep`` and ``kvsweep-lm-eval`` start."""
