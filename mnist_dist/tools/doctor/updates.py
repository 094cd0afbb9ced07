"""What each process leaves of one step of an optimizer, as plain data."""

from dataclasses import dataclass, field


@dataclass
class Update:
    """One step of an optimizer, and what led to it.

    Attributes:
        number: of the update, from 1.
        optimizer: the number of the optimizer, in the order of their first steps.
        place: the line that made the step.
        rates: the learning rate of each group of parameters.
        rows: rows that the model was given, None if that cannot be seen.
        backward: backward passes since the update before.
        synced: forward passes whose gradients the wrapper exchanges.
        last_synced: whether those of the last one are; None without a wrapper.
        wrapped: forward passes through a wrapper.
        bare: forward passes of what a wrapper holds, past the wrapper.
        forward_place, backward_place: the lines of the last pass.
        bare_place: the line of the last pass past the wrapper.
        divisor: number by which the last loss was divided before its backward pass; 1: none was seen.
        batch_count: count of tokens, or the like, by which the last loss was made a mean; 0: unknown.
        is_rounded: whether the model computes in fewer bits than float32 has.
        in_eval: backward passes through a model that is in evaluation mode.
        clip_norm: the gradient's norm when it was clipped, None if it was not.
        clip_place: the line that did it.
        clip_factor: by which the gradient was multiplied then; 1: by none.
        clip_scale: by which the loss was scaled, if the gradient still was when it was clipped; otherwise 1.
        cleared: backward passes of the same line as the last one whose gradients were cleared before the step.
        cleared_place: the line that cleared them.
        class_weights: a digest of the weights of the classes that the loss was given; 0: none.
        class_weights_place: the line that gave them.
        gathers_rows: whether what a model computed for each row was gathered before the backward pass.
        finite_loss: whether all losses were finite; None if nobody looked.
        examined: whether the digests below were taken.
        weights, gradients: a digest of each parameter before the step, and of its gradient.
        buffers: a digest of each buffer of the model, by its name.
        inputs: a digest of what the model was given.
        random_state: a digest of the random state at the first dropout, 0 if there was none.
        drawn: a digest of the random state before the step, if as many numbers as rows or more were
            drawn since the step before; otherwise 0.
        without_gradient: parameters that should have a gradient and have none.
        batches: of each backward pass, the number of the iteration over a loader and of the batch
            in it, both from 0.
        sketch: a few random projections of the gradient, if they were taken.
        norm: of the gradient, likewise.
        working: seconds from the end of the last backward pass, or operation between processes, to
            the beginning of the next: there a process waits for no other one.
        loading: seconds of them in which loaders were waited for.
    """

    number: int
    optimizer: int = 0
    place: str = ""
    rates: list[float] = field(default_factory=list)
    rows: int | None = None
    backward: int = 0
    synced: int = 0
    last_synced: bool | None = None
    wrapped: int = 0
    bare: int = 0
    forward_place: str = ""
    backward_place: str = ""
    bare_place: str = ""
    divisor: float = 1.0
    batch_count: int = 0
    is_rounded: bool = False
    in_eval: int = 0
    clip_norm: float | None = None
    clip_place: str = ""
    clip_factor: float = 1.0
    clip_scale: float = 1.0
    cleared: int = 0
    cleared_place: str = ""
    class_weights: int = 0
    class_weights_place: str = ""
    gathers_rows: bool = False
    finite_loss: bool | None = None
    examined: bool = False
    weights: list[int] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    buffers: dict[str, int] = field(default_factory=dict)
    inputs: int = 0
    random_state: int = 0
    drawn: int = 0
    without_gradient: int = 0
    batches: list[list[int]] = field(default_factory=list)
    sketch: list[float] = field(default_factory=list)
    norm: float = 0.0
    working: float = 0.0
    loading: float = 0.0
