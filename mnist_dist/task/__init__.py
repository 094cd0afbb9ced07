"""MNIST as a task for the core: data sets, networks, distortions, recipes, settings, and a classifier's metrics."""
