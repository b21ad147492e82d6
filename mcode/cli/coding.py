"""encode, decode, info, manifolds: files in, files out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mcode.cli.apps import app, manifolds_app
from mcode.cli.options import (
    Adaptive,
    Audio,
    CodedSize,
    Coder,
    Device,
    Duration,
    Force,
    Interval,
    Json,
    Manifold,
    Quality,
    Rate,
    Refine,
    RefineBy,
    RefineWeights,
    Refresh,
    Size,
    Start,
    Video,
    output_option,
    size_of,
)
from mcode.cli.output import (
    bit_rate,
    byte_count,
    counted,
    decibels,
    minutes,
    one_line,
    plain,
    print_json,
    print_report,
    print_table,
    print_warnings,
    printable,
    progress_bar,
)
from mcode.errors import InputError, ManifoldError, McodeError


@app.command()
def encode(
    input: Video,
    output: Annotated[str, output_option("OUT.mcode", "The file to write.")],
    n: Interval = 4,
    manifold: Manifold = "general",
    coder: Coder = "huffman",
    quality: Quality = None,
    refresh: Refresh = 10,
    adaptive: Adaptive = False,
    rate: Rate = None,
    device: Device = "auto",
    size: CodedSize = None,
    start: Start = 0,
    duration: Duration = None,
    audio: Audio = "copy",
    refine: Refine = 0,
    refine_by: RefineBy = "eye",
    perceptual: RefineWeights = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Encode a video or image to an .mcode file."""
    from mcode.transcode import encode_file

    model: Any = manifold
    refiner = None
    if refine:
        from mcode.manifold import load
        from mcode.refine import Refiner

        model = load(manifold, device)
        refiner = Refiner(model, refine, judge=refine_by, weights=perceptual)
    with progress_bar("encoding") as progress:
        report = encode_file(
            input,
            output,
            n=n,
            manifold=model,
            coder=coder,
            quality=quality,
            refresh_s=refresh,
            adaptive=adaptive,
            rate_kbps=rate,
            device=device,
            size=size,
            start_s=start,
            duration_s=duration,
            audio=audio,
            refine=refiner,
            force=force,
            progress=progress,
        )
    print_warnings(report.warnings)
    if as_json:
        print_json(report)
        return
    sent = f"{report.keyframes:,} sent, one in {report.n}{' or sooner' if adaptive or rate else ''}"
    print_report(
        output,
        {
            "frames": f"{report.frames:,} in {minutes(report.duration_s)}: {sent}",
            "rate": _rate(report.frames, report.rate_kbps, report.bits_per_pixel, report.payload_bytes),
            "file": f"{byte_count(report.file_bytes)}, container and sound included",
            "quality": f"{decibels(report.psnr_db)} PSNR",
            "manifold": f"{report.manifold} {report.manifold_id}, fit {report.fit:.2f}",
            "coder": report.coder,
            "speed": f"{report.encode_fps:.1f} frames/s",
        },
    )


def _rate(frames: int, kbps: float, bits_per_pixel: float, payload_bytes: int) -> str:
    """Of a picture by its pixels, of a video by its time."""
    rate = f"{bits_per_pixel:.3f} bit/pixel" if frames == 1 else bit_rate(kbps)
    return f"{rate} ({payload_bytes:,} bytes of picture)"


