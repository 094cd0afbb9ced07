"""The progress bar of an epoch."""

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from mnist_dist.core import ExactAccelerator, ExactDataLoader
from mnist_dist.run.streams import lasting_error


def progress_bar(
    accelerator: ExactAccelerator, loader: ExactDataLoader, title: str
) -> Iterator[Any]:
    """Iterate over a prepared loader, with a progress bar that counts updates.

    Args:
        accelerator: says when an update is complete, and which process shows the bar.
        loader: the loader of the training data, which gives one or more micro-batches an update.
        title: stands before the bar.
    """
    bar = tqdm(
        file=lasting_error(),
        desc=title,
        total=len(loader),
        initial=loader.first_batch,
        unit=" updates",
        leave=False,
        disable=None if accelerator.is_main_process else True,
    )
    with bar:
        for batch in loader:
            yield batch
            if accelerator.sync_gradients:
                bar.update()
