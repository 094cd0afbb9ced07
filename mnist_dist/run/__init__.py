"""What surrounds any training: flags, launching, the run's folder and files, Weights & Biases."""
