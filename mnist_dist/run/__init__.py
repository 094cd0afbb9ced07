"""What surrounds a training: flags, launching, the run's folder and files, Weights & Biases, plots."""
