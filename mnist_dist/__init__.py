"""The same training at any number of processes. `core` is the exact part, for any data and model; `task` is MNIST on
top of it, `run` what surrounds a training, and `tools` are the smaller commands. Imports go one way: tools and the
scripts, run, task, core.
"""

import os
import sys

try:
    import tqdm  # noqa: F401
except ValueError as error:  # torch and accelerate would fail alike, with pages of their own stack
    named = " ".join(f"{name}={value!r}" for name, value in os.environ.items() if name.startswith("TQDM_"))
    sys.exit(f"error: tqdm cannot read the environment variable {named} ({error}): correct it, or unset it")
