"""Learns a `linear` manifold from footage in seconds: streamed principal components, 8-bit basis, code tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import manifold
from ..coders import CodeTables, huffman
from ..errors import InputError
from ..latents import LARGEST_SYMBOL
from ..nets.linear import Linear
from ..text import shown_name
from ..video import FrameReader
from ..whole import refuse_existing, refuse_unwritable
from .deltas import keyframe_deltas

QUALITIES, DEFAULT_QUALITY = 8, 5
QUANTISER_SHARE = 0.05
"""At the default quality quantisation may add this share to the error that leaving out components makes; each quality
step up halves it, each step down doubles it."""
BLOCK, BLOCK_BYTES = 256, 256 << 20
"""Most frames per update of the components, and most bytes of them: fewer frames where they are large."""
SPARE = 48
"""Components carried beyond m while streaming, which keeps the first m close to those of one large decomposition."""
MOST_KEPT = 40_000
"""Frames whose coordinates are kept for the tables: memory stays bounded whatever the footage's length."""
LARGEST_ROWS = 3 << 30
"""Most bytes of the components that are streamed. Learning takes up to three times as much memory."""


@dataclass(frozen=True)
class AdaptReport:
    """psnr_db: of the footage, every frame coded at the default quality; quantised_loss_db: what rounding the basis to 8
    bits costs of that; kbps_estimate: rate at n = 8 on this footage, packet headers included."""

    m: int
    frames: int
    psnr_db: float
    quantised_loss_db: float
    file_bytes: int
    manifold_id: str
    kbps_estimate: float


