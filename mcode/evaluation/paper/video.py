"""Figure 5 and the talking head: whole clips at every N, beside x264, x265 and SVT-AV1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...baseline import CODERS, CrfSearch
from ...codec import Decoder, Encoder
from ...frame import TICKS_PER_S, Frame
from ..metrics import luma, psnr, ssim
from .images import Features
from .sets import as_rgb

if TYPE_CHECKING:
    from ...manifold import Manifold

FPS = 25
FEATURE_STEP = 6
"""Feature distances are measured on every so many frames."""
BASELINES = ("h264", "h265", "av1")
PAPER_FIGURE5 = (
    {
        "codec": "MCode in the paper",
        "setting": "N = 1",
        "kbps": 10.0,
        "kbps_before_huffman": 20.0,
        "psnr_db": 22.86,
        "ssim": 0.611,
    },
    {
        "codec": "MCode in the paper",
        "setting": "N = 2",
        "kbps": 5.9,
        "kbps_before_huffman": 10.0,
        "psnr_db": 22.85,
        "ssim": 0.609,
    },
    {
        "codec": "MCode in the paper",
        "setting": "N = 4",
        "kbps": 3.2,
        "kbps_before_huffman": 5.0,
        "psnr_db": 22.79,
        "ssim": 0.607,
    },
    {"codec": "H.264 in the paper", "setting": "", "kbps": 13.0, "psnr_db": 22.15, "ssim": 0.589},
)


@dataclass(frozen=True)
class ClipScores:
    """Means over clips, each coded by itself. kbps: all bytes of the packets but a container's; kbps_before_huffman: of
    the coder `fixed`. ssim: of luma."""

    codec: str
    setting: str
    kbps: float
    psnr_db: float
    ssim: float
    kbps_before_huffman: float | None = None
    vgg: float | None = None
    mobilenet: float | None = None
    floor: bool = False


def code(
    model: Manifold, clip: np.ndarray, n: int, *, coder: str = "huffman", quality: int | None = None
) -> tuple[int, np.ndarray]:
    """uint8 (frames, H, W, 3) to bytes and the decoded frames. The bytes are those of a file's samples."""
    height, width = clip.shape[1:3]
    encoder, decoder = Encoder(model, width, height, n=n, coder=coder, quality=quality), Decoder(model)
    size, back = 0, []
    packets = [p for i, rgb in enumerate(clip) for p in encoder.push(Frame(rgb, i * TICKS_PER_S // FPS))]
    for packet in [*packets, *encoder.flush()]:
        size += len(packet.to_sample(n))
        back += [frame.rgb for frame in decoder.push(packet)]
    return size, np.stack(back)


def manifold_scores(
    name: str,
    model: Manifold,
    clips: Sequence[np.ndarray],
    n: int,
    *,
    quality: int | None = None,
    features: Features | None = None,
) -> tuple[ClipScores, list[np.ndarray]]:
    """One row, and the decoded clips. clips: uint8 (frames, H, W, 3)."""
    coded = [code(model, clip, n, quality=quality) for clip in clips]
    seconds = [len(clip) / FPS for clip in clips]
    plain = [code(model, clip, n, coder="fixed", quality=quality)[0] for clip in clips]
    kbps = float(np.mean([size * 8e-3 / s for (size, _), s in zip(coded, seconds, strict=True)]))
    before = float(np.mean([size * 8e-3 / s for size, s in zip(plain, seconds, strict=True)]))
    decoded = [back for _, back in coded]
    return _scores(name, f"N = {n}", clips, decoded, kbps, features, before=before), decoded


def baseline_scores(
    codec: str, searches: Sequence[CrfSearch], clips: Sequence[np.ndarray], at: str, value: float, features: Features | None
) -> tuple[ClipScores, list[np.ndarray]]:
    """at: "floor", "rate" (value in kbit/s) or "psnr" (value in dB)."""
    made = []
    for search in searches:
        if at == "floor":
            made.append(search.at_crf(search.coder.crf_floor))
        else:
            made.append(search.at_rate(value) if at == "rate" else search.at_psnr(value))
    decoded = [np.stack([frame.rgb for frame in encoding.decode()]) for encoding in made]
    kbps = float(np.mean([encoding.rate_kbps for encoding in made]))
    floor = at == "floor" or all(encoding.at_floor for encoding in made)
    setting = "its floor" if floor else f"at {value:.1f} dB" if at == "psnr" else f"at {value:.2f} kbit/s"
    return _scores(CODERS[codec].label, setting, clips, decoded, kbps, features, floor=floor), decoded


def searches(codec: str, clips: Sequence[np.ndarray]) -> list[CrfSearch]:
    return [CrfSearch([Frame(rgb, i * TICKS_PER_S // FPS) for i, rgb in enumerate(clip)], codec) for clip in clips]


def compare(
    named: Sequence[tuple[str, Manifold, int | None]],
    clips: Sequence[np.ndarray],
    intervals: Sequence[int],
    say: Callable[[str], None],
    features: Features | None = None,
    equal_psnr: bool = True,
) -> tuple[list[ClipScores], dict[str, list[np.ndarray]]]:
    """Rows of every manifold (name, model, quality or None) at every interval, then of each baseline at its floor and at
    the first manifold's PSNR and rate. clips: uint8 (frames, H, W, channels)."""
    rgb = [as_rgb(clip) for clip in clips]
    rows, pictures = [], {"original": rgb}
    for name, model, quality in named:
        for n in intervals:
            say(f"{name}, N = {n}")
            row, decoded = manifold_scores(name, model, rgb, n, quality=quality, features=features)
            rows.append(row)
            pictures[f"{name}, N = {n}"] = decoded
    for codec in BASELINES:
        found = searches(codec, rgb)
        wanted: list[tuple[str, float]] = [("floor", 0.0)]
        if rows and equal_psnr:
            target = next((row for row in rows if row.setting == "N = 4"), rows[0])
            wanted += [("psnr", target.psnr_db), ("rate", target.kbps)]
        for at, value in wanted:
            say(f"{codec} {at}")
            row, decoded = baseline_scores(codec, found, rgb, at, value, features)
            if at != "floor" and row.floor:
                continue
            rows.append(row)
            pictures[f"{row.codec} {row.setting}"] = decoded
    return rows, pictures


def _scores(
    name: str,
    setting: str,
    clips: Sequence[np.ndarray],
    decoded: Sequence[np.ndarray],
    kbps: float,
    features: Features | None,
    *,
    before: float | None = None,
    floor: bool = False,
) -> ClipScores:
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(clips, decoded, strict=True)]
    distances = None
    if features is not None:
        distances = [features(a[::FEATURE_STEP], b[::FEATURE_STEP]) for a, b in zip(clips, decoded, strict=True)]
    return ClipScores(
        name,
        setting,
        kbps,
        float(np.mean([np.mean([psnr(a, b) for a, b in clip]) for clip in pairs])),
        float(np.mean([np.mean([ssim(luma(a), luma(b)) for a, b in clip]) for clip in pairs])),
        before,
        float(np.mean([d[0] for d in distances])) if distances else None,
        float(np.mean([d[1] for d in distances])) if distances else None,
        floor,
    )


def as_dicts(rows: Sequence[ClipScores]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
