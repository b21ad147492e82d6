"""Manifolds: networks, quantiser, code tables and card in one safetensors file, named by the hash of its content.

Loading, saving, listing and verifying. Importing this module does not import torch: `read_info` and `list_manifolds`
read headers only.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .errors import ConfigError, FormatError, InputError, ManifoldError
from .header import FORMAT, parse, read_header
from .packet import LARGEST_PICTURE, OFFERED, too_large
from .whole import whole_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .coders import CodeTables
    from .coders.range import RangeModel
    from .nets.graphs import Graphs
    from .nets.paper import MeanHific
    from .nets.tiled import Part

PACKAGED = Path(__file__).parent / "manifolds"
"""The folder of those that come with MCode."""
SEARCH_VARIABLE = "MCODE_MANIFOLDS"
"""Environment variable with further folders of manifolds, separated as PATH is."""
GRAPHS_VARIABLE = "MCODE_CUDA_GRAPHS"
"""Environment variable that turns CUDA graphs on: measured apart from the codec, never yet run inside it."""
ZERO_MARGIN = "zero_margin"
"""Name of the tensor (qualities, C) that `Manifold.zero_margin` gives."""
HYPER = "hyper."
"""What the names of the hyperprior's tensors begin with."""
PRICES = "prices"
"""Entry of a card: what its training paid, see `refine.Prices`."""
PRECISION = "precision"
"""Entry of a card: "float32" where the networks are to be computed so, on machines that have something faster, too."""
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class ManifoldInfo:
    """What a manifold's header says. frame_size: (width, height) or None for any size; stride: pixels per latent position
    (None for fixed sizes); qualities: number of quality steps; coders: which of mcode.packet.OFFERED it has what it takes
    for; id: first 16 hex digits of the content's SHA-256."""

    name: str
    path: Path
    id: str
    kind: str
    title: str
    parameters: int
    file_bytes: int
    frame_size: tuple[int, int] | None
    stride: int | None
    qualities: int
    coders: tuple[str, ...]
    card: dict[str, Any]
    config: dict[str, Any]


def folders() -> list[Path]:
    """Where manifolds are looked for by name: $MCODE_MANIFOLDS, the user's data folder, if there is one, the package."""
    extra = [Path(p) for p in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if p]
    with suppress(InputError):
        extra.append(user_folder())
    return [*extra, PACKAGED]


