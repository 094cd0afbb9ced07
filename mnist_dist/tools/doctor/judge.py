"""All rules, in the order of causes: what follows from a finding is not said again."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mnist_dist.tools.doctor import (
    rules_against,
    rules_copies,
    rules_course,
    rules_modes,
    rules_pace,
    rules_random,
    rules_rates,
    rules_results,
    rules_samples,
    rules_schedule,
    rules_shares,
    rules_training,
)
from mnist_dist.tools.doctor.case import Case
from mnist_dist.tools.doctor.findings import Finding


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong.

    Attributes:
        subject: what it is about.
        judge: returns a finding, or None.
        sound: what to say where nothing was found.
        follows: subjects from whose findings this rule's would follow.
    """

    subject: str
    judge: Callable[[Case], Finding | None]
    sound: str
    follows: frozenset[str] = field(default_factory=frozenset)


def rule(
    subject: str,
    judge: Callable[[Case], Finding | None],
    sound: str,
    follows: str = "",
) -> Rule:
    """Make a rule. `follows` names subjects of two words with a hyphen."""
    names = [name.replace("-", " ") for name in follows.split()]
    return Rule(subject, judge, sound, frozenset(names))


ALONE = "connection"
SAMPLES = "data split samples"
TRAINED = "first-weights state gradients rate weights not-finite"

BETWEEN_RANKS = [
    rule("connection", rules_course.not_connected, "the processes are connected"),
    rule("device", rules_course.shared_device, "no GPU is used twice"),
    rule("not finite", rules_training.not_finite, "all losses are finite"),
    rule("evaluation", rules_results.not_added_up, "figures are of all processes' samples", ALONE),
    rule("updates", rules_course.unequal_updates, "as many updates on all processes", ALONE),
    rule("end", rules_course.own_error, "all processes end well", "updates connection not-finite"),
    rule("hang", rules_course.hang, "no process waits forever", "updates end"),
    rule("data", rules_samples.other_data, "the same number is the same sample", ALONE),
    rule("split", rules_samples.other_split, "parts do not overlap", "connection data"),
    rule(
        "samples",
        rules_samples.wrong_share,
        "each sample belongs to one process",
        "connection split",
    ),
    rule("padding", rules_samples.padding, "no sample comes twice", f"{ALONE} {SAMPLES}"),
    rule("order", rules_samples.same_order, "each epoch has its own order"),
    rule("workers", rules_samples.stale_workers, "they have the data set as it is"),
    rule("shares", rules_shares.uneven_shares, "equal shares", f"{ALONE} updates"),
    rule("optimizer", rules_modes.without_gradients, "its parameters have gradients", ALONE),
    rule("gradients", rules_training.not_exchanged, "equal when used", f"{ALONE} not-finite"),
    rule(
        "first weights",
        rules_training.first_weights,
        "equal before the first update",
        f"{ALONE} gradients",
    ),
    rule("state", rules_training.unequal_state, "equal or none", f"{ALONE} gradients"),
    rule("rate", rules_training.unequal_rates, "equal on all processes", f"{ALONE} updates"),
    rule("weights", rules_training.parting_weights, "equal to the end", f"{ALONE} {TRAINED}"),
    rule("mode", rules_modes.mode, "in training mode where it trains", ALONE),
    rule("accumulation", rules_modes.cleared, "no gradient is cleared before a step"),
    rule("loss", rules_modes.class_weights, "the same weights of classes", f"{ALONE} updates"),
    rule("clipping", rules_modes.clipping, "of what all have", f"{ALONE} gradients not-finite"),
    rule("buffers", rules_training.parting_buffers, "equal", f"{ALONE} {TRAINED}"),
    rule("layers", rules_training.batch_norm, "no statistics of one process alone", ALONE),
    rule("dropout", rules_random.same_masks, "not the same masks", f"{ALONE} {SAMPLES}"),
    rule(
        "random numbers",
        rules_random.same_draws,
        "not the same noise",
        f"{ALONE} {SAMPLES} dropout",
    ),
    rule("pace", rules_pace.slow_process, "no process is waited for", f"{ALONE} updates shares"),
    rule("operations", rules_pace.unequal_operations, "the same ones", f"{ALONE} updates end hang"),
    rule("cost", rules_training.needless_exchanges, "one exchange an update", ALONE),
    rule("schedule", rules_schedule.schedule, "stepped as planned"),
    rule(
        "evaluation",
        rules_results.evaluation,
        "each sample counts once",
        f"{ALONE} end hang updates evaluation",
    ),
    rule("copy", rules_copies.other_copy, "equal weights in copies", f"{ALONE} {TRAINED}"),
    rule("files", rules_results.shared_files, "each is written by one process"),
]

ROWS = "layers dropout random-numbers clipping"  # what makes a gradient depend on the shares
NOT_COMPARABLE = f"{ALONE} {SAMPLES} {TRAINED} end hang shares updates"

AGAINST_ONE = [
    rule("batch", rules_against.global_batch, "the same number of rows", NOT_COMPARABLE),
    rule("first weights", rules_against.other_start, "as on 1 process", NOT_COMPARABLE),
    rule("gradient", rules_against.gradient, "as on 1 process", f"{NOT_COMPARABLE} {ROWS}"),
    rule("schedule", rules_rates.unfinished, "as on 1 process", f"{NOT_COMPARABLE} schedule"),
    rule("rate", rules_rates.rates, "as on 1 process", f"{NOT_COMPARABLE} schedule"),
    rule("updates", rules_against.updates_an_epoch, "as on 1 process", NOT_COMPARABLE),
]


def judge(case: Case) -> list[Finding]:
    """Return what was found, and a line for each thing that is right.

    Args:
        case: all records.
    """
    rules = list(BETWEEN_RANKS)
    can_compare = case.alone is not None and case.alone.updates and case.first.updates
    if can_compare and case.world > 1:
        rules += AGAINST_ONE
    findings: list[Finding] = []
    explained: set[str] = set()  # subjects of findings, and of what would follow from them
    for each in rules:
        if each.follows & explained:
            explained.add(each.subject)
            continue
        found = each.judge(case)
        if found and found.counts:
            explained.add(each.subject)
        findings.append(found or Finding("PASS", each.subject, each.sound))
    return findings + own_trouble(case)


def own_trouble(case: Case) -> list[Finding]:
    """Return a line for each thing that could not be watched or compared."""
    findings = []
    troubles = [record.trouble for record in case.ranks if record.trouble]
    if troubles:
        words = f"not all could be watched ({troubles[0]})"
        findings.append(Finding("NOTE", "doctor", words, "what follows from it was not judged"))
    if case.first.is_sharded:
        words = "each process holds a part of the weights: weights and gradients are not compared"
        findings.append(Finding("NOTE", "doctor", words))
    return findings
