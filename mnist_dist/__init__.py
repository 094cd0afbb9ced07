"""The same training at any number of processes.

`core` is the exact part, for any data and model. `task` is MNIST on top of it, and `run` is what
surrounds any training; neither knows the other. They meet in `digits` and `plots`, which the
scripts and `tools`, the smaller commands, use. Imports go one way: scripts and tools; digits and
plots; run and task; core. `usage` and `shell` belong to none of them.
"""

import os
import sys

try:
    import tqdm  # noqa: F401
except ValueError as error:  # torch and accelerate would fail alike, with pages of their own stack
    named = " ".join(f"{name}={value!r}" for name, value in os.environ.items() if name.startswith("TQDM_"))
    sys.exit(f"error: tqdm cannot read the environment variable {named} ({error}): correct it, or unset it")
