"""`mcode evaluate ablation`: a family of trained `hific` manifolds side by side, by what distinguishes their trainings.

The table of Mentzer et al. 2020 (table 1, figures 6 to 8) and their sweep over beta (figure 5). What is measured is kept
in OUT/cache, one file for each manifold and picture, so that an evaluation that was interrupted goes on where it stopped.
Manifolds are loaded one after the other: at full size each takes a gigabyte.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcode.errors import InputError
from mcode.evaluation import stills
from mcode.evaluation.features import VGG_LAYERS, VGG_SIDE, VggFeatures, to_batch
from mcode.evaluation.images import (
    _Cache,
    _digest,
    _mean,
    _Measured,
    check_report_folder,
    computed_by,
    not_measured,
    refuse_others,
    report_begun,
    too_small,
)
from mcode.evaluation.images_report import _finite, _write, value_text
from mcode.evaluation.judges import METRICS, Judges, Metric
from mcode.latents import choose_device, fast_dtype, quantise
from mcode.manifold import PRECISION, Manifold, ManifoldInfo, load, read_info
from mcode.nets import int8
from mcode.text import shown_name

PERCEPTION = ("fid256", "kid256", "squeezenet_fid256", "mobilenet_kid256", "niqe", "mobilenet", "vgg19", "ms_ssim")
"""What the sweep's vertical axis shows: the first of these that was measured."""
ABSOLUTE = "vgg19-l1"
"""The d_P that is no metric: measured of the models that were trained with it, for their distortion."""


@dataclass(frozen=True)
class Settings:
    """What a training's configuration says, None where the manifold's card has none. beta: 0 without a GAN loss. norm_d,
    conditional: of D, None without one. steps: done, those of what the training started from included. freeze: what the GAN
    leaves alone. alike: a hash of the whole configuration but name and seed."""

    rate_target: float | None
    beta: float | None
    k_mse: float | None
    k_perceptual: float | None
    perceptual: str | None
    norm_d: str | None
    conditional: bool | None
    norm: str | None
    blocks: int | None
    steps: int | None
    autoencoder: str | None = None
    freeze: str | None = None
    seed: int | None = None
    alike: str | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """All but rate target, beta and D: models of one kind belong to one sweep over beta."""
        return self.k_mse, self.k_perceptual, self.perceptual, self.norm, self.blocks, self.autoencoder, self.freeze

    @property
    def usual_d(self) -> bool:
        return not self.beta or (self.norm_d == "spectral" and self.conditional is True)


@dataclass(frozen=True)
class AblationRow:
    """Means over pictures. bpp: of files, coder huffman; estimate: bits per pixel under the manifold's own P, None where it
    has none; mse: of values 0..255; distortion: k_M MSE + k_P d_P as the training weighed them, None without d_P's network.
    """

    name: str
    manifold_id: str
    settings: Settings
    bpp: float
    estimate: float | None
    mse: float
    distortion: float | None
    scores: dict[str, float | None]


@dataclass(frozen=True)
class AblationReport:
    folder: str
    images: int
    metrics: tuple[Metric, ...]
    rows: tuple[AblationRow, ...]
    measured: int
    warnings: tuple[str, ...]
    files: tuple[str, ...]


