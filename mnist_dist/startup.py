"""Programs import this first: if an environment variable breaks imports, it prints a one-line error.

It ends the interpreter then, so only programs may import it, never a module that others import.
"""

import os
import sys

try:
    import tqdm  # noqa: F401
# Torch and accelerate would fail in the same way, with a long traceback.
except ValueError as error:
    variables = [
        f"{name}={value!r}" for name, value in os.environ.items() if name.startswith("TQDM_")
    ]
    sys.exit(
        f"error: tqdm cannot read the environment variable {' '.join(variables)} ({error}): correct it, or unset it"
    )
