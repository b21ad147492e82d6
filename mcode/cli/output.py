"""What is printed: progress and warnings to stderr, reports to stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(label: str, unit: str = "frames") -> Iterator[Callable[[int, int | None], None] | None]:
    """A bar with frames/s and the time left, on stderr where that is a terminal; None, and quiet, elsewhere.

    Yields what the library calls with (frames done, frames in all or None); unit names another thing than frames.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None, count="starting")
        first: tuple[float, int] | None = None

        def update(done: int, total: int | None) -> None:
            nonlocal first
            now = time.monotonic()
            if first is None or done < first[1]:  # another pass over the frames has begun
                first = now, done
            rate = (done - first[1]) / (now - first[0]) if now > first[0] else 0.0
            of = f"/{total:,}" if total else ""
            bars.update(task, completed=done, total=total, count=f"{done:,}{of} {unit}  {rate:5.1f} {unit}/s")

        yield update


def print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"mcode: warning: {one_line(warning)}", file=sys.stderr)


def print_report(title: str, rows: dict[str, str]) -> None:
    """A title over two aligned columns."""
    shown = {printable(name): printable(value) for name, value in rows.items()}
    width = max(map(len, shown))
    print(printable(title))
    for name, value in shown.items():
        print(f"  {name:<{width}}  {value}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Aligned columns under their names, those named in right flush right."""
    lines = [[printable(cell) for cell in line] for line in (columns, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def print_rows(rows: Sequence[Any]) -> None:
    """Dataclasses of one kind as a table; fields that are None everywhere are left out."""
    names = [f.name for f in dataclasses.fields(rows[0]) if any(getattr(row, f.name) is not None for row in rows)]
    values = [[getattr(row, name) for name in names] for row in rows]
    right = [name for i, name in enumerate(names) if not any(isinstance(row[i], str) for row in values)]
    print_table(names, [[_cell(value) for value in row] for row in values], right)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)


def print_json(value: Any) -> None:
    readable = getattr(sys.stdout, "encoding", None) in ("utf-8", "UTF-8")
    text = json.dumps(plain(value), ensure_ascii=not readable, allow_nan=False)
    print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def plain(value: Any) -> Any:
    """value in JSON's types; what JSON has no number for (infinite PSNR) becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # numpy's scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def byte_count(count: int) -> str:
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


def counted(count: int, noun: str) -> str:
    """As "1 frame" and "1,500 frames"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def bit_rate(kbps: float) -> str:
    return f"{kbps:.2f} kbit/s" if kbps < 10 else f"{kbps:,.1f} kbit/s"


def decibels(value: float | None) -> str:
    return "lossless," if value == math.inf else "unknown" if value is None or math.isnan(value) else f"{value:.2f} dB"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:05.2f}"
    return f"{minutes}:{rest:05.2f}" if minutes else f"{rest:.2f} s"


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """text in which nothing tells a terminal what to do: it may come from a file or from the network."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
