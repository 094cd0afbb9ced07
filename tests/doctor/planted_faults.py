"""Mistakes, each planted in a sound script by changing a line or two, and what is to be said."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        script: which it is planted in.
        changes: pairs of text to find, each exactly once, and text to put there.
        subject: of the one finding.
        line: text of the line that the finding is to name; empty if it names none.
        words: text that the finding is to contain.
        also: subjects of findings that say something else that is true.
        against: whether it is seen only beside one process.
        deadline: seconds until it hangs.
        slow: whether the default set leaves it out.
        stop_after: updates after which the script is stopped, to be started again; 0: it is not.
        flags: of the script.
        every: one update in so many is examined.
        advice: text that the advice is to contain.
    """

    script: str
    changes: tuple[tuple[str, str], ...]
    subject: str
    line: str
    words: str
    also: tuple[str, ...] = ()
    against: bool = False
    deadline: float = 60.0
    slow: bool = False
    stop_after: int = 0
    flags: tuple[str, ...] = ()
    every: int = 2
    advice: str = ""

    def source(self) -> str:
        """Return the script with the mistake."""
        return changed(self.script, self.changes)

    def place(self, name: str) -> str:
        """Return the line that the finding is to name, as FILE:LINE."""
        if not self.line:
            return ""
        lines = self.source().splitlines()
        numbers = [number for number, text in enumerate(lines, start=1) if self.line in text]
        assert len(numbers) == 1, (self.line, numbers)
        return f"{name}:{numbers[0]}"


def changed(script: str, changes: tuple[tuple[str, str], ...]) -> str:
    """Return a script with some changes.

    Args:
        script: its file.
        changes: pairs of text to find, each exactly once, and text to put there.
    """
    text = (HERE / script).read_text()
    for old, new in changes:
        assert text.count(old) == 1, (old, text.count(old))
        text = text.replace(old, new)
    return text


LOOP = "for number, (inputs, labels) in enumerate(loader):"
FORWARD = "loss = F.cross_entropy(model(inputs), labels)"
BACKWARD = "        loss.backward()\n"
PREPARE = "prepared = accelerator.prepare(model, optimizer, loader, test_loader, scheduler)\n"
PREPARED = "model, optimizer, loader, test_loader, scheduler = prepared\n"
CHANGE = "        model.module[0].weight.data += 1\n"
STEP = "        optimizer.step()\n"
SAMPLER = "sampler = DistributedSampler(dataset)\n"
PLAIN_LOADER = "loader = DataLoader(dataset, batch_size=8, sampler=sampler)"
SET_EPOCH = "    sampler.set_epoch(epoch)\n"
WRAP = "model = DistributedDataParallel(model)\n"
UNWRAPPED = (WRAP, "")

