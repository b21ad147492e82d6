"""Latents and symbols: quantise, dequantise, interpolate, and which device and precision computes them. No stream state."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

LARGEST_SYMBOL = 32_767
DEVICES = ("auto", "cpu", "cuda", "mps")


def quantise(latent: Tensor, gain: Tensor, zero_margin: Tensor | None = None) -> np.ndarray:
    """The symbols of latent * gain as int16. latent: (C, h, w); gain: (C,), steps per unit; zero_margin: see `symbols`."""
    return symbols(latent, gain, zero_margin).to(torch.int16).cpu().numpy()


def symbols(latent: Tensor, gain: Tensor, zero_margin: Tensor | None = None) -> Tensor:
    """latent * gain to the nearest integers, as float32, clipped to int16. latent: (..., C, h, w); gain: (..., C).

    zero_margin: like gain, in steps. So much beyond half a step from zero is zero still: leaving zero costs more bits than it
    mends where a channel seldom does (the dead zone of Sullivan 1996). The other end need not know.
    """
    scaled = latent.float() * gain[..., None, None]
    rounded = scaled.round().clamp(-LARGEST_SYMBOL, LARGEST_SYMBOL)
    if zero_margin is None:
        return rounded
    return torch.where(scaled.abs() < 0.5 + zero_margin[..., None, None], 0.0, rounded)


def hold(scaled: Tensor, before: Tensor, fresh: Tensor, dead_zone: float) -> Tensor:
    """The symbols `fresh`, but those of the last keyframe, `before`, where a latent lies within the dead zone around them.

    scaled: latents in quantiser steps. dead_zone: in steps, 0.5 or more. All of one shape.
    """
    return torch.where((scaled - before).abs() < dead_zone, before, fresh)


def dequantise(symbols: np.ndarray, inverse: Tensor) -> Tensor:
    """symbols * inverse as float32 on the device of `inverse`. symbols: int16 (C, h, w); inverse: (C,)."""
    return torch.from_numpy(symbols.astype(np.float32)).to(inverse.device) * inverse.view(-1, 1, 1)


def interpolate(a: Tensor, b: Tensor, positions: Tensor) -> Tensor:
    """Latents on the straight line from a (position 0) to b (position 1) (Santurkar et al. 2017, section 3.1).

    a, b: (C, h, w); positions: (steps,) from 0 to 1, as times between two keyframes. Returns (steps, C, h, w).
    """
    at = positions.to(a.device, a.dtype).view(-1, 1, 1, 1)
    return torch.lerp(a.unsqueeze(0), b.unsqueeze(0), at)


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto" is cuda where there is one, else mps, else cpu; or a torch.device of these. Raises InputError for a device this
    machine lacks."""
    name = device.type if isinstance(device, torch.device) else device
    if name not in DEVICES:
        raise InputError(f"device {name!r} is not known; use one of {', '.join(DEVICES)}")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "mps" if available["mps"] else "cpu")
    if not available[name]:
        raise InputError(f"device {name} is not available on this machine; use --device cpu or auto")
    return torch.device(device)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster than float32: a processor with AMX, or AMD's with AVX512-BF16; compute capability 8 up.

    The instruction set decides, not whether torch accepts the type: emulated bfloat16 is slower, and so is Intel's
    AVX512-BF16 without AMX (half of float32's speed in convolutions).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    if device.type == "cpu":
        amx, avx512 = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("amx_tile", "avx512_bf16"))
        return torch.bfloat16 if amx or (avx512 and _maker() == "AuthenticAMD") else torch.float32
    return torch.float32


@cache
def _maker() -> str:
    """The processor's vendor as CPUID spells it, "" where no file or system call tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux: Windows ends its description with it
        return platform.processor().rpartition(", ")[2]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
