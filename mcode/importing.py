"""Checkpoints of networks trained elsewhere into manifolds: so far those of the public PyTorch port of HiFiC.

Nothing is downloaded, and nothing in a checkpoint is run: a pickle that asks for more than tensors and plain values is refused.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcode import manifold
from mcode.coders.range import HyperConfig
from mcode.errors import FormatError, InputError, McodeError
from mcode.nets.paper import Hific, MeanHific, PaperConfig
from mcode.testclip import render_frames
from mcode.text import is_name, is_text, shown_name
from mcode.training import hyper, loop
from mcode.training.crops import load_pictures
from mcode.training.deltas import RUN
from mcode.training.paper import fit_tables, save
from mcode.whole import refuse_existing, refuse_unwritable, whole

REPOSITORY = "https://github.com/Justin-Tan/high-fidelity-generative-compression"
MOST_PICTURES, LONGEST = 64, 1024
RANGE_CROPS, RANGE_STEPS = 1600, 2000
_RANGE_SIZE, _RANGE_SEEDS = 256, 12
_PARTS = ("Encoder.", "Generator.", "Hyperprior.")
_LARGEST_PICKLE, _MOST_BLOCKS = 16 << 20, 64


@dataclass(frozen=True)
class ImportReport:
    """tables_from: what the code tables were fitted to. bits_per_pixel: on those pictures, by their entropy. coders: that the
    manifold can be used with."""

    path: str
    name: str
    manifold_id: str
    parameters: int
    file_bytes: int
    tables_from: str
    bits_per_pixel: float
    coders: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """state: float32, by the names of `mcode.nets.paper.Hific`. facts: plain values about the training, for the card."""

    config: PaperConfig
    state: dict[str, Tensor]
    facts: dict[str, Any]


def import_hific_pytorch(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    data: str | os.PathLike[str] | None = None,
    force: bool = False,
    float32: bool = False,
    range_steps: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int | None], None] | None = None,
) -> ImportReport:
    """A checkpoint of the PyTorch port as a manifold of kind `hific`, family `paper`, of one quality.

    As there, y is rounded around the mean that its own hyperprior predicts from z, and both are sent.

    output: by default NAME.safetensors in the user's folder of manifolds; name: by default that of the output, or of the
    checkpoint. data: a folder of pictures and videos for the code tables (at most MOST_PICTURES of them); by default scenes
    which MCode renders. float32: keep the weights as they are, and compute in float32 everywhere; by default they are halved,
    which moves y by some thousandths, and bfloat16 is used where it is fast.
    range_steps: train a hyperprior for the coder `range`, with so many steps on crops of the same data; without it the manifold
    codes by `huffman` and `fixed` alone. The scales of the port's own hyperprior code nothing: floating-point numbers differ
    from machine to machine. Raises InputError; McodeError where that training fails. A file at output stays until all is done.
    Without output, the name of a manifold that comes with MCode is taken with force only.
    """
    path = Path(path)
    _check_file(path)
    name = name or shown_name(Path(output).stem if output else path.stem.lower())
    if not is_name(name):
        raise InputError(f"--name {name}: a manifold's name is a file name without folders, as hific-low")
    target = Path(output) if output else manifold.user_folder() / f"{name}.safetensors"
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: a manifold is a .safetensors file; give a name that ends so")
    refuse_existing([target], force)
    if output is None and (manifold.PACKAGED / target.name).exists() and not force:
        raise InputError(
            f"{target}: would take the place of {name}, which comes with MCode; choose another --name, or add --force to let it"
        )
    refuse_unwritable(target)
    pictures = _pictures(data)
    checkpoint = read_hific_pytorch(path)
    stored = checkpoint.state if float32 else loop.halved(checkpoint.state, str(path), "use --float32, or fetch it again")
    net = MeanHific(checkpoint.config).eval()
    net.load_state_dict({k: v.float() for k, v in stored.items()}, assign=True)
    if data is None:
        tables_from = "scenes rendered by MCode"
    else:
        tables_from = f"{len(pictures)} pictures and frames of {shown_name(Path(data).resolve())}"
    fitted = fit_tables(net, pictures, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    card = _card(path, checkpoint, tables_from, float32)
    with whole(target.absolute()) as draft:  # a path, not a name to look for
        manifold_id = save(draft, net, stored, fitted.tables, name=name, card=card)
        if range_steps is not None:
            manifold_id = _add_range(draft, data, range_steps, device, progress)
    return ImportReport(
        path=str(target),
        name=name,
        manifold_id=manifold_id,
        parameters=sum(v.numel() for v in stored.values()),
        file_bytes=target.stat().st_size,
        tables_from=tables_from,
        bits_per_pixel=fitted.bits_per_pixel,
        coders=manifold.read_info(target).coders,
    )


def _add_range(
    draft: Path,
    data: str | os.PathLike[str] | None,
    steps: int,
    device: str,
    progress: Callable[[int, int | None], None] | None,
) -> str:
    """Trains the hyperprior of the coder `range` on the manifold's symbols and puts it into the file; returns the new id.

    Deltas are those of the folder's videos; where it has none that are long enough, and without a folder, of scenes that MCode
    renders.
    """

    def report(numbers: Mapping[str, Any]) -> None:
        if progress:
            progress(numbers["step"], steps)

    model = manifold.load(draft, device)
    gain = torch.stack([model.gain(q).float().cpu() for q in range(1, model.qualities + 1)])
    folder = None if data is None else Path(data)
    try:
        moves = _rendered_moves(model) if folder is None else hyper.draw_moves(model, [folder], size=_RANGE_SIZE)
    except InputError:
        moves = _rendered_moves(model)
    if folder is None:
        latents, source = moves[:, ::2].reshape(-1, *moves.shape[2:]), "scenes rendered by MCode"
    else:
        latents = hyper.draw_latents(model, [folder], RANGE_CROPS, size=_RANGE_SIZE)
        source = f"{len(latents)} crops of {shown_name(folder.resolve())}"
    config = HyperConfig(model.channels, model.qualities, hyper.passes(model.channels), levels=hyper.LEVELS)
    net = hyper.train(latents, moves, gain, config, replace(hyper.HyperTraining(), steps=steps), report=report)
    every = np.linspace(0, len(latents) - 1, min(400, len(latents))).astype(int)
    try:
        ready = hyper.fit(net, latents[every], moves, gain, limit=400)
    except FormatError as error:
        raise McodeError(f"what was trained for range cannot code ({error}); use another number of steps") from error
    count = sum(w.size for w in ready.weights.values())
    return hyper.attach(draft, ready, draft, note=f"{count:,} integer weights, {steps} steps on {source}")


def _rendered_moves(model: manifold.Manifold) -> np.ndarray:
    """float16 (N, frames, C, h, w): as `hyper.draw_moves` gives them, of rendered scenes."""
    found = []
    for scene, seed in ((scene, seed) for seed in range(_RANGE_SEEDS) for scene in ("arms", "face", "pan")):
        seconds = (RUN[-1] + 1) / 25
        frames = list(render_frames(scene, seconds, 25, (_RANGE_SIZE, _RANGE_SIZE), seed))
        found.append(model.analyse(np.stack([frames[i].rgb for i in RUN])).half().cpu().numpy())
    return np.stack(found)


def read_hific_pytorch(path: str | os.PathLike[str]) -> Checkpoint:
    """The port's checkpoint: a `torch.save` dict whose `model_state_dict` holds Encoder, Generator and Hyperprior.

    Sizes are read off the shapes. A model that the port trained on pictures in [0, 1] (its `normalize_input_image` is
    false, or not there) is rewritten to [-1, 1] in its first and last convolutions, which changes no result; one that it
    trained on [-1, 1] gets the port's tanh at the end. The discriminator is left out. Raises InputError with the first
    tensor that is missing, misshapen or not finite.
    """
    path = Path(path)
    content = _load(path)
    given = content.get("model_state_dict") if isinstance(content, Mapping) else None
    if not isinstance(given, Mapping):
        raise InputError(f"{path}: has no model_state_dict; give a checkpoint as the port of {REPOSITORY} writes it")
    tensors = {k: v for k, v in given.items() if isinstance(k, str) and isinstance(v, Tensor)}
    _check_plain(tensors, path)
    arguments = content.get("args")
    normalised = isinstance(arguments, Mapping) and arguments.get("normalize_input_image") is True
    config = _config(tensors, path, normalised)
    names = dict(zip(_port_names(config.blocks), _our_shapes(config).items(), strict=True))
    for port_name, (_, shape) in names.items():
        if port_name not in tensors:
            raise InputError(f"{path}: not HiFiC as the port builds it: {port_name} is missing")
        if tensors[port_name].shape != shape:
            found = "x".join(map(str, tensors[port_name].shape)) or "a single number"
            raise InputError(
                f"{path}: not HiFiC as the port builds it: {port_name} is {found}, not {'x'.join(map(str, shape))}"
            )
    for port_name in tensors:
        if port_name.startswith(_PARTS[:2]) and port_name not in names:
            raise InputError(f"{path}: not HiFiC as the port builds it: {port_name} is not a part of it")
    state = {ours: tensors[port_name].detach().float() for port_name, (ours, _) in names.items()}
    for port_name, (ours, _) in names.items():
        if not state[ours].isfinite().all():
            raise InputError(f"{path}: {port_name} holds values that are not finite; take another checkpoint")
    if not normalised:
        state |= _from_unit_range(state)
    return Checkpoint(config, state, _facts(content, arguments, normalised))


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; the port's README links its checkpoints: {REPOSITORY}")


def _load(path: Path) -> Any:
    """torch.load, tensors and plain values only. Raises InputError."""
    _check_file(path)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # of PyTorch's own plans, and of pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise InputError(f"{path}: no checkpoint of PyTorch, or a damaged one; fetch it again") from error
        raise InputError(
            f"{path}: refused, since loading it would run code ({asked[1]}); take it from where {REPOSITORY} links it"
        ) from error
    except (
        *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, AssertionError),
        *(struct.error, zipfile.BadZipFile),
    ) as error:
        raise InputError(f"{path}: no checkpoint of PyTorch, or one cut short; fetch it again") from error


def _check_archive(path: Path) -> None:
    """PyTorch stores everything as it is: what is packed, or a pickle far larger than names and shapes, may fill the memory.
    And it does not look at the checksums. Raises InputError."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            pickled = member.filename.endswith(".pkl")
            if member.compress_type != zipfile.ZIP_STORED or (pickled and member.file_size > _LARGEST_PICKLE):
                raise InputError(f"{path}: refused, since its {member.filename!r:.80} is packed or too large for a checkpoint")
        damaged = archive.testzip()
    if damaged is not None:
        raise InputError(f"{path}: damaged: the checksum of its {damaged!r:.80} is another; fetch it again")


