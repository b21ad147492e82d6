"""`mcode compare`: one clip by MCode and other codecs, at equal rate and equal PSNR. It measures; report.py makes the pages."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..baseline import CODERS, CrfSearch, Encoding, check_size, coder_named
from ..codec import Decoder
from ..container import McodeReader
from ..errors import InputError
from ..frame import Frame
from ..manifold import Manifold, load
from ..text import shown_name
from ..transcode import EncodeReport, encode_file, geometry, refuse_same
from ..video import FrameReader
from ..whole import refuse_existing
from .metrics import luma, psnr, ssim

LONGEST_S = 30.0
"""Of a longer input only this much is compared, unless --duration says more: each codec encodes it several times."""
SSIM_EVERY = 3
STRIP = (0.15, 0.5, 0.85)
"""Where in the clip the report's pictures are taken."""


@dataclass(frozen=True)
class Row:
    """One encoding. at: "mcode", "equal rate" or "equal PSNR"; floor: the codec can go no lower than this; bits: its rate
    over MCode's. ssim: of luma, None where it was not measured. bits_per_pixel: of a single picture, whose kbit/s mean nothing;
    None of a video."""

    codec: str
    at: str
    setting: str
    rate_kbps: float
    psnr_db: float
    ssim: float | None
    bits: float
    floor: bool
    bits_per_pixel: float | None = None


@dataclass(frozen=True)
class CompareReport:
    """rows: MCode first. files: what was written, by name. width, height: at which all were measured. wanted_kbps: what MCode
    was asked for, None for no rate."""

    rows: tuple[Row, ...]
    encode: EncodeReport
    width: int
    height: int
    frames: int
    duration_s: float
    files: dict[str, str]
    warnings: tuple[str, ...] = ()
    wanted_kbps: float | None = None


@dataclass
class Lane:
    """What the report shows of one codec: the pictures of the strip, and PSNR frame by frame."""

    label: str
    row: Row | None
    strip: list[np.ndarray] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)


