"""Rules on the course of a run: errors, hangs, processes that never meet, unequal updates."""

from mnist_dist.tools.doctor.case import Case, by_process
from mnist_dist.tools.doctor.findings import Finding
from mnist_dist.tools.doctor.records import Record, Sign
from mnist_dist.tools.verify.supervisor import is_lost_connection, processes


def not_connected(case: Case) -> Finding | None:
    """Processes that were started together, and train without knowing of each other."""
    apart = [record for record in case.ranks if record.made and record.world < record.asked]
    if not apart:
        return None
    record = apart[0]
    advice = "connect them: dist.init_process_group, or Accelerator() under torchrun"
    return Finding(
        "FAIL",
        "connection",
        f"{record.asked} processes were started, and in update {record.made} process "
        f"{record.rank} is connected with {record.world - 1} others: each trains by itself",
        advice,
        record.updates[0].place,
    )


def own_error(case: Case) -> Finding | None:
    """An error of some process that does not follow from another one's."""
    failed = [record for record in case.ranks if record.error]
    failed = [record for record in failed if not follows_from_wrapping(record)]
    own = [record for record in failed if not is_lost_connection(record.error)]
    if own:
        ranks = [record.rank for record in own]
        record = own[0]
        verb = "ends" if len(ranks) == 1 else "end"
        words = f"{processes(ranks)} {verb} after update {record.made} by {record.error}"
        advice = "the others lose their connection to it, or wait for it: look there"
        if len(own) == case.world:
            advice = "all processes end by it"
        return Finding("FAIL", "end", words, advice, record.error_place)
    return silent_end(case) or left_behind(case, failed)


def follows_from_wrapping(record: Record) -> bool:
    """Return whether DDP waits for parameters that were replaced, of which another rule tells."""
    has_outside = any(optimizer.outside for optimizer in record.optimizers)
    return has_outside and "finished reduction in the prior iteration" in record.error


def left_behind(case: Case, failed: list[Record]) -> Finding | None:
    """A process that waits for others which have ended their program."""
    ended = [record.rank for record in case.ranks if record.ended and not record.error]
    if not failed or not ended:
        return None
    record = failed[0]
    verb = "has" if len(ended) == 1 else "have"
    return Finding(
        "FAIL",
        "end",
        f"process {record.rank} waits for others, and {processes(ended)} {verb} ended already",
        "all must reach the same operations between processes: look at what only some do",
        record.error_place,
    )


def silent_end(case: Case) -> Finding | None:
    """A process that ended with a status, or without a word."""
    dead = [record for record in case.ranks if not record.ended and record.status == 0]
    if dead and not case.hang:
        record = dead[0]
        # What it wrote last may be older than what the others know, and they cannot be ahead of it.
        others = [each.made for each in case.ranks if each is not record]
        made = max(record.made, min(others, default=0))
        words = f"process {record.rank} died after update {made} without a message"
        advice = "look at the memory of its node, and for a segmentation fault"
        alone = operation_of_one(case, record)
        if alone:
            name, _, place = alone.partition(" at ")
            words += f", in {name}, which no other process has reached"
            advice = (
                "call it on all processes: otherwise it is matched with another operation of theirs"
            )
            return Finding("FAIL", "end", words, advice, place)
        return Finding("FAIL", "end", words, advice, last_place(record))
    refused = [record for record in case.ranks if record.status > 0 and not record.error]
    if refused:
        record = refused[0]
        words = f"process {record.rank} ends with status {record.status} after update {record.made}"
        return Finding("FAIL", "end", words, "look at its own last output")
    return None


def operation_of_one(case: Case, record: Record) -> str:
    """Return an operation, with its line, that only this process has come to."""
    others = [other for other in case.ranks if other.rank != record.rank]
    for call in reversed(record.collectives):
        if not any(call in other.collectives for other in others):
            return call
    return ""


def last_place(record: Record) -> str:
    """Return the line of a process's last update."""
    return record.updates[-1].place if record.updates else ""


