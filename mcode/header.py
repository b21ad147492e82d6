"""A manifold file's header, read and checked: nothing after it need ask whether a value is of its type. No weights, no torch.

The file is from outside. Whatever it holds, what comes out is a `Header` or a ManifoldError of one line.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ManifoldError
from .nets import STRIDE
from .packet import MOST_QUALITIES

FORMAT = "1"
KINDS = ("linear", "ncode", "hific")
LARGEST_SIDE = 65_535
_LARGEST_HEADER = 16 << 20
_MOST_TENSORS = 10_000
_DEEPEST = 32
"""Lists and tables within one another, in the card and in the config."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}

_Sizes = tuple[tuple[int, int] | None, int | None, int, int]
"""frame_size, stride, qualities and default_quality."""


@dataclass(frozen=True)
class Header:
    """metadata: as in the file, texts all. shapes: of its tensors, by name. config, card: those of the metadata, parsed.
    frame_size: (width, height), None for any. stride: None for fixed sizes."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    card: dict[str, Any]
    frame_size: tuple[int, int] | None
    stride: int | None
    qualities: int
    default_quality: int


def read_header(path: Path) -> Header:
    """Raises ManifoldError."""
    try:
        raw, body = _read(path)
        return _header(path, _json(raw, "header"), body)
    except OSError as error:
        raise ManifoldError(f"{path}: cannot be read as a manifold ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ManifoldError(f"{path}: damaged manifold header ({error})") from error


def _read(path: Path) -> tuple[str, int]:
    """The header's text, and how many bytes follow it."""
    with open(path, "rb") as file:
        raw, size = file.read(8), path.stat().st_size
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise ManifoldError(f"{path}: not a manifold (not a safetensors file)")
        try:
            return file.read(length).decode(), size - 8 - length
        except UnicodeDecodeError:
            raise ManifoldError(f"{path}: not a manifold (not a safetensors file)") from None


def _header(path: Path, header: Any, body: int) -> Header:
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    if not isinstance(metadata, dict) or "mcode" not in metadata:
        raise ManifoldError(f"{path}: a safetensors file, but not a manifold of MCode")
    if metadata["mcode"] != FORMAT:
        raise ManifoldError(f"{path}: manifold format {str(metadata['mcode'])[:40]}; this version reads format {FORMAT}")
    config, card, sizes = parse(metadata)
    return Header(metadata, _shapes(header, body), config, card, *sizes)


def parse(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], _Sizes]:
    """Config, card and sizes of a file's metadata. Raises ValueError where they cannot be used."""
    for key in ("id", "kind", "config", "tables"):
        _demand(key in metadata, key)
    for key, value in metadata.items():
        _demand(isinstance(value, str), f"{key} is no text")
    _demand(metadata["kind"] in KINDS, f"kind {metadata['kind']!r}")
    _demand(len(metadata["id"]) == 16 and not set(metadata["id"]) - set("0123456789abcdef"), f"id {metadata['id'][:40]!r}")
    card, config = _table(metadata.get("card", "{}"), "card"), _table(metadata["config"], "config")
    return config, card, _sizes(metadata["kind"], config)


def _demand(good: bool, what: str) -> None:
    if not good:
        raise ValueError(what)


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _sizes(kind: str, config: Mapping[str, Any]) -> _Sizes:
    """frame_size, stride, qualities and default_quality, of a config whose tables are tables."""
    qualities: Any = config.get("qualities")
    _demand(_whole(qualities, 1, MOST_QUALITIES), f"qualities is no whole number from 1 to {MOST_QUALITIES}")
    default: Any = config.get("default_quality", (qualities + 1) // 2)
    _demand(_whole(default, 1, MOST_QUALITIES), f"default_quality is no whole number from 1 to {MOST_QUALITIES}")
    _demand(config.get("hyper") is None or isinstance(config["hyper"], dict), "hyper is no table")
    _demand(kind == "linear" or isinstance(config.get("network"), dict), "network is no table")
    size: Any = config.get("frame_size")
    stride: Any = config.get("stride")
    if kind == "hific":
        _demand(size is None, f"frame_size; networks of kind {kind} have none")
        _demand(_whole(stride, STRIDE, STRIDE), f"stride is not {STRIDE}")
        return None, STRIDE, qualities, min(default, qualities)
    good = isinstance(size, list) and len(size) == 2 and all(_whole(side, 1, LARGEST_SIDE) for side in size)
    _demand(good, "frame_size is no width and height")
    _demand(stride is None, f"stride; networks of kind {kind} have none")
    return (size[0], size[1]), None, qualities, min(default, qualities)


def _shapes(tensors: Mapping[str, Any], body: int) -> dict[str, tuple[int, ...]]:
    """Those which the file has the bytes for."""
    _demand(len(tensors) <= _MOST_TENSORS, f"more than {_MOST_TENSORS:,} tensors")
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        entry: dict[str, Any] = tensor if isinstance(tensor, dict) else {}
        kind, shape, place = entry.get("dtype", ""), entry.get("shape", ()), entry.get("data_offsets", ())
        good = isinstance(kind, str) and kind in _BYTES and isinstance(shape, list) and isinstance(place, list)
        good = good and len(place) == 2 and all(_whole(n, 0, body) for n in place) and len(shape) <= 8
        good = good and all(_whole(n, 0, body) for n in shape) and math.prod(shape) * _BYTES[kind] == place[1] - place[0]
        _demand(good, f"tensor {name!r}")
        found[name] = tuple(shape)
    return found


def _table(text: str, what: str) -> dict[str, Any]:
    found = _json(text, what)
    if not isinstance(found, dict):
        raise ValueError(f"{what} is no table")
    _demand(_depth(found) <= _DEEPEST, f"{what} is nested too deep")
    return found


def _json(text: str, what: str) -> Any:
    """Raises ValueError also for text that is nested too deep, or that UTF-8 cannot hold."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{what} is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds half a character") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    return found


def _depth(value: Any) -> int:
    """Of lists and tables within one another; stops beyond _DEEPEST."""
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        level = [v for v in level if isinstance(v, (dict, list))]
        depth += bool(level)
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth
