"""What looks nearly like a planted mistake, and is none: a script, and changes of it."""

from planted_faults import BACKWARD, FORWARD, STEP, WRAP

UNEVEN = (
    ("torch.randn(48, 6), torch.randint(3, (48,))", "torch.randn(40, 6), torch.randint(3, (40,))"),
    ("DistributedSampler(tested, shuffle=False)", "range(24) if rank == 0 else range(24, 40)"),
)

NEAR_MISSES: dict[str, tuple[str, *tuple[tuple[str, str], ...]]] = {
    "padding cut off by hand": (  # as in transformers' scripts
        "accelerated.py",
        ("    right = 0\n", "    right = seen = 0\n"),
        (
            "gather_for_metrics((scores, labels))\n",
            "gather((scores, labels))\n"
            "        scores = scores[: len(tested) - seen]\n"
            "        labels = labels[: len(tested) - seen]\n"
            "        seen += len(labels)\n",
        ),
    ),
    "an adversarial example": (
        "plain.py",
        (
            f"        {FORWARD}\n",
            "        inputs.requires_grad_()\n"
            "        with model.no_sync():\n"
            "            F.cross_entropy(model(inputs), labels).backward()\n"
            "        inputs = (inputs + 0.1 * inputs.grad.sign()).detach()\n"
            f"        model.zero_grad()\n        {FORWARD}\n",
        ),
    ),
    "a sharpness-aware step": (
        "plain.py",
        ("import sys\n", "import sys\nfrom contextlib import nullcontext\n"),
        (
            f"        {FORWARD}\n{BACKWARD}",
            "        before = [each.detach().clone() for each in model.parameters()]\n"
            "        for is_second in (False, True):\n"
            "            with nullcontext() if is_second else model.no_sync():\n"
            f"                {FORWARD}\n    {BACKWARD}"
            "            with torch.no_grad():\n"
            "                for each, old in zip(model.parameters(), before, strict=True):\n"
            "                    each.copy_(old if is_second else each + 0.01 * each.grad)\n"
            "            if not is_second:\n                optimizer.zero_grad()\n",
        ),
    ),
    "another model's gradients are cleared": (
        "varied.py",
        (
            "torch.manual_seed(100 + rank)\n",
            "critic = nn.Linear(3, 3)\ntorch.manual_seed(100 + rank)\n",
        ),
        ("model(inputs=inputs), labels) / 2", "critic(model(inputs=inputs)), labels) / 2"),
        (
            "            loss.backward()\n",
            "            loss.backward()\n            critic.zero_grad()\n",
        ),
    ),
    "clipped after unscaling": (
        "plain.py",
        (WRAP, f"{WRAP}scaler = torch.amp.GradScaler('cpu')\n"),
        (
            BACKWARD,
            "        scaler.scale(loss).backward()\n        scaler.unscale_(optimizer)\n"
            "        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n",
        ),
        (STEP, "        scaler.step(optimizer)\n        scaler.update()\n"),
    ),
    "equal weights of classes": (
        "plain.py",
        ("model(inputs), labels)", "model(inputs), labels, torch.tensor([1.0, 1.0, 2.0]))"),
    ),
    "a mean of equal shares": (
        "plain.py",
        ("dist.all_reduce(counts)", "dist.all_reduce(counts[0] / counts[1])"),
    ),
    "a sum of parts of the whole": (
        "plain.py",
        *UNEVEN,
        ("dist.all_reduce(counts)", "dist.all_reduce(torch.tensor([10 / 40]))"),
    ),
    "unequal shares gathered with their counts": (
        "plain.py",
        *UNEVEN,
        (
            "dist.all_reduce(counts)",
            "dist.all_gather([torch.zeros(2), torch.zeros(2)][:world], counts / counts[1])\n"
            "    dist.all_reduce(counts[1])",
        ),
    ),
    "an order that is meant to stay": (
        "elaborate.py",
        (
            "    epoch = 0\n\n",
            "    epoch = 0\n\n    def set_epoch(self, epoch):\n        self.epoch = epoch\n\n",
        ),
        ("manual_seed(self.epoch)", "manual_seed(0)"),
    ),
    "a decay that has no end": (
        "plain.py",
        ("import CosineAnnealingLR", "import ExponentialLR"),
        (
            "CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))",
            "ExponentialLR(optimizer, 0.873)",
        ),
    ),
    "a second pass past the wrapper": (
        "plain.py",
        (FORWARD, f"{FORWARD} + model.module(inputs).square().mean()"),
    ),
    "unfrozen and wrapped again": (
        "plain.py",
        (WRAP, f"model[0].requires_grad_(False)\n{WRAP}"),
        (
            "    model.train()\n",
            "    if epoch == 1:\n        model.module.requires_grad_()\n"
            "        model = DistributedDataParallel(model.module)\n    model.train()\n",
        ),
    ),
    "workers started anew": (
        "varied.py",
        (
            "    sampler.set_epoch(epoch)\n",
            "    sampler.set_epoch(epoch)\n    whole.epoch = epoch\n",
        ),
    ),
    "an epoch in shared memory": (
        "varied.py",
        ("num_workers=1, drop", "num_workers=1, persistent_workers=True, drop"),
        ("next(iter(test_loader))\n", "whole.epoch = torch.zeros(1).share_memory_()\n"),
        (
            "    sampler.set_epoch(epoch)\n",
            "    sampler.set_epoch(epoch)\n    whole.epoch.fill_(epoch)\n",
        ),
    ),
    "a loss times a number": ("plain.py", (BACKWARD, "        (loss.sum() * 0.25).backward()\n")),
}
