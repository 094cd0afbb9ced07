"""The same training at any number of processes.

`core` is the exact part, for any data and model. `task` is MNIST on top of it, and `run` is what
surrounds any training; neither knows the other. They meet in `digits` and `plots`, which the
scripts and `tools`, the smaller commands, use. Imports go one way: scripts and tools; digits and
plots; run and task; core. `usage` and `shell` belong to none of them.
"""

__all__ = ["__version__"]

__version__ = "0.2.0"
