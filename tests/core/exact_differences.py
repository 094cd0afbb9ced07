"""What differs between processes, and the words with which it is refused."""

from collections.abc import Callable

import torch
from exact_data import (
    BATCH,
    SAMPLES,
    Rows,
    accelerator,
    mlp,
    numbers,
)
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split


def other_data() -> None:
    """The same files, listed in another order."""
    exact = accelerator()
    data = numbers(SAMPLES, 6).roll(exact.process_index, 0)
    for _ in exact.prepare(DataLoader(TensorDataset(data), BATCH)):
        pass


class Files(Dataset):
    """Samples of files that are read one by one."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> int:
        return int(self.names[number])


def other_files() -> None:
    """As `os.listdir` lists them on another node."""
    exact = accelerator()
    names = [str(number) for number in range(SAMPLES)]
    for _ in exact.prepare(DataLoader(Files(names[:: -1 if exact.process_index else 1]), BATCH)):
        pass


def other_split() -> None:
    """A random split that nobody has seeded."""
    exact = accelerator()
    torch.manual_seed(exact.process_index)
    names = [str(number) for number in range(SAMPLES)]
    train, _ = random_split(Files(names), [0.5, 0.5])
    for _ in exact.prepare(DataLoader(train, BATCH)):
        pass


def other_buffers() -> None:
    """A projection of each process's own."""
    exact = accelerator()
    model = mlp(6, 8, 3)
    model.register_buffer("projection", torch.full((3,), float(exact.process_index)))
    exact.prepare(model)


def other_weights() -> None:
    """Nobody has called `set_seed`."""
    exact = accelerator()
    torch.manual_seed(exact.process_index)
    exact.prepare(mlp(6, 8, 3))


def other_order() -> None:
    """Parameters as a set, whose order depends on where they are in memory, gives them to the optimizer."""
    exact = accelerator()
    model = mlp(6, 5, 1)
    turned = [*model.parameters()][:: -1 if exact.process_index else 1]
    exact.prepare(model, torch.optim.SGD(turned, lr=0.1))


def weights_that_part() -> None:
    """Something changes the weights by itself on each process."""
    exact = accelerator()
    model = mlp(6, 5, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = exact.prepare(model, optimizer, DataLoader(Rows(numbers(20, 6)), 7))
    for rows in loader:
        exact.backward(model(rows).mean())
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model[0].weight[0, 0] += 0.01 * exact.process_index


def rows_of_two_shapes() -> None:
    """What one process gathers has another width."""
    exact = accelerator()
    for (rows,) in exact.prepare(DataLoader(TensorDataset(numbers(20, 6)), 14)):
        exact.gather_for_metrics(torch.zeros(len(rows), 1 + exact.process_index))


def rows_of_one_process_are_too_few() -> None:
    """One process has left some out."""
    exact = accelerator()
    for (rows,) in exact.prepare(DataLoader(TensorDataset(numbers(20, 6)), 14)):
        exact.gather_for_metrics(rows[exact.process_index :])


PARTED: dict[str, Callable[[], None]] = {
    "data": other_data,
    "files": other_files,
    "split": other_split,
    "buffers": other_buffers,
    "weights": other_weights,
    "order": other_order,
    "parted": weights_that_part,
    "shapes": rows_of_two_shapes,
    "rows": rows_of_one_process_are_too_few,
}
SAID = {
    "data": "and seed random splits) differ between processes 0 and 1 (tensor 0 ",
    "files": "sort lists of files, and seed random splits) differ between processes 0 and 1 (names ",
    "split": "sort lists of files, and seed random splits) differ between processes 0 and 1 (indices ",
    "buffers": "was built?) differ",
    "weights": "was built?) differ",
    "order": "(as indices into the model's) differ between processes 0 and 1 ([[0, 1, 2, 3]] against",
    "parted": "processes no longer have the same weights after update 3; there is no checkpoint yet",
    "shapes": "pad them to one shape",
    "rows": "pass one row for each sample",
}
