"""The judge of figure 4a: a small residual ConvNet for CIFAR-10, trained on uncompressed pictures alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import InputError
from ...nets.layers import channels_last
from ...training.loop import autocast
from ...whole import whole_tensors
from .sets import CLASSES

EPOCHS, BATCH, PEAK_RATE, WEIGHT_DECAY, PAD = 10, 256, 0.01, 5e-2, 4
_MEAN, _DEVIATION = 0.473, 0.251


class Classifier(nn.Module):
    """(B, 3, 32, 32) in [0, 1] to logits (B, 10): four convolutions with pooling and two residual pairs (as ResNet-9)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.first = _unit(3, w)
        self.second = nn.Sequential(_unit(w, 2 * w), nn.MaxPool2d(2))
        self.pair1 = nn.Sequential(_unit(2 * w, 2 * w), _unit(2 * w, 2 * w))
        self.third = nn.Sequential(_unit(2 * w, 4 * w), nn.MaxPool2d(2))
        self.fourth = nn.Sequential(_unit(4 * w, 8 * w), nn.MaxPool2d(2))
        self.pair2 = nn.Sequential(_unit(8 * w, 8 * w), _unit(8 * w, 8 * w))
        self.last = nn.Linear(8 * w, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first((x - _MEAN) / _DEVIATION))
        x = self.fourth(self.third(x + self.pair1(x)))
        x = (x + self.pair2(x)).amax((2, 3))
        return self.last(x.float())


def _unit(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


def train(
    pixels: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int = EPOCHS,
    width: int = 32,
    seed: int = 1,
    peak: float = PEAK_RATE,
    start: Classifier | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, float]], None] | None = None,
) -> Classifier:
    """Trains on uint8 (N, 32, 32, 3) and class numbers (N,): AdamW, one cycle of the rate, crops and mirrored pictures.

    start: a classifier to go on from, with `peak` as the highest rate of its new cycle.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = channels_last((start or Classifier(width)).train(), device)
    batch = min(BATCH, len(pixels))
    steps = epochs * (len(pixels) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), peak, weight_decay=WEIGHT_DECAY)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.2)
    padded = np.pad(pixels, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
    side = pixels.shape[1]
    for epoch in range(epochs):
        order, right, total = rng.permutation(len(pixels)), 0, 0.0
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            cropped = _crops(padded[chosen], side, rng)
            x, y = _batch(cropped, device), torch.from_numpy(labels[chosen]).to(device)
            with autocast(torch.device(device)):
                logits = net(x)
            loss = F.cross_entropy(logits, y, label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            cycle.step()
            right += int((logits.argmax(1) == y).sum())
            total += loss.item()
        if report:
            seen = len(order) // batch * batch
            report({"epoch": epoch + 1, "loss": total / (seen // batch), "training_accuracy": right / seen})
    return net.eval()


def _crops(padded: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, 2 * PAD + 1, (2, len(padded)))
    out = np.stack([p[t : t + side, s : s + side] for p, t, s in zip(padded, top, left, strict=True)])
    flips = rng.random(len(out)) < 0.5
    out[flips] = out[flips, :, ::-1]
    return out


def _batch(pixels: np.ndarray, device: str) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(net: Classifier, pixels: np.ndarray, labels: np.ndarray, device: str = "cpu") -> float:
    """Share of uint8 (N, 32, 32, 3) put into the right class, 0 to 1, by each picture and its mirror image together."""
    right = 0
    for start in range(0, len(pixels), 500):
        with autocast(torch.device(device)):
            x = _batch(pixels[start : start + 500], device)
            found = (net(x) + net(x.flip(3))).argmax(1).cpu().numpy()
        right += int((found == labels[start : start + 500]).sum())
    return right / len(pixels)


def save(net: Classifier, path: Path, facts: dict[str, object]) -> None:
    """Written whole or not at all."""
    with whole_tensors(path) as part:
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, part, {"facts": json.dumps(facts)})


def load(path: Path) -> tuple[Classifier, dict[str, object]]:
    """Raises InputError where the file is none of `save`'s."""
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        tensors = load_file(path)
        net = Classifier(tensors["first.0.weight"].shape[0])
        net.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: no classifier that can be read ({error}); remove it, and it is trained anew") from error
    return channels_last(net).eval(), facts