def adapt_linear(
    videos: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    m: int = 50,
    size: tuple[int, int] = (128, 128),
    seconds: float | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    card: dict[str, Any] | None = None,
    name: str | None = None,
) -> AdaptReport:
    """Writes a linear manifold of `m` coordinates at `size` (width, height) learned from the videos' centred parts.

    seconds: use at most so much of each video. The same frames give the same manifold. Memory grows with (m + SPARE) times
    the size, not with the footage. Raises InputError, also where that is more than LARGEST_ROWS bytes or m is more than 3 W H.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a manifold's file name ends in .safetensors")
    refuse_existing([output], force)
    refuse_unwritable(output)
    if not videos:
        raise InputError("no video to learn from")
    width, height = size
    needed = (m + SPARE) * 12 * width * height
    if needed > LARGEST_ROWS:
        fitting = math.sqrt(LARGEST_ROWS / needed)
        less = f"{max(1, int(width * fitting))}x{max(1, int(height * fitting))}"
        raise InputError(
            f"--size {width}x{height}: {m} coordinates of so large frames need {needed / 2**30:,.0f} GiB of memory for their "
            f"components, {LARGEST_ROWS >> 30} are the most; use --size {less} or smaller"
        )
    pixels = 3 * width * height
    if m > pixels:
        raise InputError(
            f"--m {m}: pictures of {width}x{height} have {pixels} values; use --m {pixels} or fewer, or a larger --size"
        )
    count = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal count
        for video in videos:
            for block in _blocks(video, size, seconds):
                yield block
                count += len(block)
                if progress:
                    progress(count, None)

    mean, rows, frames = principal_components(blocks(), m)
    net = Linear(m, width, height, QUALITIES)
    scale = rows.abs().amax(1) / 127
    net.basis.copy_((rows / scale.unsqueeze(1)).round().to(torch.int8))
    net.basis_scale.copy_(scale.half().float())
    net.mean.copy_(mean.half().float())
    net.prepare()
    coordinates, rounded_error, exact_error, clips, fps = _project(net, mean, rows, videos, size, seconds)
    net.step.copy_(torch.from_numpy(_steps(coordinates, exact_error, pixels)))
    tables, kbps = _tables(net.step.numpy(), coordinates, clips, fps)
    step = float(net.step[DEFAULT_QUALITY - 1])
    error = (rounded_error + m * step**2 / 12) / pixels
    tensors = {
        "basis": net.basis.numpy(),
        "basis_scale": net.basis_scale.numpy(),
        "mean": net.mean.numpy().astype(np.float16),
        "step": net.step.numpy(),
    }
    config = {
        "m": m,
        "frame_size": [width, height],
        "stride": None,
        "qualities": QUALITIES,
        "default_quality": DEFAULT_QUALITY,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    psnr_db = 10 * math.log10(255**2 / max(error, 1e-9))
    loss_db = 10 * math.log10(max(rounded_error, 1e-9) / max(exact_error, 1e-9)) if exact_error > 1 else 0.0
    facts = {
        "title": f"linear manifold of {', '.join(map(shown_name, videos[:3]))}{' ...' if len(videos) > 3 else ''}",
        "data": f"{len(videos)} videos, {frames} frames",
        "made": date.today().isoformat(),
        "training_command": f"mcode adapt ... --m {m} --size {width}x{height}",
        "scores": {"training_psnr_db": round(psnr_db, 2), "training_kbps_n8": round(kbps, 3)},
        "not_for": "other scenes: it holds only what its footage shows",
    }
    manifold_id = manifold.save(
        output,
        kind="linear",
        name=name or shown_name(output.stem),
        config=config,
        tables=tables,
        tensors=tensors,
        card=facts | (card or {}),
    )
    return AdaptReport(m, frames, psnr_db, loss_db, output.stat().st_size, manifold_id, kbps)


def _blocks(video: str | os.PathLike[str], size: tuple[int, int], seconds: float | None) -> Iterator[Tensor]:
    """Blocks of at most BLOCK frames and BLOCK_BYTES, of one frame at least, as float32 (frames, 3 H W) in grey levels, planes
    R, G, B."""
    most = max(1, min(BLOCK, BLOCK_BYTES // (12 * size[0] * size[1])))
    held: list[np.ndarray] = []
    for frame in FrameReader(video, duration_s=seconds, size=size, crop_to=size):
        held.append(frame.rgb.transpose(2, 0, 1).reshape(-1))
        if len(held) == most:
            block, held = torch.from_numpy(np.stack(held)).float(), []
            yield block
    if held:
        yield torch.from_numpy(np.stack(held)).float()


def principal_components(blocks: Iterator[Tensor], m: int) -> tuple[Tensor, Tensor, int]:
    """Mean (D,), the first m components as orthonormal rows (m, D), and the number of frames, in one pass.

    blocks: float32 (frames, D). Memory: m + SPARE rows and one block. The components of what came before, weighted by
    their singular values, stand for it when a block joins, with one row for the shift of the mean (Ross, Lim, Lin, Yang
    2008, section 3.1). Each row's entry of largest magnitude is positive, so the result has no free sign. Raises InputError for
    m frames or fewer.
    """
    mean, sketch, frames = torch.zeros(0), torch.zeros(0), 0
    for block in blocks:
        added, here = len(block), block.mean(0)
        if frames == 0:
            mean, sketch = here, block - here
        else:
            shift = math.sqrt(frames * added / (frames + added)) * (mean - here)
            sketch = torch.cat([sketch, block - here, shift.unsqueeze(0)])
            mean = mean + (here - mean) * (added / (frames + added))
        frames += added
        sketch = _compress(sketch, m + SPARE)
    if frames == 0:
        raise InputError("the footage has no frames")
    if frames < 2:
        raise InputError("one frame is too few to learn from; give a video, or more pictures")
    if frames <= m:
        raise InputError(f"{frames} frames are too few for {m} coordinates; use --m {max(1, frames // 2)} or more footage")
    rows = sketch[:m] / sketch[:m].norm(dim=1, keepdim=True).clamp_min(1e-6)
    signs = torch.gather(rows, 1, rows.abs().argmax(1, keepdim=True)).sign()
    return mean, rows * torch.where(signs == 0, torch.ones_like(signs), signs), frames


def _compress(rows: Tensor, keep: int) -> Tensor:
    """Singular values times right singular vectors of (R, D), the largest `keep`, through the R x R Gram matrix."""
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    order = values.argsort(descending=True)[:keep]
    return vectors[:, order].T.float() @ rows


def _project(
    net: Linear,
    mean: Tensor,
    rows: Tensor,
    videos: Sequence[str | os.PathLike[str]],
    size: tuple[int, int],
    seconds: float | None,
) -> tuple[np.ndarray, float, float, list[int], float]:
    """Second pass: coordinates (frames, m); squared error per frame with the rounded and the exact basis; frames of each
    video; mean frame rate."""
    coordinates, clips, rates = [], [], []
    rounded = exact = 0.0
    kept = frames = 0
    for video in videos:
        here = 0
        for block in _blocks(video, size, seconds):
            y = net.analysis(block.view(len(block), 3, net.height, net.width) / 127.5 - 1)
            missed = net.synthesis(y).flatten(1).add_(1).mul_(127.5).sub_(block)  # in place: blocks are large
            rounded += float(missed.square_().sum())
            del missed
            centred = block.sub_(mean)
            caught = (centred @ rows.T).square().sum()
            exact += float(centred.square_().sum() - caught)
            frames += len(block)
            if kept < MOST_KEPT:
                coordinates.append(y.flatten(1).numpy())
                here += len(block)
                kept += len(block)
        if here:
            clips.append(here)
        rates.append(FrameReader(video).info.average_fps or 25.0)
    return np.concatenate(coordinates), rounded / frames, exact / frames, clips, float(np.mean(rates))


def _steps(coordinates: np.ndarray, error: float, values: int) -> np.ndarray:
    """Of each quality, in grey levels. coordinates: (frames, m); error: squared, per frame of so many values, of what the
    components leave out.

    Below 1/12 a value it is less than what rounding to grey levels adds. No symbol of this footage is clipped then, nor does
    the difference of two wrap, however little the components leave out: of a few slides that is nothing.
    """
    share = QUANTISER_SHARE * np.exp2(DEFAULT_QUALITY - np.arange(1, QUALITIES + 1))
    least = 2 * np.abs(coordinates).max() / LARGEST_SYMBOL
    return np.maximum(np.sqrt(12 * share * max(error, values / 12) / coordinates.shape[1]), least).astype(np.float32)


def _tables(steps: np.ndarray, coordinates: np.ndarray, clips: list[int], fps: float) -> tuple[list[CodeTables], float]:
    """Code tables for every quality, and the rate in kbit/s at the default one with n = 8."""
    tables, kbps = [], 0.0
    for quality, step in enumerate(steps, start=1):
        symbols = np.clip(np.rint(coordinates / step), -32767, 32767).astype(np.int16)
        tables.append(CodeTables.fit([symbols.T[:, :, None]], keyframe_deltas(coordinates / step, clips)))
        if quality == DEFAULT_QUALITY:
            ends = np.cumsum(clips)
            rates = [_rate(symbols[end - frames : end], tables[-1], fps) for frames, end in zip(clips, ends, strict=True)]
            kbps = float(np.average(rates, weights=clips))
    return tables, kbps


def _rate(symbols: np.ndarray, tables: CodeTables, fps: float, n: int = 8) -> float:
    keyframes = symbols[::n][:, :, None]
    sizes = [
        1 + len(huffman.encode(now, now - before if before is not None else None, tables))
        for before, now in zip([None, *keyframes[:-1]], keyframes, strict=True)
    ]
    return sum(sizes) * 8 / 1000 / (len(symbols) / fps)
