"""What each process leaves of its training, as plain data."""

from dataclasses import dataclass, field

from mnist_dist.tools.doctor.updates import Update


@dataclass
class Epoch:
    """One iteration over a loader.

    Attributes:
        number: of the iteration in the record, from 0.
        place: the line of the loop.
        dataset: the class of the whole data set.
        samples: how many the loader's data set has; -1 if it has no length.
        part: a digest of the part of the whole that this process's loader was given; 0: all of it.
        data: a digest of what the data set holds; 0 if that cannot be seen.
        sampler: the class of the loader's sampler.
        shuffles: whether the sampler is to give another order in each epoch.
        repeats: whether the sampler, by intent, does not give each sample once.
        is_own: whether the sampler is of the user's own making, so that its intent is unknown.
        takes_epochs: whether it can be told which epoch begins.
        stale: what of the data set has changed since persistent workers were started, in words.
        told: the numbers and words that a sampler of the user's own holds, such as its epoch.
        drops: whether the loader leaves out an incomplete batch by intent.
        length: batches that the loader announces; -1 if it does not.
        batches: the samples' numbers in the whole data set, for each batch that was given.
        rows: of a stream, whose samples have no numbers, a digest of each row that was given.
        complete: whether the loop came to its end.
        updates: made from its batches.
        evaluated: forward passes without training.
        used: for each line that makes such passes, a digest of the parameters of the first model.
        trained: those of these lines whose first model is one that is trained.
        collectives: calls of each operation between processes since its first batch.
        figures: single numbers that were added up or gathered since, at most a few.
        exact: whether `ExactAccelerator` gives the batches.
        is_ahead: whether a batch is fetched before the one before it is handed on, as Accelerate does.
        given: batches that the loader has given.
        position: batches from which gradients were computed, or which came before such a one.
    """

    number: int = 0
    place: str = ""
    dataset: str = ""
    samples: int = -1
    part: int = 0
    data: int = 0
    sampler: str = ""
    shuffles: bool = False
    repeats: bool = False
    is_own: bool = False
    takes_epochs: bool = False
    stale: str = ""
    told: str = ""
    drops: bool = False
    length: int = -1
    batches: list[list[int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    complete: bool = False
    updates: int = 0
    evaluated: int = 0
    used: dict[str, int] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    collectives: dict[str, int] = field(default_factory=dict)
    figures: list[float] = field(default_factory=list)
    exact: bool = False
    is_ahead: bool = False
    given: int = 0
    position: int = 0

    @property
    def numbers(self) -> list[int]:
        """The samples' numbers in the order in which they were given."""
        return [number for batch in self.batches for number in batch]


@dataclass
class Schedule:
    """A scheduler of learning rates.

    Attributes:
        kind: its class.
        place: the line that steps it.
        steps: made since the first update.
        planned: steps after which it ends; 0 if that cannot be seen.
    """

    kind: str = ""
    place: str = ""
    steps: int = 0
    planned: int = 0


@dataclass
class Optimized:
    """What an optimizer has when it makes its first step.

    Attributes:
        names: of its parameters.
        outside: those of them that no wrapper had when it was made.
        outside_place: the line that called the model that has the first of them.
        frozen: those that required no gradient when they were wrapped, so that it is not exchanged.
        frozen_place: the line that wrapped the first of them.
        state: a digest of its averages; 0 if it has none yet.
        state_place: the line that loaded them.
    """

    names: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    outside_place: str = ""
    frozen: list[str] = field(default_factory=list)
    frozen_place: str = ""
    state: int = 0
    state_place: str = ""


@dataclass
class Record:
    """Everything that one process leaves.

    Attributes:
        rank: its number.
        pid: of the process, on its node.
        asked: processes that the launcher has started.
        world: processes that were connected at the last update.
        node: the name of its node.
        device: of the model; a GPU by its UUID.
        ended: whether the program has ended, well or not.
        status: with which the program ended; of a signal that ended it, its number below 0.
        error: the one that ended the program, in words.
        error_place: its line.
        seconds: from the program's beginning.
        made: updates so far.
        updates: the first ones, and of later ones those that were examined.
        epochs: iterations over loaders, in order.
        schedules: in the order of their first steps.
        collectives: calls of each operation between processes, by name and line.
        saved: files that were written, and the line.
        loaded: checkpoints that were read before the first update, and the line.
        stopped_with: a digest of each parameter when doctor stopped the process.
        optimizers: in the order of their first steps.
        wrapper: the class that wraps the model, empty if none was made.
        broadcasts_buffers: whether the wrapper does so before each forward pass.
        batch_norm: the class of a layer that normalises over this process's rows, if any.
        batch_norm_place: the line by which it was called.
        is_sharded: whether each process has a part of the weights.
        accelerate: whether `Accelerator` was used.
        exact: whether it was `ExactAccelerator`.
        gathered_for_metrics: whether Accelerate was asked to leave padding out.
        cuts_gathered: whether a file that gathers rows of all processes cuts something to a length.
        trouble: what kept a hook from its work.
    """

    rank: int = 0
    pid: int = 0
    asked: int = 1
    world: int = 1
    node: str = ""
    device: str = ""
    ended: bool = False
    status: int = 0
    error: str = ""
    error_place: str = ""
    seconds: float = 0.0
    made: int = 0
    updates: list[Update] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    collectives: dict[str, int] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    loaded: dict[str, str] = field(default_factory=dict)
    stopped_with: list[int] = field(default_factory=list)
    optimizers: list[Optimized] = field(default_factory=list)
    wrapper: str = ""
    broadcasts_buffers: bool = False
    batch_norm: str = ""
    batch_norm_place: str = ""
    is_sharded: bool = False
    accelerate: bool = False
    exact: bool = False
    gathered_for_metrics: bool = False
    cuts_gathered: bool = False
    trouble: str = ""

    def optimizer_of(self, update: Update) -> Optimized:
        """Return the optimizer that made an update."""
        is_known = update.optimizer < len(self.optimizers)
        return self.optimizers[update.optimizer] if is_known else Optimized()

    def trainings(self) -> list[Epoch]:
        """Return the iterations from which updates were made."""
        return [epoch for epoch in self.epochs if epoch.updates]

    def evaluations(self) -> list[Epoch]:
        """Return the iterations from which none was made, but on which a model was called."""
        return [epoch for epoch in self.epochs if epoch.evaluated and not epoch.updates]


@dataclass
class Sign:
    """A sign of life of a process.

    Attributes:
        rank: its number.
        events: how many things it has done so far: batches, passes, updates, collectives.
        place: the line of the program where it is.
        call: the operation between processes in which it is, if any.
        waits: whether it waits for other processes there.
        ended: whether its program has ended.
        worked: seconds for which it has computed, if it does not wait.
        computed: seconds for which it has computed in any case.
    """

    rank: int = 0
    events: int = 0
    place: str = ""
    call: str = ""
    waits: bool = False
    ended: bool = False
    worked: float = 0.0
    computed: float = 0.0

    @property
    def waits_at(self) -> str:
        """The operation between processes, or else the line, where it waits forever if it does."""
        if self.ended:
            return "the end"
        return self.call.partition(" at ")[0] or self.place