def user_folder() -> Path:
    """Where new manifolds go. Raises InputError for a user without a home."""
    try:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as error:
        raise InputError("this user has no home folder; set XDG_DATA_HOME to a folder for manifolds") from error
    return data / "mcode" / "manifolds"


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a manifold given by path, name or id. Raises ManifoldError with what is installed."""
    text = os.fspath(name_or_path)
    path = Path(text)
    if path.suffix == ".safetensors" or os.sep in text:
        if path.is_file():
            return path
        raise ManifoldError(f"{text}: no such manifold file")
    for folder in folders():
        candidate = folder / f"{text}.safetensors"
        if os.path.isfile(candidate):  # Path.is_file raises for a folder that may not be read
            return candidate
    installed = list(_installed())
    for info in installed:
        if info.name == text or (len(text) >= 8 and info.id.startswith(text.lower())):
            return info.path
    names = ", ".join(dict.fromkeys(info.name for info in installed)) or "none"
    raise ManifoldError(f"no manifold named {text!r} is installed (installed: {names}); give a name or a .safetensors file")


def find_id(manifold_id: bytes) -> Path:
    """The installed manifold a stream names, whatever its file is called. Raises ManifoldError saying which one is missing
    and how to get it."""
    wanted = manifold_id.hex()
    paths = [info.path for info in _installed() if info.id == wanted]
    if len(paths) > 1:  # one that only says it is the one must not hide the other
        paths = [path for path in paths if _is_whole(path)] or paths
    if paths:
        return paths[0]
    place = folders()[-2:][0]  # the user's, if there is one
    raise ManifoldError(
        f"this stream needs manifold {wanted}, which is not installed; put its .safetensors file, from whoever encoded the "
        f"stream, into {place}, or name it with --manifold"
    )


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except ManifoldError:
        return False
    return True


def list_manifolds(skipped: list[str] | None = None) -> list[ManifoldInfo]:
    """Every readable manifold in `folders()`, one of each name: the one that `find` gives for it. skipped: takes a line for
    each of the others."""
    found: dict[str, ManifoldInfo] = {}
    others: list[ManifoldInfo] = []
    every = list(_installed(skipped))
    for info in sorted(every, key=lambda info: info.path.stem != info.name):  # as `find`, which looks for files first
        if found.setdefault(info.name, info) is not info:
            others.append(info)
    if skipped is not None:
        skipped += [
            f"{info.path}: calls itself {info.name}, as {found[info.name].path} does, and is another; name it by its file"
            for info in others
            if info.id != found[info.name].id
        ]
    kept = {info.path for info in found.values()}
    return [info for info in every if info.path in kept]


def _installed(skipped: list[str] | None = None) -> Iterator[ManifoldInfo]:
    """All that can be read in `folders()`, whatever their names. skipped: takes what is wrong with each of the others."""
    for path in installed_files(skipped):
        try:
            yield read_info(path)
        except (ManifoldError, OSError) as error:
            if skipped is not None:
                skipped.append(str(error))


def installed_files(skipped: list[str] | None = None) -> list[Path]:
    """Every manifold's file in `folders()`, also those which cannot be read. skipped: takes a line for each folder that cannot
    be read."""
    found: list[Path] = []
    for folder in dict.fromkeys(folders()):
        try:
            found += sorted(folder / name for name in os.listdir(folder) if name.endswith(".safetensors"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if skipped is not None:
                skipped.append(f"{folder}: cannot be read ({error.strerror}); its manifolds are left out")
    return found


def read_info(name_or_path: str | os.PathLike[str]) -> ManifoldInfo:
    """The header alone, without torch and without reading weights. Raises ManifoldError."""
    path = find(name_or_path)
    header = read_header(path)
    return ManifoldInfo(
        name=header.metadata.get("name") or path.stem,
        path=path,
        id=header.metadata["id"],
        kind=header.metadata["kind"],
        title=str(header.card.get("title", "")),
        parameters=sum(map(math.prod, header.shapes.values())),
        file_bytes=path.stat().st_size,
        frame_size=header.frame_size,
        stride=header.stride,
        qualities=header.qualities,
        coders=tuple(coder for coder in OFFERED if coder != "range" or header.config.get("hyper")),
        card=header.card,
        config=header.config,
    )


def verify(name_or_path: str | os.PathLike[str]) -> str:
    """Recomputes the content's hash; returns the id. Raises ManifoldError when it is not the one the file states."""
    path = find(name_or_path)
    metadata = read_header(path).metadata
    actual = content_id(metadata["kind"], metadata["config"], metadata["tables"], _read_tensors(path))
    if actual != metadata["id"]:
        raise ManifoldError(f"{path}: content is {actual}, but the file says {metadata['id']}; fetch it again")
    return actual


def content_id(kind: str, config: str, tables: str, tensors: Mapping[str, np.ndarray]) -> str:
    """First 16 hex digits of the SHA-256 over kind, config, tables and tensors by name. Card and name stay outside, so
    that a corrected card does not orphan the streams."""
    digest = hashlib.sha256()
    for text in (FORMAT, kind, config, tables):
        digest.update(struct.pack("<I", len(text.encode())) + text.encode())
    for key in sorted(tensors):
        array = np.ascontiguousarray(tensors[key])
        digest.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ManifoldError(f"{path}: damaged manifold ({error})") from error


def save(
    path: str | os.PathLike[str],
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    tables: Sequence[CodeTables],
    tensors: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
) -> str:
    """Writes a manifold file, whole or not at all; returns its id. tables: one for each quality. Raises ManifoldError where
    `load` would refuse its header, and for tensors that hold what is no finite number."""
    return _write(path, kind, name, config, _tables_text(tables), tensors, card)