def compare(
    input: str | os.PathLike[str],
    output_html: str | os.PathLike[str],
    *,
    against: tuple[str, ...] = ("h264", "h265", "av1"),
    manifold: str | os.PathLike[str] | Manifold = "general",
    n: int = 4,
    adaptive: bool = False,
    rate_kbps: float | None = None,
    coder: str = "huffman",
    quality: int | None = None,
    size: tuple[int, int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> CompareReport:
    """Writes OUT.html, and OUT.png and OUT-side-by-side.mp4 beside it; see CompareReport.

    n, adaptive, rate_kbps, coder, quality: of MCode, see `Encoder`. All codecs get the same frames, at the size which MCode
    codes, and are measured there. A codec that cannot go down to MCode's rate stands at its floor, and the report says so.
    Raises InputError, ManifoldError.
    """
    from .report import write_html, write_picture, write_side_by_side

    page = Path(output_html)
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{page}: the report is a page; give a name that ends in .html")
    files = {"report": page, "picture": page.with_suffix(".png"), "video": page.with_name(f"{page.stem}-side-by-side.mp4")}
    for path in files.values():
        refuse_same(input, path)
    refuse_existing(files.values(), force)
    model = manifold if isinstance(manifold, Manifold) else load(manifold, device)
    source = FrameReader(input, start_s=start_s, duration_s=duration_s)
    warnings = []
    if duration_s is None and (source.info.duration_s or 0) - start_s > LONGEST_S:
        duration_s = LONGEST_S
        warnings.append(f"compared the first {LONGEST_S:g} s; give --duration for more")
    coded, _, aspect = geometry((source.width, source.height), size, model.frame_size)
    for codec in against:
        coder_named(codec)
        try:
            check_size(codec, *coded)
        except InputError as error:
            raise InputError(f"{input}: {error}; leave {codec} out of --against, or give another --size") from error

    def frames() -> Iterator[Frame]:
        return iter(FrameReader(input, size=coded, crop_to=aspect, start_s=start_s, duration_s=duration_s))

    page.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mcode-compare-") as folder:
        stream = Path(folder) / "clip.mcode"
        ours = encode_file(
            input,
            stream,
            n=n,
            adaptive=adaptive,
            rate_kbps=rate_kbps,
            manifold=model,
            coder=coder,
            quality=quality,
            size=size,
            start_s=start_s,
            duration_s=duration_s,
            audio="none",
            every_frame=True,  # as of the others
            progress=progress,
        )
        searches = {codec: CrfSearch(frames, codec, duration_s=ours.duration_s, progress=progress) for codec in against}
        equal_rate = {codec: search.at_rate(ours.rate_kbps) for codec, search in searches.items()}
        equal_psnr = {codec: search.at_psnr(ours.psnr_db) for codec, search in searches.items()}
        still = ours.frames == 1
        bpp = ours.bits_per_pixel if still else None
        first = Row("MCode", "mcode", _setting(ours, adaptive, rate_kbps), ours.rate_kbps, ours.psnr_db, None, 1.0, False, bpp)
        lanes = [Lane("Original", None), Lane("MCode", first)]
        lanes += [Lane(CODERS[c].label, _row(e, "equal rate", ours.rate_kbps)) for c, e in equal_rate.items()]

        def decoded() -> Iterator[Frame]:
            decoder = Decoder(model)
            for packet in McodeReader(stream):
                yield from decoder.push(packet)

        streams = [frames(), decoded(), *(encoding.decode() for encoding in equal_rate.values())]
        write_side_by_side(
            files["video"],
            _measured(lanes, streams, ours.frames),
            lanes,
            audio_from=input if source.info.audio_codec else None,
            start_s=start_s,
            duration_s=duration_s,
        )
    rows = [_with_ssim(lane.row, lane) for lane in lanes if lane.row is not None]
    rows += [_row(encoding, "equal PSNR", ours.rate_kbps) for encoding in equal_psnr.values()]
    for lane, row in zip(lanes[1:], rows, strict=False):
        lane.row = row
    report = CompareReport(
        rows=tuple(rows),
        encode=ours,
        width=coded[0],
        height=coded[1],
        frames=ours.frames,
        duration_s=ours.duration_s,
        files={name: str(path) for name, path in files.items()},
        warnings=(*warnings, *ours.warnings),
        wanted_kbps=rate_kbps,
    )
    curves = {CODERS[c].label: [(_rate(e, still), e.psnr_db) for e in s.encodings] for c, s in searches.items()}
    write_picture(files["picture"], report, lanes, curves, shown_name(input))
    write_html(page, report, lanes, curves, shown_name(input))
    return report


def _measured(lanes: list[Lane], streams: list[Iterator[Frame]], total: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(pts, pictures of all lanes) of every frame, measured and collected into the lanes on the way."""
    wanted = {min(total - 1, int(total * share)) for share in STRIP}
    for index, pictures in enumerate(zip(*streams, strict=True)):
        original = pictures[0].rgb
        for lane, frame in zip(lanes, pictures, strict=True):
            if lane.row is not None:
                lane.psnr_db.append(psnr(original, frame.rgb))
                if index % SSIM_EVERY == 0:
                    lane.ssim.append(ssim(luma(original), luma(frame.rgb)))
            if index in wanted:
                lane.strip.append(frame.rgb)
        yield pictures[0].pts, [frame.rgb for frame in pictures]


def _setting(ours: EncodeReport, adaptive: bool, rate_kbps: float | None) -> str:
    interval = f"N = {ours.n}"
    if ours.n > 1 and (adaptive or rate_kbps is not None):
        interval += " or less" if rate_kbps is None else f" or less for {rate_kbps:g} kbit/s"
    return f"{ours.manifold}, {interval}, quality {ours.quality}, {ours.coder}"


def _row(encoding: Encoding, at: str, ours_kbps: float) -> Row:
    coder = CODERS[encoding.codec]
    preset = f"preset {coder.preset}" if coder.preset.isdecimal() else coder.preset
    return Row(
        codec=coder.label,
        at=at,
        setting=f"{coder.encoder.removeprefix('lib')} {preset}, CRF {encoding.crf:g}",
        rate_kbps=encoding.rate_kbps,
        psnr_db=encoding.psnr_db,
        ssim=None,
        bits=encoding.rate_kbps / max(ours_kbps, 1e-9),
        floor=encoding.at_floor,
        bits_per_pixel=encoding.bits_per_pixel if encoding.frames == 1 else None,
    )


def _rate(encoding: Encoding, still: bool) -> float:
    return encoding.bits_per_pixel if still else encoding.rate_kbps


def _with_ssim(row: Row, lane: Lane) -> Row:
    return Row(**(vars(row) | {"ssim": math.fsum(lane.ssim) / len(lane.ssim) if lane.ssim else None}))
