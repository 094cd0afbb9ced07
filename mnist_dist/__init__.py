"""mnist-dist: distributed MNIST training that is the same training at any number of processes."""

__version__ = "0.1.0"