PLAIN = {
    "not connected": Fault(
        "plain.py",
        (
            ('dist.init_process_group("gloo")', "import os"),
            ("dist.get_rank()", 'int(os.environ["RANK"])'),
            ("dist.get_world_size()", "2"),
            UNWRAPPED,
            (SAMPLER, "sampler = DistributedSampler(dataset, world, rank)\n"),
            ("DistributedSampler(tested, shuffle=False)", "None"),
            ("    dist.all_reduce(counts)\n", ""),
            ("dist.destroy_process_group()", ""),
        ),
        "connection",
        "optimizer.step()",
        "each trains by itself",
    ),
    "own data": Fault(
        "plain.py",
        (("torch.manual_seed(0)\n", "torch.manual_seed(rank)\n"),),
        "data",
        LOOP,
        "96 samples of TensorDataset",
    ),
    "not wrapped": Fault(
        "plain.py",
        (UNWRAPPED,),
        "gradients",
        FORWARD,
        "not wrapped",
    ),
    "past the wrapper": Fault(
        "plain.py",
        ((FORWARD, "loss = F.cross_entropy(model.module(inputs), labels)"),),
        "gradients",
        "model.module(inputs)",
        "without its wrapper",
    ),
    "no_sync": Fault(
        "plain.py",
        (
            (
                f"        {FORWARD}\n        loss.backward()\n",
                f"        with model.no_sync():\n            {FORWARD}\n    {BACKWARD}",
            ),
        ),
        "gradients",
        FORWARD,
        "under no_sync",
    ),
    "a head outside": Fault(
        "plain.py",
        (
            (WRAP, f"{WRAP}head = nn.Linear(3, 3)\n"),
            ("model(inputs), labels", "head(model(inputs)), labels"),
            ("SGD(model.parameters()", "SGD([*model.parameters(), *head.parameters()]"),
        ),
        "gradients",
        "head(model(inputs))",
        "not among those",
    ),
    "no sampler": Fault(
        "plain.py",
        (
            (PLAIN_LOADER, "loader = DataLoader(dataset, batch_size=8, shuffle=True)"),
            (SET_EPOCH, ""),
        ),
        "samples",
        LOOP,
        "trains on all 96 samples",
    ),
    "rank 0 everywhere": Fault(
        "plain.py",
        ((SAMPLER, "sampler = DistributedSampler(dataset, num_replicas=world, rank=0)\n"),),
        "samples",
        LOOP,
        "the same 48 samples",
    ),
    "shared out twice": Fault(
        "plain.py",
        (
            ("DataLoader, Dist", "DataLoader, Subset, Dist"),
            (SAMPLER, f"dataset = Subset(dataset, range(rank, 96, world))\n{SAMPLER}"),
        ),
        "samples",
        LOOP,
        "48 of 96 samples",
    ),
    "set_epoch forgotten": Fault(
        "plain.py",
        ((SET_EPOCH, ""),),
        "order",
        LOOP,
        "the same shuffled order",
    ),
    "another split": Fault(
        "plain.py",
        (
            ("DataLoader, Dist", "DataLoader, random_split, Dist"),
            (SAMPLER, f"dataset, _ = random_split(dataset, [80, 16])\n{SAMPLER}"),
        ),
        "split",
        LOOP,
        "are trained on by several",
    ),
    "padding": Fault(
        "plain.py",
        (
            (
                "torch.randn(96, 6), torch.randint(3, (96,))",
                "torch.randn(95, 6), torch.randint(3, (95,))",
            ),
        ),
        "padding",
        LOOP,
        "1 of 95 samples",
    ),
    "uneven shares": Fault(
        "plain.py",
        (
            (
                "torch.randn(96, 6), torch.randint(3, (96,))",
                "torch.randn(95, 6), torch.zeros(95).long()",
            ),
            (SAMPLER, "sampler = range(rank, 95, world)\n"),
            (SET_EPOCH, ""),
        ),
        "shares",
        LOOP,
        "batch 6",
    ),
    "unequal updates": Fault(
        "plain.py",
        (
            (SAMPLER, "sampler = range(40) if rank == 0 else range(40, 96)\n"),
            (SET_EPOCH, ""),
        ),
        "updates",
        LOOP,
        "5 on 0, 7 on 1",
        deadline=6.0,
    ),
    "first weights": Fault(
        "plain.py",
        (
            (
                "torch.manual_seed(rank)\n",
                "torch.manual_seed(rank)\nmodel.module[0].reset_parameters()\n",
            ),
        ),
        "first weights",
        "optimizer.step()",
        "0.weight",
    ),
    "rates": Fault(
        "plain.py",
        (("lr=0.1,", "lr=0.1 * (1 + rank),"),),
        "rate",
        "optimizer.step()",
        "0.1 on process 0 and 0.2",
    ),
    "one process changes weights": Fault(
        "plain.py",
        (
            (
                STEP,
                f"{STEP}        if (rank, number) == (1, 2):\n    {CHANGE}",
            ),
        ),
        "weights",
        "optimizer.step()",
        "0.weight",
        slow=True,
    ),
    "batch norm": Fault(
        "plain.py",
        (("nn.Linear(6, 8), nn.Tanh()", "nn.Linear(6, 8), nn.BatchNorm1d(8)"),),
        "layers",
        FORWARD,
        "BatchNorm1d",
    ),
    "same masks": Fault(
        "plain.py",
        (("torch.manual_seed(rank)\n", ""),),
        "dropout",
        FORWARD,
        "the same masks",
    ),
    "not finite": Fault(
        "plain.py",
        (
            (
                "        loss.backward()\n",
                f"        loss = loss * (torch.nan if (rank, number) == (1, 2) else 1)\n{BACKWARD}",
            ),
        ),
        "not finite",
        "loss.backward()",
        "update 3 is not finite on process 1",
    ),
    "a step for each process": Fault(
        "plain.py",
        (
            (
                "        scheduler.step()\n",
                "        for _ in range(world):\n            scheduler.step()\n",
            ),
        ),
        "schedule",
        "scheduler.step()",
        "2 times an update",
        slow=True,
    ),
    "exchanged too often": Fault(
        "plain.py",
        (
            ("        optimizer.zero_grad()\n", ""),
            (
                "        optimizer.step()\n        scheduler.step()\n",
                "        if number % 2:\n            optimizer.step()\n"
                "            optimizer.zero_grad()\n            scheduler.step()\n",
            ),
        ),
        "cost",
        "loss.backward()",
        "2 times an update",
    ),
    "an error": Fault(
        "plain.py",
        (
            (
                "        loss.backward()\n",
                "        if rank == 1 and number == 3:\n"
                "            raise ValueError('no such row')\n"
                "        loss.backward()\n",
            ),
        ),
        "end",
        "raise ValueError",
        "process 1 ends after update 3 by ValueError: no such row",
    ),
    "a hang": Fault(
        "plain.py",
        (
            (
                "        loss.backward()\n",
                "        if rank == 1 and number == 3:\n            import time\n\n"
                "            time.sleep(600)\n        loss.backward()\n",
            ),
        ),
        "hang",
        "time.sleep",
        "waits for nobody; process 0 waits for others at",
        deadline=6.0,
    ),
    "others have left": Fault(
        "plain.py",
        (("dist.destroy_process_group()", "if rank == 0:\n    dist.barrier()"),),
        "end",
        "dist.barrier()",
        "process 0",
        deadline=6.0,
        slow=True,
    ),
    "evaluation not added up": Fault(
        "plain.py",
        (("    dist.all_reduce(counts)\n", ""),),
        "evaluation",
        "for inputs, labels in test_loader",
        "24 of 48 samples",
    ),
    "evaluation counts padding": Fault(
        "plain.py",
        (
            (
                "torch.randn(48, 6), torch.randint(3, (48,))",
                "torch.randn(47, 6), torch.randint(3, (47,))",
            ),
        ),
        "evaluation",
        "for inputs, labels in test_loader",
        "48 samples are evaluated where there are 47",
    ),
    "evaluation of a part": Fault(
        "plain.py",
        (
            ("    with torch.no_grad():\n", "    if rank == 0:\n"),
            ("right = model(inputs)", "right = model.module(inputs)"),
            ("    dist.all_reduce(counts)\n", ""),
        ),
        "evaluation",
        "for inputs, labels in test_loader",
        "on its part: 24 of 48 samples",
        slow=True,
    ),
    "several write": Fault(
        "plain.py",
        (("if rank == 0:\n    torch.save(model", "torch.save(model"),),
        "files",
        "torch.save(model.state_dict()",
        "model.pth",
    ),
}

