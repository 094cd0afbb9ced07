"""What starting a training program takes: an environment without a launcher, and last words."""

import os

# How the names of environment variables begin by which a launcher tells a process its place.
LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "SLURM_",
    "PMI",
    "OMPI_",
    "MPI_",
)


def unlaunched() -> dict[str, str]:
    """Return this process's environment without what a launcher put there."""
    variables = os.environ.items()
    return {name: value for name, value in variables if not name.startswith(LAUNCHERS)}


def complaint(output: str) -> str:
    """Return the first line with an error of what a program has printed, or else its last line."""
    lines = [line.strip() for line in output.strip().splitlines()]
    errors = [line for line in lines if "rror" in line]
    if errors:
        return errors[0]
    return lines[-1] if lines else "no word"
