"""`train.py` and `evaluate.py`, wherever they are.

In the repository they are at the top level, where they can be read first. In the wheel they are in
this folder. They are always loaded by file: the name `train` may belong to another module.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mnist_dist.core.errors import UserError

__all__ = ["SCRIPTS", "command", "load_script", "script_path"]

# The scripts, and the class of the settings that the `main` of each takes.
SCRIPTS = {"train": "TrainConfig", "evaluate": "EvaluateConfig"}
HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


def script_path(name: str) -> Path:
    """Find a script.

    Args:
        name: one of `SCRIPTS`.

    Returns:
        Its file.

    Raises:
        UserError: it is neither in the package nor beside it.
    """
    file = f"{name}.py"
    for folder in (HERE, REPOSITORY):
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"{file} is neither in {HERE} nor in {REPOSITORY}: install the package with pip, or keep the "
        "folder mnist_dist beside the scripts"
    )


def load_script(name: str) -> ModuleType:
    """Load a script as a module, once.

    Args:
        name: one of `SCRIPTS`.

    Returns:
        The module, with the function `main`.

    Raises:
        UserError: there is no such script.
    """
    full_name = f"{__name__}.{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    spec = importlib.util.spec_from_file_location(full_name, script_path(name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module


def command(name: str) -> list[str]:
    """Say how a user calls a script, for messages.

    Args:
        name: one of `SCRIPTS`.

    Returns:
        The words `python train.py` in the repository, `mnist-dist train` from an installed wheel.
    """
    if script_path(name).parent == REPOSITORY:
        return ["python", f"{name}.py"]
    return ["mnist-dist", name]