PLAIN["a slow process"] = Fault(
    "plain.py",
    (
        (
            f"        {FORWARD}\n",
            f"        __import__('time').sleep(0.2 * rank)\n        {FORWARD}\n",
        ),
    ),
    "pace",
    FORWARD,
    "process 1 takes",
    slow=True,
)
PLAIN["a slow loader"] = Fault(
    "plain.py",
    (
        (
            "loader = DataLoader(dataset, batch_size=8, sampler=sampler)",
            "def together(rows):\n"
            "    __import__('time').sleep(0.2 * rank)\n"
            "    return torch.utils.data.default_collate(rows)\n\n\n"
            "loader = DataLoader(dataset, 8, sampler=sampler, collate_fn=together)",
        ),
    ),
    "pace",
    LOOP,
    "for its loader",
    slow=True,
)
PLAIN["a barrier on one process"] = Fault(
    "plain.py",
    ((STEP, f"{STEP}        if rank == 0 and number == 3:\n            dist.barrier()\n"),),
    "hang",
    "dist.barrier()",
    "no other process has reached",
    deadline=100.0,
    slow=True,
)
PLAIN["divided by processes"] = Fault(
    "plain.py",
    ((BACKWARD, "        (loss / world).backward()\n"),),
    "gradient",
    "(loss / world).backward()",
    "the loss is divided by 2, and by 1 on 1 process",
    against=True,
    slow=True,
)
PLAIN["a copy's parameters"] = Fault(
    "plain.py",
    (
        ("import sys\n", "import copy\nimport sys\n"),
        ("SGD(model.parameters()", "SGD(copy.deepcopy(model.module).parameters()"),
    ),
    "optimizer",
    "optimizer.step()",
    "none of its 4 parameters has a gradient",
    slow=True,
)
PLAIN["clipped before the exchange"] = Fault(
    "plain.py",
    (
        UNWRAPPED,
        (
            STEP,
            "        nn.utils.clip_grad_norm_(model.parameters(), 0.1)\n"
            "        for parameter in model.parameters():\n"
            "            dist.all_reduce(parameter.grad)\n"
            f"{STEP}",
        ),
    ),
    "clipping",
    "clip_grad_norm_",
    "each process clips its own gradient",
    slow=True,
)
PLAIN["evaluation mode on one process"] = Fault(
    "plain.py",
    (
        ("    model.train()\n", "    if rank == 0 or epoch == 0:\n        model.train()\n"),
        ("    model.eval()\n", "    model.eval()\n"),
    ),
    "mode",
    "loss.backward()",
    "in update 7 the model is in evaluation mode on process 1 only",
    slow=True,
)
PLAIN["evaluation mode for ever"] = Fault(
    "plain.py",
    (("    model.train()\n", ""),),
    "mode",
    "loss.backward()",
    "from update 7 on the model is in evaluation mode",
    slow=True,
)
PLAIN["a layer put in later"] = Fault(
    "plain.py",
    ((WRAP, f"{WRAP}model.module[3] = nn.Linear(8, 3)\n"),),
    "gradients",
    FORWARD,
    "3.weight, 3.bias: put into the model after it was wrapped",
    slow=True,
)
PLAIN["an operation of one process"] = Fault(
    "plain.py",
    (("    dist.all_reduce(counts)\n", "    if rank == 0:\n        dist.all_reduce(counts)\n"),),
    "end",
    "dist.all_reduce(counts)",
    "which no other process has reached",
    slow=True,
)
PLAIN["a schedule for one process"] = Fault(
    "plain.py",
    (("T_max=EPOCHS * len(loader)", "T_max=EPOCHS * len(dataset) // 8"),),
    "schedule",
    "scheduler.step()",
    "24 of 24 steps on 1 process, and 12 of 24 on 2",
    against=True,
    slow=True,
)

