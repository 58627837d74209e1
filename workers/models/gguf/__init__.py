"""GGUF files, the format of llama.cpp:
a header read without torch, and weights converted once into an ordinary folder."""
