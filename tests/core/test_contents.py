"""What processes compare of a data set whose samples they do not read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from mnist_dist.core.contents import visible_content


class Made(Dataset):
    """A data set with these attributes, of a length."""

    def __init__(self, length: int, **attributes: Any) -> None:
        self.length = length
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> int:
        raise AssertionError("a sample was read")


ENTRIES: dict[str, Any] = {
    "file names": ["b.png", "a.png", "c.png"],
    "paths": [Path("x") / name for name in "bac"],
    "paths and labels": [("b.png", 1), ("a.png", 0), ("c.png", 0)],
    "labels": [1, 0, 0],
    "texts with labels": [{"text": "b", "label": 1}, {"text": "a", "label": 0}, {"text": "c"}],
    "a tensor": torch.tensor([1, 0, 0]),
    "pixels": np.arange(27, dtype=np.uint8).reshape(3, 3, 3),
    "names in an array": np.array(["b", "a", "c"]),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_another_order_is_seen(kind):
    entries = ENTRIES[kind]
    turned = entries.flip(0) if isinstance(entries, torch.Tensor) else entries[::-1]
    one, other = Made(3, entries=entries), Made(3, entries=turned)
    assert visible_content(one).keys() == {"entries"}
    assert visible_content(one) == visible_content(Made(3, entries=entries))
    assert visible_content(one) != visible_content(other)


def test_it_is_seen_within_other_data_sets():
    def nested(names: list[str]) -> Dataset:
        return ConcatDataset([Made(1, names=["x"]), Subset(Made(3, names=names), [2, 0])])

    found = visible_content(nested(["a", "b", "c"]))
    assert found.keys() == {"datasets[0].names", "datasets[1].indices", "datasets[1].dataset.names"}
    assert found != visible_content(nested(["c", "b", "a"]))


def test_a_list_is_a_data_set_too():
    assert visible_content(["a", "b"]) != visible_content(["b", "a"])


def test_the_indices_of_a_dataset_of_hugging_face_are_seen():
    """`train_test_split` and `shuffle` keep them as a table of one column."""

    def split(numbers: list[int]) -> Dataset:
        return Made(2, _indices=SimpleNamespace(column=lambda _: np.array(numbers)))

    assert visible_content(split([4, 2])).keys() == {"_indices"}
    assert visible_content(split([4, 2])) != visible_content(split([1, 2]))


def test_folders_do_not_count():
    """Each node may have a copy of the files in a folder of its own."""
    assert visible_content(Made(1, names=["/scratch/node1/a.png"])) == visible_content(
        Made(1, names=["/scratch/node2/a.png"])
    )


def test_what_is_not_of_the_samples_is_left_out(tmp_path):
    on_disk = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(3, 4))
    other_kinds = {
        "objects": [object(), object(), object()],
        "a_cache": [None, None, None],
        "options": ["of another", "length"],
        "root": "abc",
        "mean": torch.tensor(0.5),
        "on_disk": on_disk,
        "deep": [[[[[[[1]]]]]], 2, 3],
        "transform": torch.nn.Identity(),
    }
    assert visible_content(Made(3, **other_kinds)) == {}
    assert visible_content(range(3)) == {}