def check_new(path: Path) -> None:
    """Before the work that makes it: raises InputError where no new manifold can be written to `path`."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a manifold's file name ends in .safetensors")
    if path.exists():
        raise InputError(f"{path} exists; name another file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it first, or name another file")


def _tables_text(tables: Sequence[CodeTables]) -> str:
    return json.dumps([base64.b64encode(t.to_bytes()).decode() for t in tables])


def rewrite(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    card: Mapping[str, Any],
    hyper: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    tables: Sequence[CodeTables] | None = None,
    network: Mapping[str, Any] | None = None,
    name: str | None = None,
    replace: bool = False,
) -> str:
    """Writes the manifold `path` with more on its card, and with other tensors; returns its id.

    card: what is added to the card, which leaves the id as it is. hyper: the hyperprior's config (see coders.range), whose
    tensors are named `hyper.*`; the one there, if any, stays when it is left out. network: the config of networks whose
    tensors take the place of those there. name: another name. replace: `tensors` are all there are, none of the old ones
    stays. tables: one for each quality, in place of those there.
    """
    source = find(path)
    header = read_header(source)
    metadata, config = header.metadata, header.config
    kept = {} if replace else _read_tensors(source)
    if hyper is not None:
        kept = {name: array for name, array in kept.items() if not name.startswith(HYPER)}
        config |= {"hyper": dict(hyper)}
    if network is not None:
        config |= {"network": dict(network)}
    full_card = header.card | dict(card)
    called = name or metadata.get("name") or source.stem
    text = metadata["tables"] if tables is None else _tables_text(tables)
    return _write(output, metadata["kind"], called, config, text, kept | dict(tensors or {}), full_card)


def _write(
    path: str | os.PathLike[str],
    kind: str,
    name: str,
    config: Mapping[str, Any],
    tables: str,
    tensors: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
) -> str:
    from safetensors.numpy import save_file

    if endless := _not_finite(tensors):
        raise ManifoldError(f"{os.fspath(path)}: not written, since {endless} holds what is no finite number")
    config_text = json.dumps(config, sort_keys=True)
    manifold_id = content_id(kind, config_text, tables, tensors)
    metadata = {
        "mcode": FORMAT,
        "id": manifold_id,
        "kind": kind,
        "name": name,
        "config": config_text,
        "tables": tables,
        "card": json.dumps(card),
    }
    try:
        parse(metadata)
        name.encode()
    except ValueError as error:
        raise ManifoldError(f"{os.fspath(path)}: not written, since no reader would take this header ({error})") from error
    with whole_tensors(path) as part:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part, metadata)
    return manifold_id


def _not_finite(tensors: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first that holds an infinity or what is no number."""
    return next((name for name, array in tensors.items() if array.dtype.kind == "f" and not np.isfinite(array).all()), None)


def load(name_or_path: str | os.PathLike[str], device: str | torch.device = "auto", *, precision: str = "auto") -> Manifold:
    """A manifold ready to use, by its name, id or file.

    device: "cpu", "cuda", "mps", "auto" for the fastest that is there, or a torch.device. precision: "auto" (what the
    manifold's card asks for, else the fastest here), "float32", "bfloat16", or "int8": as the fastest, with the synthesis'
    residual blocks in integers. Raises ManifoldError for a manifold that is missing or damaged, and for integers that it or
    this machine has not, InputError for a device that this machine lacks or another precision.
    """
    from .latents import choose_device

    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is not known; use one of {', '.join(PRECISIONS)}")
    path = find(name_or_path)
    info = read_info(path)
    metadata = read_header(path).metadata
    tensors = _read_tensors(path)
    actual = content_id(info.kind, metadata["config"], metadata["tables"], tensors)
    if actual != info.id:
        raise ManifoldError(f"{path}: content is {actual}, but the file says {info.id}; fetch it again")
    if endless := _not_finite(tensors):
        raise ManifoldError(f"{path}: {endless!r:.80} holds what is no finite number; take another manifold")
    return Manifold(info, metadata["tables"], tensors, choose_device(device), precision)


def _again(path: str, manifold_id: str, device: torch.device, precision: str, form: str | None) -> Manifold:
    """A manifold that was pickled or copied: it is loaded from its file."""
    model = load(path, device, precision=precision)
    if model.id != manifold_id:
        raise ManifoldError(f"{path}: it is {model.id} now, and the manifold that was copied was {manifold_id}")
    return getattr(model, form)() if form else model


