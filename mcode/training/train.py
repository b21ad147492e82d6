"""`mcode train`: one configuration, one trained manifold, whatever its kind."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from ..config import from_dict, load
from ..errors import ConfigError, InputError, OutOfMemory
from ..latents import choose_device
from ..memory import ran_out
from ..text import is_name
from . import classes, compact, hific, loop, ncode, residual
from .compact import CompactTraining
from .export import export_compact
from .hific import HificTraining
from .ncode import NCodeTraining
from .residual import ResidualTraining

Training = CompactTraining | HificTraining | NCodeTraining | ResidualTraining


def train(
    config_path: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str = "auto",
    perceptual: str | os.PathLike[str] | None = None,
    report: loop.Report | None = None,
) -> Path:
    """Trains what the TOML file at config_path says and writes the manifold; returns its path, OUT/NAME.safetensors, where no
    other manifold may lie.

    data: the folder which the configuration's `data.folders` are relative to. resume: go on from the checkpoint in `out`,
    exactly, on the same data; what the configuration may say anew then is in `loop.begin`. perceptual: file of the feature
    network's weights, or a folder of such files, in place of the configuration's and $MCODE_PERCEPTUAL; for ncode's dcgan also
    a network of torch.export (.pt2). report: called with each row of OUT/log.jsonl. Under torchrun all processes train together
    and the first one writes. Raises ConfigError, InputError for data or checkpoints that cannot be used and where another
    training writes into `out`, McodeError when the loss is not finite, OutOfMemory.
    """
    config = read_config(config_path)
    if perceptual is not None:
        config = _with_perceptual(config, Path(perceptual))
    data, out = Path(data), Path(out)
    if not data.is_dir():
        raise InputError(f"{data}: no such folder of training data")
    output = out / f"{config.name}.safetensors"
    _check_output(output, config.name)
    where = choose_device(device).type
    rooms: dict[type, Callable[..., Path]] = {
        CompactTraining: compact.train,
        HificTraining: hific.train,
        NCodeTraining: ncode.train,
        ResidualTraining: residual.train,
    }
    try:
        _, worker = loop.join_workers(where)
        kept = (loop.CHECKPOINT, classes.FILE, output.name, f"{config.name}.draft.safetensors")
        with loop.alone_in(out, *kept) if worker == 0 else nullcontext():
            checkpoint = rooms[type(config)](config, data, out, resume=resume, device=where, report=report)
            if worker == 0:
                export(checkpoint, data, output, config)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"out of memory: {_sizes(config)} is too much here; make it smaller, or give less footage") from error
    finally:
        loop.leave_workers()
    return output


def _sizes(config: Training) -> str:
    """What a step's memory grows with."""
    batch, crop = f"data.batch = {config.data.batch}", getattr(config.data, "crop", None)
    return batch if crop is None else f"{batch} with data.crop = {crop}"


def _with_perceptual(config: Training, path: Path) -> Training:
    """config with the weights of its feature network, or a feature network, taken from path. Raises InputError, also where the
    loss has no such network."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder of a feature network")
    if not _sees_features(config):
        raise InputError(f"--perceptual {path}: the loss of this configuration has no feature network; leave --perceptual out")
    if path.suffix == ".pt2" and not isinstance(config, NCodeTraining):
        raise InputError(
            f'--perceptual {path}: networks of torch.export serve kind = "ncode" of family "dcgan" alone; give weights'
        )
    if isinstance(config, NCodeTraining):
        return replace(config, encoding=replace(config.encoding, perceptual_file=str(path)))
    if isinstance(config, ResidualTraining):
        return replace(config, perceptual_file=str(path))
    from ..evaluation.features import WEIGHTS_VARIABLE

    os.environ[WEIGHTS_VARIABLE] = str(path)
    return config


def _sees_features(config: Training) -> bool:
    if isinstance(config, NCodeTraining):
        return config.encoding.perceptual != "none" and config.encoding.l2 > 0
    if isinstance(config, ResidualTraining):
        return config.l2 > 0
    if isinstance(config, HificTraining):
        return config.loss.perceptual != "none" and config.loss.k_perceptual > 0
    return config.loss.perceptual > 0


def _check_output(output: Path, name: str) -> None:
    """Raises InputError where output exists and is not what the training in its folder has left there."""
    checkpoint = output.parent / loop.CHECKPOINT
    if not output.exists():
        return
    try:
        if checkpoint.exists() and json.loads(loop.read_metadata(checkpoint)["config"])["name"] == name:
            return
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{checkpoint}: no readable checkpoint ({error})") from error
    raise InputError(f"{output}: exists, and is not of a training there; remove it, or choose another --out or name")


def export(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: Training | None = None,
) -> str:
    """The manifold file of any training's checkpoint; returns its id. data: as in `train`, for the code tables. config: of the
    checkpoint's kind, in place of the checkpoint's.

    Raises InputError for a file that is no checkpoint, or not one of a finished training.
    """
    checkpoint, data, output = Path(checkpoint), Path(data), Path(output)
    _, values, _ = loop.read_checkpoint(checkpoint)
    if config is None:
        config = from_dict(values, _schema(values, str(checkpoint)), source=str(checkpoint))
    if isinstance(config, NCodeTraining):
        return ncode.export(checkpoint, data, output, config=config)
    if isinstance(config, ResidualTraining):
        return residual.export(checkpoint, data, output, config=config)
    if isinstance(config, HificTraining):
        return hific.export(checkpoint, data, output, config=config)
    card = {
        "title": f"general manifold trained on {', '.join(config.data.folders)}",
        "made": date.today().isoformat(),
    }
    return export_compact(checkpoint, data, output, card=card, config=config)


def read_config(path: str | os.PathLike[str]) -> Training:
    """The TOML file as the dataclass of its kind and, for hific, of its `network.family`. Raises ConfigError."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return load(Path(path), CompactTraining)  # says what is wrong with the file
    schema = _schema(values, str(path))
    if schema in (CompactTraining, NCodeTraining) and isinstance(values.get("network"), dict):
        values["network"].pop("family", None)
    config = from_dict(values, schema, source=str(path))
    if not is_name(config.name):
        raise ConfigError(f'{path}: name = "{config.name:.60}": a manifold\'s name is a file name without folders, as my-head')
    kept = [loop.CHECKPOINT, classes.FILE] if isinstance(config, ResidualTraining) and config.l3 else [loop.CHECKPOINT]
    if f"{config.name}.safetensors".lower() in kept:
        raise ConfigError(f'{path}: name = "{config.name}": the training keeps a file of that name itself; choose another')
    return config


def _schema(values: Mapping[str, Any], source: str) -> type[Training]:
    kind, network = values.get("kind"), values.get("network")
    if kind == "ncode":
        family = network.get("family", "dcgan") if isinstance(network, dict) else "dcgan"
        if family not in ("dcgan", "residual"):
            raise ConfigError(f'{source}: network.family = "{family}" is not one of "dcgan", "residual"')
        return ResidualTraining if family == "residual" else NCodeTraining
    if kind == "hific":
        family = network.get("family", "compact") if isinstance(network, dict) else "compact"
        if family not in ("compact", "paper"):
            raise ConfigError(f'{source}: network.family = "{family}" is not one of "compact", "paper"')
        return HificTraining if family == "paper" else CompactTraining
    hint = '; a linear manifold is learned by "mcode adapt"' if kind == "linear" else ""
    raise ConfigError(f'{source}: kind = "{kind}" is not one of "hific", "ncode"{hint}')