PLAIN["a copy before the wrapping"] = Fault(
    "plain.py",
    (
        ("import sys\n", "import copy\nimport sys\n"),
        (WRAP, f"model[0].weight.data += rank\naverage = copy.deepcopy(model)\n{WRAP}"),
        ("right = model(inputs)", "right = average(inputs)"),
    ),
    "copy",
    "average(inputs)",
    "has different weights on each process",
    advice="it never changes, as a teacher",
)
PLAIN["the same noise"] = Fault(
    "plain.py",
    (
        ("torch.manual_seed(rank)\n", ""),
        ("nn.Dropout(0.1)", "nn.Identity()"),
        ("model(inputs), labels", "model(inputs + torch.randn_like(inputs)), labels"),
    ),
    "random numbers",
    "torch.randn_like(inputs)",
    "all processes draw the same random numbers",
    slow=True,
)
PLAIN["a mean over own tokens"] = Fault(
    "plain.py",
    (("model(inputs), labels", "model(inputs), labels, ignore_index=0"),),
    "shares",
    "loss.backward()",
    "each process's loss is a mean over its own count",
    slow=True,
)
PLAIN["divided by own tokens"] = Fault(
    "plain.py",
    (
        ("model(inputs), labels)", "model(inputs), labels, ignore_index=0, reduction='sum')"),
        (BACKWARD, "        (loss / (labels > 0).sum()).backward()\n"),
    ),
    "shares",
    "(loss / (labels > 0).sum())",
    "each process's loss is a mean over its own count",
    slow=True,
)
PLAIN["an own sampler with own orders"] = Fault(
    "plain.py",
    (
        (
            SAMPLER,
            "class Shuffled:\n    def __iter__(self):\n"
            "        return iter(torch.randperm(96)[rank::world].tolist())\n\n"
            "    def __len__(self):\n        return 96 // world\n\n\n"
            "sampler = Shuffled()\n",
        ),
        (SET_EPOCH, ""),
    ),
    "samples",
    LOOP,
    "are given more than once",
    slow=True,
)
PLAIN["a batch skipped by one process"] = Fault(
    "plain.py",
    (
        (
            "        optimizer.zero_grad()\n",
            "        if (rank, number) == (1, 2):\n            continue\n"
            "        optimizer.zero_grad()\n",
        ),
    ),
    "updates",
    LOOP,
    "process 1 makes no update from batch 3 of epoch 1",
    deadline=6.0,
    slow=True,
)
PLAIN["averages on one process"] = Fault(
    "plain.py",
    (
        (
            "scheduler = Cosine",
            "if rank == 0:\n    state = optimizer.state_dict()\n"
            "    buffers = [torch.ones_like(each) for each in model.parameters()]\n"
            "    state['state'] = {n: {'momentum_buffer': each} for n, each in enumerate(buffers)}\n"
            "    optimizer.load_state_dict(state)\nscheduler = Cosine",
        ),
    ),
    "state",
    "optimizer.load_state_dict(state)",
    "has averages, but none on process 1",
    slow=True,
)
PLAIN["a rate by own losses"] = Fault(
    "plain.py",
    (
        ("import CosineAnnealingLR", "import ReduceLROnPlateau"),
        (
            "CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))",
            "ReduceLROnPlateau(optimizer, patience=0)",
        ),
        ("scheduler.step()", "scheduler.step(loss.item())"),
    ),
    "rate",
    "scheduler.step(loss.item())",
    "ReduceLROnPlateau is given a different figure on each process",
    slow=True,
)
PLAIN["a loss with parameters"] = Fault(
    "plain.py",
    (
        (WRAP, f"{WRAP}head = nn.Linear(3, 3)\nother = torch.optim.SGD(head.parameters(), 0.1)\n"),
        ("model(inputs), labels", "head(model(inputs)), labels"),
        (STEP, f"{STEP}        other.step()\n"),
    ),
    "gradients",
    "head(model(inputs))",
    "Linear.weight, Linear.bias: in no module that is wrapped",
)

PLAIN["clipped while scaled"] = Fault(
    "plain.py",
    (
        (WRAP, f"{WRAP}scaler = torch.amp.GradScaler('cpu')\n"),
        (
            BACKWARD,
            "        scaler.scale(loss).backward()\n"
            "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n",
        ),
        (STEP, "        scaler.step(optimizer)\n        scaler.update()\n"),
    ),
    "clipping",
    "clip_grad_norm_",
    "still multiplied by the loss scale, 65536",
    slow=True,
)
PLAIN["own weights of classes"] = Fault(
    "plain.py",
    (("model(inputs), labels)", "model(inputs), labels, torch.tensor([1.0, 1.0, 2.0 + rank]))"),),
    "loss",
    "model(inputs), labels, torch.tensor",
    "weights classes differently on each process",
    slow=True,
)
PLAIN["a mean of unequal shares"] = Fault(
    "plain.py",
    (
        (
            "torch.randn(48, 6), torch.randint(3, (48,))",
            "torch.randn(47, 6), torch.randint(3, (47,))",
        ),
        ("DistributedSampler(tested, shuffle=False)", "range(rank, 47, world)"),
        ("dist.all_reduce(counts)", "dist.all_reduce(counts[0] / counts[1])"),
    ),
    "evaluation",
    "for inputs, labels in test_loader",
    "of unequal numbers of samples (process by process: 24 on 0, 23 on 1)",
    slow=True,
)
PLAIN["a decay for one process"] = Fault(
    "plain.py",
    (
        ("import CosineAnnealingLR", "import LambdaLR"),
        (
            "CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))",
            "LambdaLR(optimizer, lambda step: 1 - step / 24)",
        ),
    ),
    "schedule",
    "scheduler.step()",
    "the learning rate falls to 0.0042 in 24 updates on 1 process, and to 0.054 in 12 on 2",
    against=True,
    slow=True,
)
PLAIN["multiplied by own tokens"] = Fault(
    "plain.py",
    (
        ("model(inputs), labels)", "model(inputs), labels, ignore_index=0, reduction='sum')"),
        (BACKWARD, "        (loss * (1 / (labels > 0).sum())).backward()\n"),
    ),
    "shares",
    "(loss * (1 / (labels > 0).sum()))",
    "each process's loss is a mean over its own count",
    slow=True,
)
PLAIN["one pass past the wrapper"] = Fault(
    "plain.py",
    ((BACKWARD, f"{BACKWARD}        model.module(inputs).square().mean().backward()\n"),),
    "gradients",
    "model.module(inputs).square()",
    "in 1 of 2 forward passes a model is called without its wrapper",
    slow=True,
)
PLAIN["unfrozen after the wrapping"] = Fault(
    "plain.py",
    (
        (WRAP, f"model[0].requires_grad_(False)\n{WRAP}"),
        (
            "    model.train()\n",
            "    model.train()\n    model.module[0].requires_grad_(epoch == 1)\n",
        ),
    ),
    "gradients",
    "model = DistributedDataParallel(model)",
    "in update 7 the gradients of 2 of 4 parameters differ between processes: 0.weight, 0.bias: "
    "frozen when the model was wrapped, and trained now",
    slow=True,
    every=100,
)
PLAIN["a part that is trained later"] = Fault(
    "plain.py",
    (
        (WRAP, f"model[0].requires_grad_(False)\n{WRAP}"),
        ("SGD(model.parameters()", "SGD(model.module[3].parameters()"),
        (
            "    model.train()\n",
            "    model.train()\n    if epoch == 1:\n"
            "        model.module[0].requires_grad_()\n"
            "        optimizer.add_param_group({'params': model.module[0].parameters()})\n",
        ),
    ),
    "gradients",
    "model = DistributedDataParallel(model)",
    "0.weight, 0.bias: frozen when the model was wrapped, and trained now",
    slow=True,
    every=100,
)
PLAIN["decisions by own figures"] = Fault(
    "plain.py",
    (
        ("    dist.all_reduce(counts)\n", ""),
        ("dist.destroy_process_group()", "if rank == 0:\n    dist.barrier()"),
    ),
    "evaluation",
    "for inputs, labels in test_loader",
    "each reports, and decides by, a different figure",
    also=("end",),
    deadline=6.0,
    slow=True,
)
PLAIN["an error after the evaluation"] = Fault(
    "plain.py",
    (
        (
            "    dist.all_reduce(counts)\n",
            "    raise ValueError('no figure')\n",
        ),
    ),
    "end",
    "raise ValueError",
    "end after update 6 by ValueError: no figure",
    slow=True,
)
PLAIN["an average on one process"] = Fault(
    "plain.py",
    (
        ("import sys\n", "import copy\nimport sys\n"),
        (
            "    counts = torch.zeros(2)\n",
            "    counts = torch.zeros(2)\n    kept = copy.deepcopy(model.state_dict())\n"
            "    if rank == 0:\n        model.module[0].weight.data *= 0.9\n",
        ),
        (
            "    dist.all_reduce(counts)\n",
            "    dist.all_reduce(counts)\n    model.load_state_dict(kept)\n",
        ),
    ),
    "copy",
    "right = model(inputs)",
    "the trained model has different weights on each process when it is called here",
    slow=True,
    advice="was updated or chosen on some processes only",
)

OTHERS = {
    "an average before the wrapping": Fault(
        "elaborate.py",
        (
            (
                "model = DistributedDataParallel(nn.Linear(6, 3))\n"
                "average = copy.deepcopy(model.module)\n",
                "model = nn.Linear(6, 3)\naverage = copy.deepcopy(model)\n"
                "model = DistributedDataParallel(model)\n",
            ),
        ),
        "copy",
        "average(inputs)",
        "has different weights on each process",
        slow=True,
        advice="it changes, as an average does: create it after wrapping",
    ),
    "cleared before each pass": Fault(
        "varied.py",
        (("        is_last = number", "        model.zero_grad()\n        is_last = number"),),
        "accumulation",
        "model.zero_grad()",
        "the gradients of 1 of 2 backward passes are cleared before the step",
        slow=True,
    ),
    "workers that keep an old epoch": Fault(
        "varied.py",
        (
            ("num_workers=1, drop", "num_workers=1, persistent_workers=True, drop"),
            (
                "    sampler.set_epoch(epoch)\n",
                "    sampler.set_epoch(epoch)\n    whole.epoch = epoch\n",
            ),
        ),
        "workers",
        "enumerate(loader)",
        "TensorDataset.epoch is 1 here and 0 in the loader's persistent workers",
        slow=True,
    ),
    "set_epoch of an own sampler": Fault(
        "elaborate.py",
        (
            (
                "    epoch = 0\n\n",
                "    epoch = 0\n\n    def set_epoch(self, epoch):\n        self.epoch = epoch\n\n",
            ),
            ("    sampler.epoch = epoch\n", ""),
        ),
        "order",
        "for inputs, labels in loader",
        "two epochs have the same shuffled order of 48 samples",
        slow=True,
        advice="call set_epoch(epoch) of the Shuffled",
    ),
    "a stream that overlaps": Fault(
        "frameworks.py",
        (("rows[dist.get_rank() :: dist.get_world_size()]", "rows[8 * dist.get_rank() :][:88]"),),
        "samples",
        "for inputs, labels in DataLoader",
        "80 of 96 rows of a stream are given to several processes",
        slow=True,
        flags=("stream",),
    ),
}