@cache
def _survive_forks() -> None:
    """Processes forked from here compute in one thread, until they ask for more: OpenMP's other threads do not come with them,
    and they would wait for those for ever."""
    import torch

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Manifold:
    """A loaded manifold: pixels to latents and back, and the numbers which the coders need.

    Threads may share one. Pickled and copied deeply it is loaded from its file anew, wherever that happens. Processes
    forked after it was loaded compute in one thread.

    The codec uses only `latent_shape`, `analyse`, `synthesise`, `gain`, `inverse`, `zero_margin`, `tables`, `hyper` and `id`.
    hyper: what the coder `range` needs, None where the manifold has none.
    """

    def __init__(
        self, info: ManifoldInfo, tables: str, tensors: dict[str, np.ndarray], device: torch.device, precision: str
    ) -> None:
        import torch

        from .latents import fast_dtype
        from .nets.build import build

        _survive_forks()
        self.info, self.device, self._path = info, device, os.path.abspath(info.path)
        self._asked, self._form = precision, ""
        self.name, self.id, self.kind = info.name, info.id, info.kind
        self.frame_size, self.stride, self.qualities = info.frame_size, info.stride, info.qualities
        self.default_quality = min(info.config.get("default_quality", (info.qualities + 1) // 2), info.qualities)
        self.card, self.config = info.card, info.config
        if precision == "auto" and self.card.get(PRECISION) == "float32":
            precision = "float32"
        self.dtype = fast_dtype(device) if precision in ("auto", "int8") else getattr(torch, precision)
        try:
            own = {name: array for name, array in tensors.items() if not name.startswith(HYPER)}
            margin = own.pop(ZERO_MARGIN, None)
            self.net, self._gain, self._inverse = build(info.kind, info.config, own, device)
            self.channels = int(self._gain.shape[1])
            self._around_mean = info.config.get("quantiser") == "mean"
            self._zero_margin = None if margin is None else torch.from_numpy(margin).float().to(device)
            for name in ("gain", "inverse", ZERO_MARGIN):
                self._check(name, getattr(self, f"_{name}"))
            self._parsed = self._tables(tables)
            self.hyper = self._hyper(tensors)
            self._int8 = self._quantised(precision) if precision in ("auto", "int8") else None
            self._int8_analysis: Any = None
        except (FormatError, ConfigError) as error:
            raise ManifoldError(f"{info.path}: {_line(error)}") from error
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise ManifoldError(f"{info.path}: weights do not fit the manifold's config ({_line(error)})") from error

    def _check(self, name: str, values: Tensor | None) -> None:
        if values is None:
            return
        if tuple(values.shape) != (self.qualities, self.channels):
            raise ValueError(f"{name} is {tuple(values.shape)}, not {(self.qualities, self.channels)}")
        if not values.isfinite().all() or (name == "gain" and not (values > 0).all()):
            raise ValueError(f"{name} holds values that are no {'gains' if name == 'gain' else 'numbers'}")

    def _tables(self, text: str) -> tuple[CodeTables, ...]:
        """Of each quality. Raises FormatError or ValueError."""
        from .coders import CodeTables

        try:
            coded = json.loads(text)
        except (ValueError, RecursionError):
            coded = None
        if not isinstance(coded, list) or not all(isinstance(one, str) for one in coded):
            raise FormatError("the code tables are damaged")
        if len(coded) != self.qualities:
            raise FormatError(f"{len(coded)} code tables for {self.qualities} qualities")
        try:
            parsed = {one: CodeTables.from_bytes(base64.b64decode(one, validate=True)) for one in coded}
        except ValueError:  # binascii's, too
            raise FormatError("the code tables are damaged (no base64)") from None
        for found in parsed.values():
            if found.channels != self.channels:
                raise FormatError(f"the code tables are for {found.channels} channels, and the networks have {self.channels}")
        return tuple(parsed[one] for one in coded)

    def __repr__(self) -> str:
        return f"Manifold({self.name} {self.id}, {self.kind}, {self.device.type} {self.precision})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._path, self.id, self.device, self._asked, self._form)

    def __copy__(self) -> Manifold:
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__
        return twin

    @property
    def precision(self) -> str:
        """Of the fastest part: "float32", "bfloat16" or "int8"."""
        return str(self.dtype).removeprefix("torch.") if self._int8 is None else "int8"

    def in_floats(self) -> Manifold:
        """The same manifold, sharing its weights, that computes nothing in integers."""
        plain = copy.copy(self)
        plain._int8 = plain._int8_analysis = None
        plain._form = "in_floats"
        return plain

    def in_integers(self) -> Manifold:
        """The same manifold, sharing its weights, that computes its analysis in integers too, where it computes its synthesis
        so and has the ranges: in half the time, latents off by a few hundredths of a quantiser step. For live video, which
        has no time: it takes 0.2 to 0.6 % more bits, 3 % where a still scene is sent finely (docs/log.md). Raises
        ManifoldError for ranges that do not fit."""
        from .nets import int8

        ranges = self.card.get(int8.ANALYSIS_RANGES)
        if self._int8 is None or not ranges:
            return self
        quick = copy.copy(self)
        quick._int8_analysis = self._integers(int8.ANALYSIS, ranges)
        quick._form = "in_integers"
        return quick

    def _quantised(self, precision: str) -> Any:
        """The networks with their synthesis in integers, None where there is none."""
        from .nets import int8

        ranges = self.card.get(int8.RANGES)
        if not ranges or not int8.supported(self.device):
            if precision != "int8":
                return None
            lacking = "this machine lacks fast integers" if ranges else f"manifold {self.name} has no ranges for integers"
            raise ManifoldError(f'precision "int8": {lacking}; use "auto"')
        return self._integers(None, ranges)

    def _integers(self, part: str | None, ranges: Any) -> Any:
        """The networks with that part in integers; None: with what makes the synthesis."""
        from .nets import int8, int8_synthesis

        try:
            return int8_synthesis.in_integers(self.net, part or int8.part(self.net), ranges)
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RuntimeError) as error:
            raise ManifoldError(f"{self.info.path}: its ranges for integers do not fit ({_line(error)})") from error

    def _hyper(self, tensors: Mapping[str, np.ndarray]) -> RangeModel | None:
        config = self.config.get("hyper")
        if not config:
            return None
        from .coders.range import RangeModel

        return RangeModel.from_tensors(config, tensors, self.channels, self.qualities)

    def tables(self, quality: int) -> CodeTables:
        """The code tables of quality 1..qualities."""
        return self._parsed[self._index(quality)]

    def gain(self, quality: int) -> Tensor:
        """Quantiser steps per unit of latent, (C,)."""
        return self._gain[self._index(quality)]

    def inverse(self, quality: int) -> Tensor:
        """Latent per quantiser step, (C,)."""
        return self._inverse[self._index(quality)]

    def zero_margin(self, quality: int) -> Tensor | None:
        """How far beyond half a step from zero the encoder still takes a latent for zero, in steps (C,); None: no farther."""
        return None if self._zero_margin is None else self._zero_margin[self._index(quality)]

    def _index(self, quality: int) -> int:
        if not 1 <= quality <= self.qualities:
            raise ManifoldError(f"quality {quality} is outside 1..{self.qualities} of manifold {self.name}")
        return quality - 1

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) for pictures of this size. Raises ManifoldError where the manifold has another, fixed size, and for more
        than LARGEST_PICTURE pixels."""
        if width * height > LARGEST_PICTURE:
            raise ManifoldError(f"{too_large(width, height)}; choose a smaller --size")
        if self.frame_size is not None:
            if (width, height) != self.frame_size:
                raise ManifoldError(
                    f"manifold {self.name} holds {self.frame_size[0]}x{self.frame_size[1]}, not {width}x{height}"
                )
            return self.channels, 1, 1
        stride, unit = self.stride or 1, 1
        if self._around_mean:
            from .nets.paper import HYPER_STRIDE

            unit = HYPER_STRIDE
        return self.channels, -(-height // (unit * stride)) * unit, -(-width // (unit * stride)) * unit

    def analyse(self, rgb: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) to latents, float32 (B, C, h, w) on the device. Edges are repeated up to the stride; they are
        reflected where latents are around a mean (see nets.paper.MeanHific).

        Large pictures are computed in parts that overlap (see nets.tiled): memory stays bounded. Raises ValueError for an array
        of another shape or type, or an empty one, ManifoldError for a size that the manifold has not.
        """
        import torch

        if rgb.dtype != np.uint8 or rgb.ndim != 4 or rgb.shape[3] != 3 or not rgb.size:
            raise ValueError(f"pictures are uint8 (B, H, W, 3), not {rgb.dtype} {rgb.shape}")
        _, height, width, _ = rgb.shape
        _, h, w = self.latent_shape(width, height)
        if not self._around_mean:
            return self._map(rgb, h, w)
        stride = self.stride or 1
        with torch.inference_mode():
            return self._mean_net.sent(self._map(rgb, -(-height // stride), -(-width // stride)), self._z_limits)

    def _map(self, rgb: np.ndarray, h: int, w: int) -> Tensor:
        """What the analysis network makes of pictures, at h x w positions."""
        import torch

        if not self.stride or not self._large(h, w):
            return self._analysed(rgb, h, w)
        latents = torch.empty(len(rgb), self._map_channels, h, w, device=self.device)
        for picture, found in zip(rgb, latents, strict=True):
            for rows, columns in self._parts(h, w, self._reaches[0]):
                part = picture[
                    rows.low * self.stride : rows.high * self.stride, columns.low * self.stride : columns.high * self.stride
                ]
                y = self._analysed(part[None], rows.high - rows.low, columns.high - columns.low)[0]
                found[:, rows.start : rows.stop, columns.start : columns.stop] = y[:, rows.kept, columns.kept]
        return latents

    def _analysed(self, rgb: np.ndarray, h: int, w: int) -> Tensor:
        import torch
        import torch.nn.functional as F

        _, height, width, _ = rgb.shape
        with torch.inference_mode(), self._autocast():
            x = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).to(self.device).permute(0, 3, 1, 2)
            x = x.float().div_(127.5).sub_(1)
            if self.stride and self._around_mean:
                from .nets.paper import reflected

                x = reflected(x, self.stride)
            elif self.stride and (h * self.stride, w * self.stride) != (height, width):
                x = F.pad(x, (0, w * self.stride - width, 0, h * self.stride - height), mode="replicate")
            return self._half("analysis", x, x.shape[0] * x.shape[2] * x.shape[3]).float()

    def synthesise(self, latents: Tensor, width: int, height: int) -> np.ndarray:
        """Latents (B, C, h, w) to pictures, uint8 (B, H, W, 3). Large ones in parts, as in `analyse`. Raises ValueError for
        latents of another size, ManifoldError for a size that the manifold has not."""
        import torch

        shape = self.latent_shape(width, height)
        if tuple(latents.shape[1:]) != shape:
            raise ValueError(f"latents are {tuple(latents.shape)}, and of {width}x{height} (B, {', '.join(map(str, shape))})")
        if not len(latents):
            return np.empty((0, height, width, 3), np.uint8)
        latents = latents.to(self.device, torch.float32)
        if self._around_mean:
            with torch.inference_mode():
                latents = self._mean_net.y_hat(latents)
        count, _, h, w = latents.shape
        if not self.stride or not self._large(h, w):
            return self._synthesised(latents, width, height)
        pictures = np.empty((count, height, width, 3), np.uint8)
        step = self.stride
        for latent, picture in zip(latents, pictures, strict=True):
            for rows, columns in self._parts(h, w, self._reaches[1]):
                if rows.start * step >= height or columns.start * step >= width:
                    continue  # wholly outside the picture
                part = latent[None, :, rows.low : rows.high, columns.low : columns.high]
                high, wide = (rows.high - rows.low) * step, (columns.high - columns.low) * step
                shown = self._synthesised(part, min(wide, width - columns.low * step), min(high, height - rows.low * step))[0]
                kept = shown[
                    rows.kept.start * step : rows.kept.stop * step, columns.kept.start * step : columns.kept.stop * step
                ]
                picture[rows.start * step : rows.stop * step, columns.start * step : columns.stop * step] = kept
        return pictures

    def _synthesised(self, latents: Tensor, width: int, height: int) -> np.ndarray:
        import torch

        from .nets.int8_synthesis import Int8Synthesis

        with torch.inference_mode(), self._autocast():
            if isinstance(whole := getattr(self._int8, "synthesis_net", None), Int8Synthesis):
                return whole.pictures(latents)[:, :height, :width].contiguous().numpy()
            x = self._half("synthesis", latents, len(latents) * width * height)
            x = x[..., :height, :width].float().add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            x = x.permute(0, 2, 3, 1).contiguous()
            if not self._on_cuda:
                return x.cpu().numpy()
            # Pinned memory takes the copy several times as fast; it is scarce, so frames do not stay in it.
            landed = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            landed.copy_(x, non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
            return landed.numpy().copy()

    def _half(self, name: str, x: Tensor, pixels: int) -> Tensor:
        """The network's analysis or synthesis of x: on CUDA, where graphs are asked for and it is small, as one of them; on a
        processor, where it can, in integers."""
        if self._on_cuda and os.environ.get(GRAPHS_VARIABLE):
            from .nets.graphs import LARGEST

            if pixels <= LARGEST:
                return self._graphed[name](x)
        integers = self._int8 if name == "synthesis" else self._int8_analysis
        return getattr(self.net if integers is None else integers, name)(x)

    @cached_property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def _graphed(self) -> dict[str, Graphs]:
        from .nets.graphs import Graphs

        return {name: Graphs(self._uncached(name)) for name in ("analysis", "synthesis")}

    def _uncached(self, name: str) -> Callable[[Tensor], Tensor]:
        """A half of the network for a graph: weights are cast in it, not kept by autocast, which would free them."""
        import torch

        def call(x: Tensor) -> Tensor:
            on = self.dtype != torch.float32
            with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=on, cache_enabled=False):
                return getattr(self.net, name)(x)

        return call

    @property
    def _mean_net(self) -> MeanHific:
        """The networks where latents are around a mean."""
        return cast("MeanHific", self.net)  # as `build` makes them then

    @property
    def _map_channels(self) -> int:
        """Of what the networks take and give, which with a mean is less than what is sent."""
        return self._mean_net.config.channels if self._around_mean else self.channels

    @cached_property
    def _z_limits(self) -> tuple[Tensor, Tensor]:
        """Least and largest symbols, (Z, 1, 1) each, that the coder `fixed` holds of z: so the mean is the decoder's with every
        coder."""
        import torch

        tables, first = self.tables(1), self._map_channels
        centre, half = tables.centres[first:].astype(np.float32), np.exp2(tables.bits[first:].astype(np.float32) - 1)
        low, high = (
            torch.from_numpy(v).to(self.device).view(-1, 1, 1)
            for v in (centre - np.floor(half), centre + np.maximum(half - 1, 0))
        )
        return low, high

    @property
    def _pixels_at_once(self) -> int:
        from .nets.tiled import LARGEST

        return getattr(self.net, "pixels_at_once", LARGEST)

    def _large(self, h: int, w: int) -> bool:
        """Whether a picture is beyond what is computed at once."""
        return h * w * (self.stride or 1) ** 2 > self._pixels_at_once

    def _parts(self, h: int, w: int, reach: int) -> Iterator[tuple[Part, Part]]:
        from .nets.tiled import parts

        return parts(h, w, reach, self._pixels_at_once // (self.stride or 1) ** 2)

    @cached_property
    def _reaches(self) -> tuple[int, int]:
        """How many latent positions away analysis and synthesis look."""
        import torch

        from .nets.tiled import reach

        side, stride = 4, self.stride or 1
        picture = torch.zeros(1, 3, side * stride, side * stride, device=self.device)
        latents = torch.zeros(1, self._map_channels, side, side, device=self.device)
        inwards = reach(self.net, self.net.analysis, picture, side, inwards=True)
        return inwards, reach(self.net, self.net.synthesis, latents, side, inwards=False)

    def _autocast(self) -> torch.autocast:
        import torch

        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _line(error: Exception) -> str:
    """Its text on one line, not longer than a line should be."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
