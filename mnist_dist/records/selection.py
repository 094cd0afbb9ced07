"""Choosing among runs: conditions, order, and groups that differ in nothing but the seed."""

import operator
import re
import statistics
from collections.abc import Sequence
from typing import Any

from mnist_dist.records.columns import INCIDENTAL, RESULTS, SPLITS, Row, is_version
from mnist_dist.usage import UsageError

CONDITION = re.compile(r"([\w-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*)", re.DOTALL)
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def is_condition(text: str) -> bool:
    """Return whether a text is a condition such as `model=cnn`."""
    return CONDITION.fullmatch(text) is not None


def holds(condition: str, row: Row, names: Sequence[str]) -> bool:
    """Return whether a condition is true for a row.

    An empty cell is smaller and greater than nothing.

    Args:
        condition: a column, a relation and a value, such as `lr<=0.01`.
        row: the row.
        names: the columns that there are.

    Raises:
        UsageError: there is no such column, or it holds numbers and the value is none.
    """
    match = CONDITION.fullmatch(condition)
    assert match  # the command line was checked
    name, relation, wanted = match.groups()
    if name not in names:
        name = name.replace("-", "_")  # as a flag spells it
    if name not in names:
        known = ", ".join(names)
        raise UsageError(f"--where {condition} is not possible: give a condition on one of {known}")
    value = row.get(name)
    if isinstance(value, int | float):
        bound = as_number(wanted)
        if bound is not None:
            return compare(value, relation, bound)
        if relation in COMPARE:
            expected = f"{name} is a number, so give one"
            raise UsageError(f"--where {condition} is not possible: {expected}")
    word = None if value is None else str(value).lower()
    return compare(word, relation, wanted.lower())


def as_number(text: str) -> float | None:
    """Return the number that a text stands for, None if it stands for none."""
    try:
        return float(text)
    except ValueError:
        return None


def compare(value: Any, relation: str, wanted: Any) -> bool:
    """Return whether a value, None for an empty cell, is in a relation to another one."""
    if relation in COMPARE:
        return value is not None and COMPARE[relation](value, wanted)
    is_equal = value == wanted or (value is None and wanted == "none")
    return is_equal if relation == "=" else not is_equal


def in_order(rows: Sequence[Row], name: str, reverse: bool) -> list[Row]:
    """Sort rows by a column: numbers by size, then words by letters, then empty cells."""

    def key(row: Row) -> tuple[bool, Any]:
        value = row[name]
        return isinstance(value, str), value

    with_value = [row for row in rows if row.get(name) is not None]
    without_value = [row for row in rows if row.get(name) is None]
    return sorted(with_value, key=key, reverse=reverse) + without_value


def group_key(row: Row) -> tuple[tuple[str, Any], ...]:
    """Return what runs have in common that differ in nothing but the seed.

    The number of processes and the versions of packages may differ, too.
    """
    ignored = RESULTS | INCIDENTAL | {"seed", "num_processes"}
    names = sorted(row.keys() - ignored)
    return tuple((name, row[name]) for name in names if not is_version(name))


def same_but_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """Divide runs into groups that differ in nothing but the seed, each without repeated runs."""
    together: dict[Any, list[Row]] = {}
    for row in rows:
        together.setdefault(group_key(row), []).append(row)
    return [without_repeats(members) for members in together.values()]


def without_repeats(members: Sequence[Row]) -> list[Row]:
    """Leave out runs of a group that repeat another one to the last bit, and so say nothing new.

    A run repeats another if it has its seed and, after as many epochs, its accuracies and losses.
    """
    distinct: dict[Any, Row] = {}
    for row in members:
        distinct.setdefault(identity(row), row)
    return list(distinct.values())


def identity(row: Row) -> tuple[Any, ...]:
    """Return what a run shares with those that repeat it; its folder if its results are unknown."""
    accuracies = [row.get(f"{split}_accuracy") for split in SPLITS]
    losses = [row.get(f"{split}_loss") for split in SPLITS]
    if not any(accuracies):
        return (row["run"],)
    return (row["seed"], row["epoch"], *accuracies, *losses)


def seed_groups(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each group of finished runs that differ in nothing but the seed.

    Args:
        rows: runs, of which those that are not done are left out.

    Returns:
        Rows with the seeds, the number of runs, means, and the standard deviation of accuracies.
    """
    done = [row for row in rows if row["state"] == "done"]
    return [summary_of(members) for members in same_but_seed(done)]


def summary_of(members: Sequence[Row]) -> Row:
    """Return the row of a group."""
    seeds = sorted({row["seed"] for row in members}, key=str)
    group: Row = {
        "seeds": " ".join(map(str, seeds)),
        "runs": len(members),
        "dataset": None,
        "model": None,
    }
    for split in SPLITS:
        accuracies = values_of(members, f"{split}_accuracy")
        if accuracies:
            group[f"{split}_accuracy"] = statistics.mean(accuracies)
            group[f"{split}_deviation"] = deviation(accuracies)
    seconds = values_of(members, "train_seconds")
    group["train_seconds"] = statistics.mean(seconds) if seconds else None
    return group | dict(group_key(members[0]))


def values_of(rows: Sequence[Row], name: str) -> list[float]:
    """Return the values of a column, without empty cells."""
    values = [row.get(name) for row in rows]
    return [value for value in values if value is not None]


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of some values, None of a single one."""
    if len(values) == 1:
        return None
    return statistics.stdev(values)