def unequal_updates(case: Case) -> Finding | None:
    """Processes that make other numbers of updates, so that some would wait forever."""
    if case.world == 1:
        return None
    for epochs in case.trainings:
        lengths = [epoch.length for epoch in epochs]
        if len(set(lengths)) > 1 and min(lengths) >= 0:
            return Finding(
                "FAIL",
                "updates",
                f"the processes have unequal numbers of batches ({by_process(lengths)}): those "
                "with more wait forever, or stop with a lost connection",
                "give all the same number of batches: DistributedSampler does, or join()",
                epochs[0].place,
            )
    made = [record.made for record in case.ranks]
    has_failed = bool(case.hang) or any(record.error for record in case.ranks)
    if len(set(made)) > 1 or has_failed:
        found = skipped_batch(case)
        if found:
            return found
    if len(set(made)) > 1 and all(record.ended for record in case.ranks):
        return Finding(
            "FAIL",
            "updates",
            f"the processes make unequal numbers of updates ({by_process(made)})",
            "all must make the same number: look at what ends the loop",
            last_place(case.ranks[made.index(min(made))]),
        )
    return None


def skipped_batch(case: Case) -> Finding | None:
    """A batch from which some processes make an update, and others do not."""
    numbers = [numbers_of_trainings(record) for record in case.ranks]
    for group in case.updates:
        if not all(update.batches for update in group):
            continue
        last = [update.batches[-1] for update in group]
        pairs = zip(numbers, last, strict=True)
        at = [(known.get(epoch, -1), position) for known, (epoch, position) in pairs]
        if len(set(at)) == 1:
            continue
        rank = at.index(max(at))
        first = at.index(min(at))
        epoch, position = at[first]
        return Finding(
            "FAIL",
            "updates",
            f"process {rank} makes no update from batch {position + 1} of epoch {epoch + 1}, and "
            f"process {first} does: from there on gradients of different batches meet, and in the "
            "end one process waits forever",
            "all must call the model and backward for each batch: multiply the loss by 0 instead",
            case.ranks[rank].epochs[last[rank][0]].place,
        )
    return None


def numbers_of_trainings(record: Record) -> dict[int, int]:
    """Return which training, counted from 0, each iteration over a loader is that is one."""
    return {epoch.number: number for number, epoch in enumerate(record.trainings())}


def hang(case: Case) -> Finding | None:
    """Processes that wait for what never comes."""
    if not case.hang:
        return None
    waiting = [sign for sign in case.hang if sign.waits and not sign.ended]
    others = [sign for sign in case.hang if sign not in waiting]
    words = [said_of(sign) for sign in (*others, *waiting)]
    lonely = next((sign for sign in waiting if is_reached_by_one(case, sign)), None)
    if lonely is not None:
        place = lonely.call.partition(" at ")[2]
        words.append(f"no other process has reached {place}")
        advice = "call it on all processes: barriers, gathering, save_state and sharded state_dict "
        advice += "concern all of them"
        return Finding("FAIL", "hang", "; ".join(words), advice, place)
    if others:
        names = processes([sign.rank for sign in others])
        advice = f"the others wait for {names}: all must reach the same operations"
        place = others[0].place or waiting[0].place
    else:
        advice = "all wait, but for different operations: each must be reached by all processes"
        place = waiting[0].place
    return Finding("FAIL", "hang", "; ".join(words), advice, place)


def is_reached_by_one(case: Case, sign: Sign) -> bool:
    """Return whether a process waits in an operation at a line that no other one has come to."""
    others = [record for record in case.ranks if record.rank != sign.rank]
    return bool(sign.call) and not any(sign.call in record.collectives for record in others)


def said_of(sign: Sign) -> str:
    """Return in words what a process that hangs, or that is waited for, does."""
    if sign.ended:
        return f"process {sign.rank} has ended"
    if sign.call:
        return f"process {sign.rank} waits in {sign.call}"
    if sign.waits:
        return f"process {sign.rank} waits for others at {sign.place}"
    return f"process {sign.rank} is at {sign.place} and waits for nobody"


def shared_device(case: Case) -> Finding | None:
    """A GPU that two processes use."""
    seen: dict[str, int] = {}
    for record in case.ranks:
        if not record.device.startswith("cuda"):
            continue
        if record.device in seen:
            return Finding(
                "FAIL",
                "device",
                f"processes {seen[record.device]} and {record.rank} use the same GPU",
                "torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) before anything else",
            )
        seen[record.device] = record.rank
    return None
