"""What benchmarks/gpu.py asks of a GPU, by subject; each part runs in a process of its own."""