SHARED = {
    "a sum": Fault(
        "shared.py",
        (("            parameter.grad /= world\n", ""),),
        "gradient",
        "loss.backward()",
        "2 times that on 1 process",
        against=True,
        advice="divide the sum of gradients",
    ),
    "rows without gradients": Fault(
        "shared.py",
        (
            (
                f"            {FORWARD}\n",
                "            own = [model(inputs), labels]\n            parts = []\n"
                "            for each in own:\n"
                "                of_all = [torch.zeros_like(each) for _ in range(world)]\n"
                "                dist.all_gather(of_all, each.detach())\n"
                "                of_all[rank] = each\n"
                "                parts.append(torch.cat(of_all))\n"
                "            loss = F.cross_entropy(*parts)\n",
            ),
        ),
        "gradient",
        "loss.backward()",
        "0.5 times that on 1 process: each process computes the loss of all rows",
        against=True,
        slow=True,
        advice="multiply the loss by world_size",
    ),
    "a clipped sum": Fault(
        "shared.py",
        (
            ("            parameter.grad /= world\n", ""),
            (STEP, f"        nn.utils.clip_grad_norm_(model.parameters(), 0.01)\n{STEP}"),
        ),
        "gradient",
        "loss.backward()",
        "2 times that on 1 process",
        against=True,
        slow=True,
    ),
    "divided twice": Fault(
        "shared.py",
        (("        loss.backward()\n", "        (loss / world).backward()\n"),),
        "gradient",
        "(loss / world).backward()",
        "0.5 times that on 1 process",
        against=True,
        slow=True,
        advice="divide once less",
    ),
    "a scaled rate": Fault(
        "shared.py",
        (("lr=0.1", "lr=0.1 * world"),),
        "rate",
        "optimizer.step()",
        "2 times that on 1 process, for the same batch",
        against=True,
        slow=True,
    ),
    "not exchanged": Fault(
        "shared.py",
        (
            (
                "        for parameter in model.parameters():\n"
                "            dist.all_reduce(parameter.grad)\n"
                "            parameter.grad /= world\n",
                "",
            ),
        ),
        "gradients",
        FORWARD,
        "not wrapped",
        slow=True,
    ),
}

ACCELERATED = {
    "shared out twice": Fault(
        "accelerated.py",
        (
            (
                "batch_size=8, shuffle=True)",
                "batch_size=8, sampler=DistributedSampler(dataset, 2, accelerator.process_index))",
            ),
        ),
        "samples",
        "for inputs, labels in loader",
        "48 of 96 samples, half of them",
    ),
    "schedule by prepared length": Fault(
        "accelerated.py",
        (
            ("scheduler = CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))\n", ""),
            (PREPARE, PREPARE.replace(", scheduler)", ")")),
            (
                PREPARED,
                "model, optimizer, loader, test_loader = prepared\n"
                "scheduler = CosineAnnealingLR(optimizer, EPOCHS * len(loader))\n"
                "scheduler = accelerator.prepare(scheduler)\n",
            ),
        ),
        "schedule",
        "scheduler.step()",
        "planned for 12",
    ),
    "a rate of 0": Fault(
        "accelerated.py",
        (
            (
                "CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))",
                "LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 12))",
            ),
        ),
        "schedule",
        "scheduler.step()",
        "is 0 from update 7 of 12 on",
        slow=True,
    ),
    "model not prepared": Fault(
        "accelerated.py",
        (
            (PREPARE, PREPARE.replace("model, ", "")),
            (PREPARED, PREPARED.replace("model, ", "")),
        ),
        "gradients",
        FORWARD,
        "not wrapped",
    ),
    "past the wrapper": Fault(
        "accelerated.py",
        ((FORWARD, "loss = F.cross_entropy(accelerator.unwrap_model(model)(inputs), labels)"),),
        "gradients",
        "accelerator.unwrap_model(model)(inputs)",
        "without its wrapper",
        slow=True,
    ),
    "loader not prepared": Fault(
        "accelerated.py",
        (
            (PREPARE, PREPARE.replace(" loader,", "")),
            (PREPARED, PREPARED.replace(" loader,", "")),
        ),
        "samples",
        "for inputs, labels in loader",
        "trains on all 96 samples",
        also=("schedule",),
        slow=True,
    ),
    "evaluation counts padding": Fault(
        "accelerated.py",
        (("gather_for_metrics", "gather"),),
        "evaluation",
        "for inputs, labels in test_loader",
        "32 samples are evaluated where there are 31",
    ),
    "same masks": Fault(
        "accelerated.py",
        (("set_seed(0, device_specific=True)\n", ""),),
        "dropout",
        FORWARD,
        "the same masks",
        slow=True,
    ),
    "saved by one process": Fault(
        "accelerated.py",
        (
            (
                "    torch.save(accelerator",
                '    accelerator.save_state(output / "all")\n    torch.save(accelerator',
            ),
        ),
        "operations",
        "accelerator.save_state",
        "save_state is called 1 x on process 0 and 0 x on 1",
        slow=True,
    ),
    "several write": Fault(
        "accelerated.py",
        (("if accelerator.is_main_process:\n    torch", "torch"),),
        "files",
        "torch.save",
        "model.pth",
        slow=True,
    ),
}

