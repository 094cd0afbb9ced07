"""What people would run instead of this project, each as one self-contained loop; prints one JSON line.

    python benchmarks/baselines.py original --data-dir data
    python benchmarks/baselines.py floor --data-dir data --batch-size 512

original: the single-file script that this project grew from: torchvision transforms per sample, DataLoader, Adam.
floor: a hand-written loop over tensors in memory, without a framework: the limit.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def network(*first: nn.Module) -> nn.Sequential:
    return nn.Sequential(*first, nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def original(data_dir: str, epochs: int, batch_size: int, device: str) -> tuple[list[float], list[float]]:
    """Seconds and test accuracy of each epoch."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train = DataLoader(datasets.MNIST(data_dir, True, transform), batch_size, shuffle=True)
    test = DataLoader(datasets.MNIST(data_dir, False, transform), 1000)
    model = network(nn.Flatten()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds, accuracy = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        seconds.append(elapsed(start, device))
        with torch.no_grad():
            right = [(model(images.to(device)).argmax(1) == labels.to(device)).sum().item() for images, labels in test]
        accuracy.append(sum(right) / 10_000)
    return seconds, accuracy


def floor(data_dir: str, epochs: int, batch_size: int, device: str) -> tuple[list[float], list[float]]:
    """Seconds and test accuracy of each epoch."""

    def tensors(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        raw = datasets.MNIST(data_dir, train)
        return raw.data.to(device).float().div(255).sub(0.1307).div(0.3081).flatten(1), raw.targets.to(device)

    (images, labels), (test_images, test_labels) = tensors(True), tensors(False)
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    seconds, accuracy = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        order = torch.randperm(60_000).to(device)
        for begin in range(0, 60_000, batch_size):
            index = order[begin : begin + batch_size]
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
        seconds.append(elapsed(start, device))
        with torch.no_grad():
            accuracy.append((model(test_images).argmax(1) == test_labels).float().mean().item())
    return seconds, accuracy


def elapsed(start: float, device: str) -> float:
    """Seconds since the start, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["original", "floor"])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    run = original if args.name == "original" else floor
    seconds, accuracy = run(args.data_dir, args.epochs, args.batch_size, args.device)
    print(json.dumps({"samples_per_second": [60_000 / second for second in seconds], "test_accuracy": accuracy}))