def _check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """All numbers that the tensors of our parts claim are in the file, each once. Raises InputError."""
    left = path.stat().st_size
    for name, tensor in tensors.items():
        if not name.startswith(_PARTS):
            continue
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        plain = plain and not tensor.is_nested and not tensor.is_complex()
        if plain:
            claimed = tensor.numel() * tensor.element_size()
            left -= claimed
            plain = claimed <= tensor.untyped_storage().nbytes() and left >= 0
        if not plain:
            raise InputError(f"{path}: {name!r:.80} is no plain tensor, or claims more numbers than the file holds")


def _config(tensors: Mapping[str, Tensor], path: Path, normalised: bool) -> PaperConfig:
    def size(name: str, axis: int) -> int:
        if name not in tensors:
            raise InputError(f"{path}: not HiFiC as the port builds it: {name} is missing")
        if tensors[name].ndim != 4:
            raise InputError(f"{path}: not HiFiC as the port builds it: {name} is no convolution")
        return int(tensors[name].shape[axis])

    blocks = 0
    while f"Generator.resblock_{blocks}.conv1.weight" in tensors:
        blocks += 1
    if blocks > _MOST_BLOCKS:
        raise InputError(f"{path}: not HiFiC as the port builds it: {blocks:,} residual blocks; it has {PaperConfig.blocks}")
    try:
        return PaperConfig(
            channels=size("Encoder.conv_block_out.1.weight", 0),
            width=size("Encoder.conv_block1.1.weight", 0),
            blocks=blocks,
            hyper=size("Hyperprior.analysis_net.conv1.weight", 0),
            tanh=normalised,
        )
    except ValueError:
        raise InputError(f"{path}: not HiFiC as the port builds it: Generator.resblock_0.conv1.weight is missing") from None