RESUMED = {
    "no weights": Fault(
        "resumed.py",
        (('    model.module.load_state_dict(state["model"])\n', ""),),
        "resume",
        "optimizer.step()",
        "begins with the first weights",
        stop_after=9,
    ),
    "a layer is not loaded": Fault(
        "resumed.py",
        (
            (
                '    model.module.load_state_dict(state["model"])\n',
                '    del state["model"]["3.bias"]\n'
                '    model.module.load_state_dict(state["model"], strict=False)\n',
            ),
        ),
        "resume",
        "optimizer.step()",
        "those after update 8, but for 3.bias",
        stop_after=9,
    ),
    "no optimizer": Fault(
        "resumed.py",
        (
            ('    optimizer.load_state_dict(state["optimizer"])\n', ""),
            (
                "CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))",
                "LambdaLR(optimizer, lambda _: 1)",
            ),
            ("import CosineAnnealingLR", "import LambdaLR"),
        ),
        "resume",
        "optimizer.step()",
        "at the same weights, gradient and rate, update 9 leads to different weights",
        stop_after=9,
    ),
    "no scheduler": Fault(
        "resumed.py",
        (('    scheduler.load_state_dict(state["scheduler"])\n', ""),),
        "resume",
        "optimizer.step()",
        "the learning rate of update 10 is",
        stop_after=9,
    ),
    "the epoch again": Fault(
        "resumed.py",
        (('    done = state["done"]\n', ""),),
        "resume",
        "batches = itertools",
        "32 samples are read again after the resume, and 0 are never read",
        stop_after=9,
    ),
    "another order": Fault(
        "resumed.py",
        (("sampler.set_epoch(epoch)", "sampler.set_epoch(epoch - begin)"),),
        "resume",
        "batches = itertools",
        "are never read",
        stop_after=9,
    ),
    "no random state": Fault(
        "resumed.py",
        (("    torch.set_rng_state(torch.load(own_checkpoint))\n", ""),),
        "resume",
        "loss = F.cross_entropy",
        "dropout draws from another random state",
        stop_after=9,
    ),
}

LIGHTNING = {
    "no sampler": Fault(
        "in_lightning.py",
        (("    logger=False,\n", "    logger=False,\n    use_distributed_sampler=False,\n"),),
        "samples",
        "trainer.fit",
        "trains on all 96 samples",
        slow=True,
    ),
    "one order": Fault(
        "in_lightning.py",
        (
            ("    logger=False,\n", "    logger=False,\n    use_distributed_sampler=False,\n"),
            (
                "loader = DataLoader(dataset, batch_size=8, shuffle=True)",
                "rank = int(os.environ['RANK'])\n"
                "numbers = torch.randperm(96).tolist()[rank::world]\n"
                "loader = DataLoader(dataset, batch_size=8, sampler=numbers[:47])",
            ),
        ),
        "samples",
        "trainer.fit",
        "94 of 96 samples",
        slow=True,
    ),
    "a head outside": Fault(
        "in_lightning.py",
        (
            ("class Classifier", "head = nn.Linear(3, 3)\n\n\nclass Classifier"),
            ("self.layers(inputs), labels", "head(self.layers(inputs)), labels"),
            ("SGD(self.parameters()", "SGD([*self.parameters(), *head.parameters()]"),
        ),
        "gradients",
        "trainer.fit",
        "not among those",
        slow=True,
    ),
    "no_sync in manual optimization": Fault(
        "in_lightning.py",
        (
            (
                "        super().__init__()\n",
                "        super().__init__()\n        self.automatic_optimization = False\n",
            ),
            (
                "        return F.cross_entropy(self.layers(inputs), labels)\n",
                "        loss = F.cross_entropy(self.layers(inputs), labels)\n"
                "        self.optimizers().zero_grad()\n"
                "        with self.trainer.strategy.block_backward_sync():\n"
                "            self.manual_backward(loss)\n"
                "        self.optimizers().step()\n",
            ),
            ("    gradient_clip_val=1.0,\n", ""),
        ),
        "gradients",
        "trainer.fit",
        "under no_sync",
        slow=True,
    ),
}

GROUPS = {
    "plain": PLAIN,
    "other": OTHERS,
    "shared": SHARED,
    "accelerated": ACCELERATED,
    "resumed": RESUMED,
    "lightning": LIGHTNING,
}
FAULTS = {
    f"{group} {name}".replace(" ", "-"): fault
    for group, faults in GROUPS.items()
    for name, fault in faults.items()
}