def evaluate_ablation(
    folder: str | os.PathLike[str],
    manifolds: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    perceptual: str | os.PathLike[str] | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> AblationReport:
    """Measures manifolds, names or files, on the pictures of a folder; writes OUT/ablation.json, ablation.md and sweep.png.

    perceptual: the folder of `Judges`' weights. progress(pictures done, of how many). Raises InputError, ManifoldError.
    """
    out = Path(output)
    check_report_folder(folder, out)
    files = [out / name for name in ("ablation.json", "ablation.md", "sweep.png")]
    refuse_others(out, files, force)
    if not manifolds:
        raise InputError("--manifolds: name at least one")
    infos = [read_info(given) for given in manifolds]
    for info in infos:
        if info.frame_size is not None:
            raise InputError(f"manifold {info.name} holds one size alone; give manifolds for pictures of any size")
    if len({info.name for info in infos}) < len(infos):
        raise InputError("--manifolds: two have the same name; give each once")
    paths = stills.image_paths(Path(folder))
    where = choose_device(device).type
    judges = Judges(perceptual, where)
    judged = {metric.key for metric in judges.metrics}
    vgg = VggFeatures(perceptual, VGG_LAYERS).to(where) if "vgg19" in judged else None
    made_by = {f"MCode {info.name}": computed_by(info, _precision(info, where), where) for info in infos}
    cache = _Cache(out / "cache", judges, made_by)
    total, done, measured, rows = len(paths) * len(infos), 0, 0, []
    digests: list[str] = []
    sizes: dict[Path, tuple[int, int]] = {}
    for path in paths:
        rgb = stills.read_picture(path)
        sizes[path] = rgb.shape[0], rgb.shape[1]
        digests.append(_digest(rgb))
        if cache.get(None, digests[-1]) is None:
            cache.put(None, digests[-1], _Measured(0.0, {}, judges.patch_features(rgb)))
    _, originals = _mean([cache.read(None, digest) for digest in digests])
    for info in infos:
        model: Manifold | None = None
        settings = settings_of(info.card, info.config)
        own = vgg if settings.perceptual == ABSOLUTE else None
        codec = stills.StillCodec(f"MCode {info.name}", "ablation", _never)
        for path, digest in zip(paths, digests, strict=True):
            known = cache.get(codec, digest)
            if known is None or (own is not None and ABSOLUTE not in known.scores):
                model = model or load(info.path, where)
                cache.put(codec, digest, _measure(model, stills.read_picture(path), judges, own))
                measured += 1
            done += 1
            if progress:
                progress(done, total)
        mean, features = _mean([cache.read(codec, digest) for digest in digests])
        mean.scores.update(judges.compare_sets(originals, features))
        rows.append(_row(info.name, info.id, settings, mean))
    report = AblationReport(
        folder=os.fspath(folder),
        images=len(paths),
        metrics=judges.metrics,
        rows=tuple(rows),
        measured=measured,
        warnings=(*not_measured(judges, perceptual, [row.scores for row in rows]), *too_small(sizes, judges.metrics)),
        files=(),
    )
    with report_begun(out, files):
        files = _write_all(out, report)
    return AblationReport(**(vars(report) | {"files": tuple(map(str, files))}))


def settings_of(card: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    """From a manifold's card, which holds the training's configuration, and its config."""
    training, network = card.get("training_config") or {}, config.get("network") or {}
    loss, optimiser = training.get("loss") or {}, training.get("optimiser") or {}
    trained = {"rate_target", "k_mse"} <= set(loss)  # a training of the full-size networks, of whatever size
    gan = trained and (optimiser.get("adversarial_steps") or 0) > 0
    return Settings(
        rate_target=loss.get("rate_target"),
        beta=(loss.get("beta") if gan else 0.0) if trained else None,
        k_mse=loss.get("k_mse"),
        k_perceptual=loss.get("k_perceptual") if trained else None,
        perceptual=loss.get("perceptual") if trained else None,
        norm_d=loss.get("norm") if gan else None,
        conditional=loss.get("conditional") if gan else None,
        norm=network.get("norm"),
        blocks=network.get("blocks"),
        steps=card.get("steps") if not training.get("initial") or "start_steps" in card else None,
        autoencoder=network.get("autoencoder", "hific") if network.get("family") == "paper" else None,
        freeze=training.get("freeze"),
        seed=training.get("seed"),
        alike=_alike(training) if trained else None,
    )


def _alike(training: Mapping[str, Any]) -> str:
    """The start of a training with another seed is its own: scripts/ablation.py names both with -sSEED."""
    rest = {key: value for key, value in training.items() if key not in ("name", "seed")}
    if rest.get("initial"):
        rest["initial"] = rest["initial"].replace(f"-s{training.get('seed')}/", "/")
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def _precision(info: ManifoldInfo, device: str) -> str:
    """That `load` will choose."""
    if info.card.get(PRECISION) == "float32":
        return "float32"
    at = choose_device(device)
    if info.card.get(int8.RANGES) is not None and int8.supported(at):
        return "int8"
    return str(fast_dtype(at)).removeprefix("torch.")


def _never(rgb: np.ndarray) -> tuple[int, np.ndarray]:
    raise AssertionError("pictures are measured by _measure")


def _measure(model: Manifold, rgb: np.ndarray, judges: Judges, vgg: VggFeatures | None = None) -> _Measured:
    """Scores with what the table needs beside: mse, the bits under P where the networks have one, ABSOLUTE by vgg."""
    pixels = rgb.shape[0] * rgb.shape[1]
    size, decoded = stills.mcode_still(model, model.default_quality).code(rgb)
    scores = judges.score(rgb, decoded)
    scores["mse"] = float(np.square(rgb.astype(np.float32) - decoded).mean(dtype=np.float64))
    if vgg is not None:
        pair = [to_batch(each).to(judges.device) for each in (rgb, decoded)]
        scores[ABSOLUTE] = vgg.absolute_distance(*pair).item() if min(rgb.shape[:2]) >= VGG_SIDE else None
    estimate = None
    if (bits := getattr(model.net, "bits", None)) is not None:
        import torch

        symbols = quantise(model.analyse(rgb[None])[0], model.gain(model.default_quality))
        estimate = bits(torch.from_numpy(symbols).to(model.device).float()[None]) / pixels
    return _Measured(size * 8 / pixels, scores | {"estimate": estimate}, judges.patch_features(decoded))


def _row(name: str, manifold_id: str, settings: Settings, mean: _Measured) -> AblationRow:
    scores = dict(mean.scores)
    mse, estimate = scores.pop("mse"), scores.pop("estimate")
    assert mse is not None
    return AblationRow(name, manifold_id, settings, mean.bpp, estimate, mse, _distortion(settings, mse, scores), scores)


def _distortion(settings: Settings, mse: float, scores: Mapping[str, float | None]) -> float | None:
    if settings.k_mse is None:
        return None
    d_p: float | None = 0.0
    if settings.perceptual not in (None, "none") and settings.k_perceptual:
        d_p = scores.get(settings.perceptual)
    return None if d_p is None else settings.k_mse * mse + (settings.k_perceptual or 0.0) * d_p


# The sweep over beta


def sweep_points(report: AblationReport) -> tuple[Metric | None, dict[float, list[tuple[float, float, float]]]]:
    """The metric of the vertical axis, and (beta, distortion, value) rising by beta, for each rate target.

    Of the models of one kind, the kind with most of them, whose D is the usual one; of several seeds the first.
    """
    by_key = {metric.key: metric for metric in METRICS}
    firsts = [rows[0] for rows in _by_seed(report)]
    rows = [row for row in firsts if row.distortion is not None and row.settings.usual_d and row.settings.rate_target]
    key = next((k for k in PERCEPTION if any(row.scores.get(k) is not None for row in rows)), None)
    if key is None:
        return None, {}
    kinds = [row.settings.kind for row in rows]
    usual = max(kinds, key=lambda kind: (kinds.count(kind), kind[1] or 0.0))
    found: dict[float, list[tuple[float, float, float]]] = {}
    for row in rows:
        value = row.scores.get(key)
        if row.settings.kind == usual and value is not None:
            assert row.settings.rate_target is not None and row.settings.beta is not None and row.distortion is not None
            found.setdefault(row.settings.rate_target, []).append((row.settings.beta, row.distortion, value))
    return by_key[key], {target: sorted(points) for target, points in sorted(found.items())}


def _drawn(report: AblationReport) -> bytes | None:
    """Figure 5, as a PNG; None where no two models belong to a sweep."""
    metric, sweeps = sweep_points(report)
    if metric is None or not sweeps:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for target, points in sweeps.items():
        (line,) = axes.plot([d for _, d, _ in points], [v for _, _, v in points], marker="o", label=f"{target:g} bit/pixel")
        for beta, d, value in points:
            text = f"β = {beta:g}" if beta else "no GAN"
            axes.annotate(text, (d, value), textcoords="offset points", xytext=(6, 4), fontsize=8, color=line.get_color())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlabel("distortion d = k_M MSE + k_P d_P")
    axes.set_ylabel(metric.label)
    axes.set_title("Distortion against perception over β", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8.5)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


# Files


def _write_all(out: Path, report: AblationReport) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = []
    if (drawn := _drawn(report)) is not None:
        files.append(_write(out / "sweep.png", drawn))
    columns, lines = table(report)
    text = [f"{report.images} pictures of {shown_name(Path(report.folder).resolve())}.", ""]
    text += [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]
    columns, lines = seeds_table(report)
    if lines:
        text += ["", "Over seeds, the mean, and Δ between the highest and the lowest.", ""]
        text += [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]
    files.append(_write(out / "ablation.md", ("\n".join(text) + "\n").encode()))
    values = {"folder": report.folder, "images": report.images, "rows": [asdict(row) for row in report.rows]}
    content = json.dumps(_finite(values), indent=1, allow_nan=False)
    files.append(_write(out / "ablation.json", content.encode()))
    return files


def table(report: AblationReport) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of text: what distinguishes the trainings, then what was measured."""
    shown = [metric for metric in report.metrics if any(row.scores.get(metric.key) is not None for row in report.rows)]
    settings = ["rate_target", "beta", "perceptual", "norm_d", "conditional", "norm", "blocks", "autoencoder", "freeze"]
    kept = [name for name in settings if len({getattr(row.settings, name) for row in report.rows}) > 1]
    labels = {
        "rate_target": "r_t",
        "perceptual": "d_P",
        "norm_d": "norm in D",
        "norm": "norm in E, G",
        "conditional": "D sees y",
        "autoencoder": "E, G",
        "freeze": "fixed",
    }
    columns = ["model", *(labels.get(name, name) for name in kept), "steps", "bit/pixel", "under P", "d"]
    columns += [metric.label for metric in shown]
    lines = []
    for row in report.rows:
        own = [_setting(getattr(row.settings, name)) for name in kept]
        own.append("–" if row.settings.steps is None else f"{row.settings.steps:,}")
        rates = [f"{row.bpp:.3f}", _number(row.estimate, 3), _number(row.distortion, 3)]
        lines.append([row.name, *own, *rates, *(value_text(m.key, row.scores.get(m.key)) for m in shown)])
    return columns, lines


def seeds_table(report: AblationReport) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of text, of models with several seeds: mean and largest difference (table 1)."""
    shown = [metric for metric in report.metrics if any(row.scores.get(metric.key) is not None for row in report.rows)]
    columns = ["model", "seeds", "bit/pixel", "d", *(metric.label for metric in shown)]
    lines = []
    for rows in _by_seed(report):
        if len(rows) > 1:
            cells = [_spread("", [row.bpp for row in rows]), _spread("", [row.distortion for row in rows])]
            cells += [_spread(metric.key, [row.scores.get(metric.key) for row in rows]) for metric in shown]
            lines.append([rows[0].name, ", ".join(f"{row.settings.seed}" for row in rows), *cells])
    return columns, lines


def _by_seed(report: AblationReport) -> list[list[AblationRow]]:
    """Rows that differ in seed alone together, in the order of the first; those without a known training by themselves."""
    found: dict[Any, list[AblationRow]] = {}
    for row in report.rows:
        key = (row.settings.alike, row.settings.steps) if row.settings.alike else row.name
        found.setdefault(key, []).append(row)
    return [sorted(rows, key=lambda row: row.settings.seed or 0) for rows in found.values()]


def _spread(key: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return value_text(key, None)
    return f"{value_text(key, math.fsum(known) / len(known))} (Δ {value_text(key, max(known) - min(known))})"


def _setting(value: Any) -> str:
    return {None: "–", True: "yes", False: "no"}.get(value, f"{value}") if not isinstance(value, float) else f"{value:g}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