def _our_shapes(config: PaperConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {k: v.shape for k, v in Hific(config).state_dict().items()}


def _port_names(blocks: int) -> Iterator[str]:
    """The port's names in the order of `Hific`'s."""
    affine, norm = ("weight", "bias"), ("gamma", "beta")
    for i in range(1, 6):
        yield from (f"Encoder.conv_block{i}.{layer}.{k}" for layer, names in ((1, affine), (2, norm)) for k in names)
    yield from (f"Encoder.conv_block_out.1.{k}" for k in affine)
    for layer, names in ((0, norm), (2, affine), (3, norm)):
        yield from (f"Generator.conv_block_init.{layer}.{k}" for k in names)
    for i in range(blocks):
        for part, names in (("conv1", affine), ("conv2", affine), ("norm1", norm), ("norm2", norm)):
            yield from (f"Generator.resblock_{i}.{part}.{k}" for k in names)
    for i in range(1, 5):
        yield from (f"Generator.upconv_block{i}.{layer}.{k}" for layer, names in ((0, affine), (1, norm)) for k in names)
    yield from (f"Generator.conv_block_out.1.{k}" for k in affine)
    for net in ("analysis_net", "synthesis_mu", "synthesis_std"):
        yield from (f"Hyperprior.{net}.conv{i}.{k}" for i in (1, 2, 3) for k in affine)
    yield from (f"Hyperprior.hyperlatent_likelihood.{k}_{i}" for i in range(4) for k in "Hab")


def _from_unit_range(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first and the last convolution for pictures in [-1, 1], of networks for pictures in [0, 1].

    With x = (x' + 1) / 2, W x + b = (W / 2) x' + (b + sum W / 2), edges included, since they are reflected ones.
    """
    first, last = "encoder.0.{}", "generator.last.{}"
    weight = state[first.format("weight")]
    return {
        first.format("weight"): weight / 2,
        first.format("bias"): state[first.format("bias")] + weight.sum((1, 2, 3)) / 2,
        last.format("weight"): state[last.format("weight")] * 2,
        last.format("bias"): state[last.format("bias")] * 2 - 1,
    }


def _pictures(data: str | os.PathLike[str] | None) -> list[np.ndarray]:
    if data is None:
        return []
    if not Path(data).is_dir():
        raise InputError(f"--data {data}: no such folder of pictures")
    try:
        found = load_pictures([Path(data)], longest=LONGEST, frames_per_video=4)
    except InputError as error:
        raise InputError(f"--data {error}") from error
    if not found:
        raise InputError(f"--data {data}: no pictures or videos of at least 64x64 in it")
    return found[:: max(1, len(found) // MOST_PICTURES)][:MOST_PICTURES]


def _facts(content: Mapping[str, Any], arguments: Any, normalised: bool) -> dict[str, Any]:
    """Plain numbers and texts alone: the file is from outside."""
    wanted = {"regime": str, "target_rate": float, "model_type": str, "dataset": str}
    given = arguments if isinstance(arguments, Mapping) else {}
    facts: dict[str, Any] = {k: given[k] for k, kind in wanted.items() if isinstance(given.get(k), kind)}
    facts = {k: v for k, v in facts.items() if not isinstance(v, str) or is_text(v)}
    facts |= {k: content[k] for k in ("epoch", "steps") if isinstance(content.get(k), int)}
    return facts | {"pictures_in": "[-1, 1]" if normalised else "[0, 1]"}


def _card(path: Path, checkpoint: Checkpoint, tables_from: str, float32: bool) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    regime = checkpoint.facts.get("regime")
    return {
        "title": "HiFiC, weights of the public PyTorch port" + (f", regime {regime}" if regime else ""),
        "source": REPOSITORY,
        "licence": "Apache-2.0 (the port's)",
        "checkpoint": {"file": shown_name(path), "sha256": digest} | checkpoint.facts,
        "tables": f"fitted to {tables_from}",
        "not_for": "documents, medical pictures, evidence: detail is made up to look right",
        "imported": date.today().isoformat(),
    } | ({manifold.PRECISION: "float32"} if float32 else {})