@app.command()
def decode(
    input: Annotated[str, typer.Argument(metavar="IN.mcode", help="The file to decode.", show_default=False)],
    output: Annotated[
        str, output_option("OUT", "A .mp4, .mkv or .y4m, a .png, images as frames-%05d.png, or - for y4m on standard output.")
    ],
    manifold: Annotated[
        str | None,
        typer.Option(
            "--manifold",
            "-m",
            metavar="NAME|FILE",
            help="The manifold it was encoded with; looked up among the installed ones if left out.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    size: Annotated[
        Size | None,
        typer.Option(
            metavar="WxH|native",
            parser=size_of("--size"),
            help="Scale to this size; the source's if left out.",
            show_default=False,
        ),
    ] = None,
    audio: Audio = "copy",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Decode an .mcode file to a video, images or a pipe."""
    if output == "-" and as_json:
        raise InputError("-o - and --json both write to standard output: leave one of them out")
    if output == "-" and sys.stdout is None:
        raise InputError("-o - writes raw video, and standard output is closed: pipe it, as in | ffplay -")
    if output == "-" and sys.stdout.isatty():
        raise InputError("-o - writes raw video, and standard output is a terminal: pipe it, as in | ffplay -")
    from mcode.transcode import decode_file

    with progress_bar("decoding") as progress:
        report = decode_file(
            input,
            output,
            manifold=manifold,
            device=device,
            force=force,
            audio=audio == "copy",
            size=size,
            progress=progress,
        )
    print_warnings(report.warnings)
    if as_json:
        print_json(report)
    elif output != "-":
        rows = {
            "frames": f"{report.frames:,} of {report.width}x{report.height}",
            "speed": f"{report.decode_fps:.1f} frames/s",
        }
        print_report(output, rows)


@app.command()
def info(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="An .mcode file, a manifold (file or name) or a video.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Tell what is in an .mcode file, a manifold or a video."""
    if not os.path.exists(file) and os.path.splitext(file)[1] not in ("", ".safetensors"):
        raise InputError(f"{file}: no such file")
    if not os.path.exists(file) or _is_safetensors(file):
        show_manifold(file, as_json)
    elif file.lower().endswith(".mcode") or _is_stream(file):
        _show_stream(file, as_json)
    else:
        _show_video(file, as_json)


@manifolds_app.command("list")
def list_(as_json: Json = False) -> None:
    """List the installed manifolds."""
    from mcode.manifold import folders, list_manifolds

    skipped: list[str] = []
    found = list_manifolds(skipped)
    print_warnings(skipped)
    if as_json:
        print_json({"manifolds": found})
        return
    if not found:
        places = ", ".join(map(str, folders()))
        print(f"No manifold is installed. Make one with mcode adapt, or put .safetensors files into one of {places}.")
        return
    print_table(
        ("name", "kind", "frame", "parameters", "file", "id", "title"),
        [(m.name, m.kind, _frame_size(m), f"{m.parameters:,}", byte_count(m.file_bytes), m.id, m.title) for m in found],
        right=("parameters", "file"),
    )


@manifolds_app.command()
def show(
    manifold: Annotated[str, typer.Argument(metavar="NAME|FILE", help="An installed manifold, or a file.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show one manifold and its card.

    The card tells the data and its licence, the training, the scores, and what the manifold is not for.
    """
    show_manifold(manifold, as_json)


@manifolds_app.command()
def verify(
    manifolds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|FILE]...", help="Manifolds; all installed ones if left out.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check manifolds against their hashes.

    Exits with 1 where one is not what it says it is.
    """
    from mcode import manifold

    skipped: list[str] = []
    paths = [manifold.read_info(name).path for name in manifolds] if manifolds else manifold.installed_files(skipped)
    print_warnings(skipped)
    results: list[dict[str, Any]] = []
    for path in paths:
        result: dict[str, Any] = {"name": path.stem, "path": path, "id": None, "ok": False, "error": None}
        try:
            known = manifold.read_info(path)
            result |= {"name": known.name, "id": known.id}
            result["ok"] = bool(manifold.verify(path))
        except (ManifoldError, OSError) as fault:
            result["error"] = one_line(str(fault))
        results.append(result)
    good = all(result["ok"] for result in results)
    if as_json:
        print_json({"ok": good, "manifolds": results})
    else:
        for result in results:
            state = "ok" if result["ok"] else f"BAD: {result['error']}"
            print(printable(f"{result['name']}  {result['id'] or '-'}  {state}"))
    if not good:
        raise typer.Exit(1)


def _is_safetensors(path: str) -> bool:
    """Eight bytes of length, then JSON."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a file")
    if Path(path).is_fifo():
        raise InputError(f"{path} is a pipe; save it to a file first")
    with open(path, "rb") as file:
        head = file.read(9)
    return path.endswith(".safetensors") or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32)


def _is_stream(path: str) -> bool:
    """An .mcode file under another name."""
    from mcode.container import McodeReader

    try:
        McodeReader(path)
    except McodeError:
        return False
    return True


def _show_stream(path: str, as_json: bool) -> None:
    import av

    from mcode.container import McodeReader
    from mcode.manifold import find_id, read_info

    reader = McodeReader(path)
    header = reader.header
    packets = [(min(packet.steps, header.n), packet.header is not None) for packet in reader]
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        sound = container.streams.best("audio")
        audio = sound.codec_context.codec.canonical_name if sound and sound.codec_context else None
    manifold_id = header.manifold_id.hex()
    try:
        name = read_info(find_id(header.manifold_id)).name
    except ManifoldError:
        name = None
    frames = sum(steps for steps, _ in packets)
    facts: dict[str, Any] = {
        "type": "mcode",
        "path": path,
        "frames": frames,
        "keyframes": reader.keyframes,
        "refreshes": sum(refresh for _, refresh in packets),
        "duration_s": reader.duration_s,
        "payload_bytes": reader.payload_bytes,
        "file_bytes": os.path.getsize(path),
        "rate_kbps": reader.payload_bytes * 8 / 1000 / reader.duration_s if reader.duration_s else None,
        "bits_per_pixel": reader.payload_bytes * 8 / (header.width * header.height * frames) if frames else None,
        "n": header.n,
        "coder": header.coder,
        "quality": header.quality,
        "slices": header.slices,
        "width": header.display_width,
        "height": header.display_height,
        "coded_width": header.width,
        "coded_height": header.height,
        "manifold": name,
        "manifold_id": manifold_id,
        "manifold_installed": name is not None,
        "audio": audio,
        "truncated": reader.truncated,
        "damaged_keyframes": reader.damaged,
        "metadata": reader.metadata,
    }
    if as_json:
        print_json(facts)
        return
    shown = f"{header.display_width}x{header.display_height}"
    coded = f"{header.width}x{header.height}"
    rows = {
        "picture": shown if shown == coded else f"{shown}, sent as {coded}",
        "length": f"{minutes(reader.duration_s)}, {counted(frames, 'frame')}",
        "keyframes": f"{reader.keyframes:,}, one frame in {header.n}, {facts['refreshes']:,} of them refreshes",
        "rate": _rate(frames, facts["rate_kbps"], facts["bits_per_pixel"], reader.payload_bytes),
        "file": f"{byte_count(facts['file_bytes'])}, container and sound included",
        "manifold": f"{name} {manifold_id}" if name else f"{manifold_id}, not installed: decode with --manifold FILE",
        "coder": f"{header.coder}, quality {header.quality}" + (f", {header.slices} slices" if header.slices > 1 else ""),
        "audio": audio or "none",
    }
    if reader.truncated:
        rows["cut off"] = f"{reader.truncated} is there"
    if reader.damaged:
        rows["damaged"] = counted(reader.damaged, "keyframe")
    rows |= {key: one_line(value) for key, value in reader.metadata.items()}
    print_report(path, rows)


def show_manifold(name: str, as_json: bool) -> None:
    from mcode.manifold import read_info

    known = read_info(name)
    if as_json:
        print_json({"type": "manifold", **plain(known)})
        return
    rows = {
        "kind": known.kind,
        "id": known.id,
        "frame": _frame_size(known),
        "qualities": f"1 to {known.qualities}" if known.qualities > 1 else "1",
        "coders": ", ".join(known.coders),
        "parameters": f"{known.parameters:,}",
        "file": f"{known.path} ({byte_count(known.file_bytes)})",
    }
    rows |= {key: _card_text(value) for key, value in known.card.items() if key != "title"}
    print_report(f"{known.name}: {known.title}" if known.title else known.name, rows)


def _frame_size(manifold: Any) -> str:
    return f"{manifold.frame_size[0]}x{manifold.frame_size[1]}" if manifold.frame_size else "any"


def _card_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return one_line(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _show_video(path: str, as_json: bool) -> None:
    from mcode.video import probe

    found = probe(path)
    if as_json:
        print_json({"type": "image" if found.is_image else "video", "path": path, **plain(found)})
        return
    rate = f"{found.average_fps:.3g} frames/s" if found.average_fps else None
    length = minutes(found.duration_s) if found.duration_s else None
    frames = counted(found.frames, "frame") if found.frames and not found.is_image else None
    rows = {
        "picture": f"{found.width}x{found.height}, {found.video_codec}, {found.pixel_format}",
        "length": ", ".join(part for part in (length, frames, rate) if part),
        "audio": found.audio_codec or "none",
    }
    rows = {name: value for name, value in rows.items() if value}  # a picture has no length
    print_report(f"{path}: {'image' if found.is_image else 'video'}, not encoded by mcode", rows)
