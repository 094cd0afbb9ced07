"""Is this distributed set-up right? It trains on all processes, watched, and compares with one.

What it compares with, `reference`, is a training written apart. The checks are in the modules
beside this one: `verify_setup`, `verify_updates`, `verify_stops` and `verify_costs`.
"""

import time
from contextlib import suppress

import torch

from mnist_dist.core import ExactAccelerator, UserError
from mnist_dist.core.errors import explain
from mnist_dist.run import launch
from mnist_dist.tools.verify import trainings as verify_trainings
from mnist_dist.tools.verify.answer import Answer, Check
from mnist_dist.tools.verify.config import Config
from mnist_dist.tools.verify.costs import check_costs
from mnist_dist.tools.verify.float32 import check_float32
from mnist_dist.tools.verify.program import check as program
from mnist_dist.tools.verify.session import Over, Session
from mnist_dist.tools.verify.setup import is_set_up
from mnist_dist.tools.verify.stops import check_stops
from mnist_dist.tools.verify.supervisor import Supervisor
from mnist_dist.tools.verify.updates import are_updates_right
from mnist_dist.tools.verify.watched.training import in_words

REPORT = "open an issue with this output"

__all__ = ["Config", "answer", "main"]


def main(config: Config) -> None:
    """Print whether this distributed set-up is right.

    Raises:
        UserError: it is not; names the lines that fail.
    """
    begin = time.perf_counter()
    result = answer(config)
    if result.failed:
        raise UserError(not_right(result))
    result.say(f"\nthis set-up trains right ({time.perf_counter() - begin:.0f} s)")


def not_right(result: Answer) -> str:
    """Return the sentence for a set-up that is not right."""
    return f"this set-up is not right: {', '.join(result.failed)} failed"


def answer(config: Config) -> Answer:
    """Check all that must be right for training on the processes that there are.

    All of them call it alike. What must be equal before anything can be compared comes first, and
    if it is not, the rest is not done.
    """
    result = Answer(json=config.json, printing=launch.is_first())
    if config.program:
        compare_program(config, result)
    else:
        compare_training(config, result)
    result.end()
    return result


def compare_program(config: Config, result: Answer) -> None:
    """Check a program of one's own, on one process and on several."""
    assert config.program is not None
    processes = config.processes or 2
    lines = program.compare(
        config.program,
        config.training,
        processes,
        config.cpu,
        config.deadline,
    )
    for name, passed, detail, advice in lines:
        result.add(Check(name, passed, detail, advice))


def compare_training(config: Config, result: Answer) -> None:
    """Check train.py on the processes that there are."""
    launch.watching = False  # the supervisor does, and says what was being checked
    try:
        accelerator = launch.start(config.cpu, mixed_precision="no", dtype=torch.float64)
    except UserError as error:
        problem = "the processes are not connected"
        result.add(Check("start", False, problem, explain(error)))
        return
    result.printing = accelerator.is_main_process
    check_everything(accelerator, config, result)


def check_everything(accelerator: ExactAccelerator, config: Config, result: Answer) -> None:
    """Make all lines of the table, unless one fails that others need."""

    def fail(line: str, detail: str, advice: str) -> None:
        """Make the last line, of a check that did not come to its end."""
        result.printing = True  # if the first process has died, another speaks
        result.add(Check(line, False, detail, advice))
        result.end()
        sentence = f"mnist_dist: error: {not_right(result)}"
        print(sentence, file=result.errors, flush=True)

    supervisor = Supervisor(accelerator, config.deadline, fail)
    choice = config.asked() or config
    session = Session(accelerator, config, result, supervisor, choice)
    try:
        with suppress(Over):
            check_in_order(session)
    except Exception as error:  # a bug here, or a process that this one has lost
        text = in_words(error)
        supervisor.end_together(text)
        result.add(Check(supervisor.line, False, f"verify itself failed: {text}", REPORT))
    supervisor.close()


def check_in_order(session: Session) -> None:
    """Make the lines of the table.

    Raises:
        Over: the processes can no longer work with each other.
    """
    if not is_set_up(session):
        return
    trials = verify_trainings.choose(session)
    if not are_updates_right(session, trials):
        return
    general = verify_trainings.most_general(trials)
    session.answer.add(check_float32(session, general))
    check_stops(session, general)
    check_costs(session)
