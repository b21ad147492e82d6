"""`mcode evaluate images`: rate against distortion and rate against perception of picture codecs, over a folder.

It measures; `images_report` makes the pages. What is measured is kept in OUT/cache, one file for each codec, setting and
picture, so that an evaluation that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import PIL

from mcode import __version__, baseline
from mcode.errors import InputError
from mcode.evaluation import stills
from mcode.evaluation.bd import BdRate, bd_rate, require_bjontegaard
from mcode.evaluation.frechet import PATCH, patch_count
from mcode.evaluation.judges import Judges, Metric, least_size
from mcode.evaluation.niqe import DAMAGED
from mcode.evaluation.stills import REFINED, StillCodec
from mcode.latents import choose_device
from mcode.manifold import PRICES, Manifold, ManifoldInfo, load
from mcode.nets import int8
from mcode.whole import refuse_existing, whole, write_whole

if TYPE_CHECKING:
    from mcode.refine import Refiner

CODECS = ("mcode", "jpeg", "jpeg2000", "webp", "h265", "av1")
ANCHOR = "H.265 intra 4:4:4"
CACHE_FORMAT = 1
ANEW = "add --force to write the report anew (what is measured stays measured)"
BEGUN = "report-begun"
ABOUT_EQUAL = 1.1
"""Rates within this factor of each other are called equal."""


@dataclass(frozen=True)
class Family:
    """A codec at any setting: make(value); settings: those of the curves; worst, best, step: for searching a rate. models:
    the manifolds, where it is MCode."""

    make: Callable[[float], StillCodec]
    settings: tuple[float, ...]
    worst: float
    best: float
    step: float
    models: tuple[Manifold, ...] = ()


FAMILIES: dict[str, Family] = {
    "jpeg": Family(lambda q: stills.jpeg(round(q)), (5, 10, 20, 35, 50), 1, 95, 1),
    "jpeg2000": Family(stills.jpeg2000, (167, 83, 50, 33), 240, 8, 1),
    "webp": Family(lambda q: stills.webp(round(q)), (1, 5, 15, 40, 60), 0, 100, 1),
    "h265": Family(lambda crf: stills.intra("h265", crf, "medium"), (46, 42, 38, 34, 30, 26), 51, 10, 0.5),
    # From CRF 63 to SVT-AV1's last, 70, a single picture's bytes fall by a tenth only, and rise between.
    "av1": Family(lambda crf: stills.intra("av1", crf, "4"), (60, 52, 44, 37, 31), 63, 10, 1),
}


@dataclass(frozen=True)
class ImageRow:
    """One codec at one setting: means over pictures, and the metrics of sets. None: some picture was too small."""

    codec: str
    setting: str
    bpp: float
    scores: dict[str, float | None]


@dataclass(frozen=True)
class BdRow:
    """bits against ANCHOR at equal values of `metric`; None where the curves do not allow it."""

    codec: str
    metric: str
    bd: BdRate | None


@dataclass(frozen=True)
class Crop:
    """One codec in the page of close-ups. floor: the codec cannot go as low as the others. decoded: uint8 (H, W, 3)."""

    codec: str
    setting: str
    bpp: float
    floor: bool
    scores: dict[str, float | None]
    decoded: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class CropRow:
    """name: of the picture's file. original: uint8 (H, W, 3)."""

    name: str
    original: np.ndarray = field(repr=False)
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class ImagesReport:
    """originals: scores of the pictures themselves, where a metric needs no reference. patches: 256x256, of all
    pictures, for the metrics of sets; 0 where none is measured. patched: pictures that are large enough for one.

    measured: pictures coded in this run, of `total`; the others came from the cache.
    """

    folder: str
    images: int
    patches: int
    patched: int
    metrics: tuple[Metric, ...]
    rows: tuple[ImageRow, ...]
    bd_rates: tuple[BdRow, ...]
    originals: dict[str, float | None]
    manifolds: dict[str, str]
    measured: int
    total: int
    warnings: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Measured:
    """From the cache: of one picture by one codec at one setting."""

    bpp: float
    scores: dict[str, float | None]
    features: dict[str, np.ndarray]


def evaluate_images(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    codecs: Sequence[str] = CODECS,
    manifolds: Sequence[str | os.PathLike[str] | Manifold] = ("general",),
    qualities: Sequence[int] | None = None,
    perceptual: str | os.PathLike[str] | None = None,
    coder: str = "huffman",
    refine: int = 0,
    refine_by: str = "eye",
    crops: int = 4,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> ImagesReport:
    """Measures codecs on the pictures of a folder and writes OUT/results.json, a PNG for each metric, index.html, crops.html.

    codecs: from CODECS. manifolds: a curve each; "CURVE=A+B+C" is one curve of several, from low rates to high, as models
    trained for one rate each make. qualities: of each manifold, all if None. perceptual: the folder of `Judges`' weights.
    coder, refine, refine_by: of manifolds, as when encoding; they are measured without it, too. crops: so many pictures,
    evenly spaced, go into the page of close-ups, each by every codec at about the rate of the first codec's middle setting.
    progress(pictures coded, of how many). Raises InputError, ManifoldError.
    """
    from mcode.evaluation import images_report

    if unknown := [name for name in codecs if name not in CODECS]:
        raise InputError(f"unknown codec {unknown[0]!r}; choose from {', '.join(CODECS)}")
    if "h265" in codecs:  # what they compare with
        require_bjontegaard()
    out = Path(output)
    check_report_folder(folder, out)
    paths = stills.image_paths(Path(folder))
    judges = Judges(perceptual, choose_device(device).type)
    files = list(images_report.names(out, judges.metrics, crops > 0))
    refuse_others(out, files, force)
    families = _families(codecs, manifolds, qualities, device, _Options(coder, refine, refine_by, perceptual))
    cache = _Cache(out / "cache", judges, _made_by(families, refine_by))
    listed = [family.make(value) for family in families.values() for value in family.settings]
    total, done, measured = len(paths) * len(listed), 0, 0
    digests, sizes = [], {}
    for path in paths:
        rgb = stills.read_picture(path)
        sizes[path] = rgb.shape[0], rgb.shape[1]
        digests.append(_digest(rgb))
        if cache.get(None, digests[-1]) is None:
            scores = {m.key: judges.score(rgb, rgb).get(m.key) for m in judges.metrics if m.key == "niqe"}
            cache.put(None, digests[-1], _Measured(0.0, scores, judges.patch_features(rgb)))
        for codec in listed:
            if cache.get(codec, digests[-1]) is None:
                try:
                    found = _measure(codec, rgb, judges)
                except InputError as error:  # of a size that the codec does not take
                    raise InputError(f"{path}: {error}; take it out of the folder, or the codec out of --codecs") from error
                cache.put(codec, digests[-1], found)
                measured += 1
            done += 1
            if progress:
                progress(done, total)
    originals, features = _mean([cache.read(None, digest) for digest in digests])
    rows = []
    for codec in listed:
        mean, decoded = _mean([cache.read(codec, digest) for digest in digests])
        mean.scores.update(judges.compare_sets(features, decoded))
        rows.append(ImageRow(codec.name, codec.setting, mean.bpp, mean.scores))
    close_ups = list(_close_ups(paths, families, judges, crops))
    report = ImagesReport(
        folder=os.fspath(folder),
        images=len(paths),
        patches=max((len(v) for v in features.values()), default=0),
        patched=sum(patch_count(*size) > 0 for size in sizes.values()),
        metrics=judges.metrics,
        rows=tuple(rows),
        bd_rates=tuple(_bd_rates(rows, judges.metrics)),
        originals={k: v for k, v in originals.scores.items() if v is not None},
        manifolds={model.name: model.id for family in families.values() for model in family.models},
        measured=measured,
        total=total,
        warnings=(
            *not_measured(judges, perceptual, [row.scores for row in rows]),
            *too_small(sizes, judges.metrics),
            *too_flat(sizes, rows),
        ),
        files=(),
    )
    with report_begun(out, [*files, out / "crops"] if crops > 0 else files):
        files = images_report.write(out, report, close_ups)
    return ImagesReport(**(vars(report) | {"files": tuple(map(str, files))}))


def check_report_folder(pictures: str | os.PathLike[str], out: Path) -> None:
    """Raises InputError where no report on the pictures of a folder can be written to `out`."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder for the report")
    if out.exists() and Path(pictures).exists() and out.samefile(pictures):
        raise InputError(f"{out}: is the folder of the pictures, and plots would be measured with them; give another folder")


def refuse_others(out: Path, files: Iterable[Path], force: bool) -> None:
    """`refuse_existing` of a report's files, which lets pass what a report left that was stopped while it was written."""
    ours = _left(out)
    for path in files:
        refuse_existing([path], force or path.relative_to(out).parts[0] in ours, ANEW)


@contextmanager
def report_begun(out: Path, files: Iterable[Path]) -> Iterator[None]:
    """While files, those `refuse_others` let pass, are written: a mark in OUT/cache says that they are ours. It stays where
    that is stopped."""
    mark = out / "cache" / BEGUN
    mark.parent.mkdir(parents=True, exist_ok=True)
    names = {path.relative_to(out).parts[0] for path in files}
    write_whole(mark, json.dumps(sorted(names | _left(out))))
    yield
    mark.unlink(missing_ok=True)


def _left(out: Path) -> set[str]:
    """Names in `out` that a stopped report may have left."""
    try:
        return set(json.loads((out / "cache" / BEGUN).read_bytes()))
    except (OSError, ValueError, TypeError):
        return set()


def not_measured(
    judges: Judges, perceptual: str | os.PathLike[str] | None, scores: Sequence[Mapping[str, float | None]]
) -> tuple[str, ...]:
    """Warnings of metrics that the report lacks: without weights, or in `scores`, each row's, from an old cache."""
    missing = ", ".join(f"{label} (no {file})" for label, file in judges.missing.items())
    if perceptual is None:
        missing = "all that need weights; give their folder with --perceptual"
    warnings = [f"not measured: {missing}"] if missing else []
    if any(row.get("ssim") is None for row in scores):
        warnings.append("SSIM is missing where pictures were measured before it was; delete OUT/cache to measure them again")
    return tuple(warnings)


def too_small(sizes: Mapping[Path, tuple[int, int]], metrics: Sequence[Metric]) -> Iterator[str]:
    """A warning of each metric that small pictures take from all, and one of what the metrics of sets are over. sizes: each
    picture's (height, width) in pixels."""
    for metric in metrics:
        lacking = {path: least for path, size in sizes.items() if (least := least_size(metric.key, *size))}
        if lacking:
            (first, least), *more = lacking.items()
            others = f" and {len(more)} more are" if more else " is"
            yield (
                f"{metric.label} is left out of all means: {first}{others} smaller than the {least} it needs; "
                f"take {'them' if more else 'it'} out of the folder to have it"
            )
    if of_sets := ", ".join(metric.label for metric in metrics if metric.network):
        counts = [patch_count(*size) for size in sizes.values()]
        total, large, patch = sum(counts), sum(count > 0 for count in counts), f"{PATCH}x{PATCH}"
        if total < 2:
            yield f"{of_sets} are left out: they need two patches of {patch}, the pictures have {total or 'none'}"
        elif large < len(counts):
            yield f"{of_sets} are over {total} patches of {patch} of {large} of {len(counts)} pictures; the others are smaller"


def too_flat(sizes: Mapping[Path, tuple[int, int]], rows: Sequence[ImageRow]) -> Iterator[str]:
    """A warning where NIQE, which judges texture, finds none in a picture that is large enough."""
    lacking = [row for row in rows if row.scores.get("niqe", 0.0) is None]
    if lacking and not any(least_size("niqe", *size) for size in sizes.values()):
        first = f"{lacking[0].codec}, {lacking[0].setting}"
        yield f"NIQE is missing in {len(lacking)} of {len(rows)} rows, {first} the first: a picture comes out flat there"


def _families(
    codecs: Sequence[str],
    manifolds: Sequence[str | os.PathLike[str] | Manifold],
    qualities: Sequence[int] | None,
    device: str,
    options: _Options,
) -> dict[str, Family]:
    """By codec name, MCode's by "MCode CURVE"; in the order of the report. With refinement both, refined and not."""
    found: dict[str, Family] = {}
    for name in dict.fromkeys(codecs):
        if name != "mcode":
            family = FAMILIES[name]
            found[family.make(family.settings[0]).name] = family
            continue
        for given in manifolds:
            curve, models = _curve(given, device)
            for model in models:
                if model.frame_size is not None:
                    width, height = model.frame_size
                    raise InputError(f"manifold {model.name} holds {width}x{height} alone; give one for pictures of any size")
                if bad := [q for q in qualities or () if not 1 <= q <= model.qualities]:
                    raise InputError(f"--qualities {bad[0]}: manifold {model.name} has qualities 1 to {model.qualities}")
            label = f"MCode {curve}"
            if label in found:
                raise InputError(f"--manifold: two manifolds are named {curve}; give each once")
            points = [(model, quality) for model in models for quality in range(1, model.qualities + 1)]
            wanted = tuple(i for i, (_, quality) in enumerate(points, start=1) if not qualities or quality in qualities)
            for kind, chosen in ((REFINED, options), ("", replace(options, refine=0))):
                if not kind or options.refine:
                    make = _mcode_maker(label + kind, points, chosen)
                    found[label + kind] = Family(make, wanted, 1, len(points), 1, models)
    return found


def _curve(given: str | os.PathLike[str] | Manifold, device: str) -> tuple[str, tuple[Manifold, ...]]:
    """A curve's name and its manifolds. Raises InputError, ManifoldError."""
    if isinstance(given, Manifold):
        return given.name, (given,)
    name, joined, members = os.fspath(given).partition("=")
    if not joined or Path(given).exists():
        model = load(given, device)
        return model.name, (model,)
    files = members.split("+")
    if not name or not all(files):
        raise InputError(f"--manifold {given}: one curve of several manifolds is NAME=FILE+FILE, from low rates to high")
    models = tuple(load(file, device) for file in files)
    names = [model.name for model in models]
    if twice := [model for model in names if names.count(model) > 1]:  # rows are told apart by them
        raise InputError(
            f"--manifold {given}: two of its manifolds are named {twice[0]}; give each once, or make one anew with --name"
        )
    return name, models


@dataclass(frozen=True)
class _Options:
    """How manifolds encode."""

    coder: str = "huffman"
    refine: int = 0
    refine_by: str = "eye"
    weights: str | os.PathLike[str] | None = None


def _made_by(families: Mapping[str, Family], refine_by: str) -> dict[str, str]:
    """What measurements of MCode's families depend on beside their settings: the manifolds, and what refines."""
    found = {}
    for name, family in families.items():
        if family.models:
            found[name] = " ".join(computed_by(m, m.precision, m.device.type) for m in family.models)
        if family.models and name.endswith(REFINED):
            from mcode.refine import fingerprint

            found[name] += f" {fingerprint(refine_by)}"
    return found


def computed_by(model: Manifold | ManifoldInfo, precision: str, device: str) -> str:
    """What decides, beside settings and pictures, what a manifold comes to: what its card says of integers and of prices, which
    its id leaves out, too. device: its type."""
    said = json.dumps([model.card.get(key) for key in (int8.RANGES, PRICES)], sort_keys=True)
    return f"{model.id} {hashlib.sha256(said.encode()).hexdigest()[:8]} {precision} {device} {__version__}"


def _mcode_maker(name: str, points: Sequence[tuple[Manifold, int]], options: _Options) -> Callable[[float], StillCodec]:
    """From 1 to the codec of that point. Of several manifolds the setting names the one."""
    models = tuple({model.id: model for model, _ in points}.values())
    refiners: dict[str, Refiner] = {}
    for model in models:
        if options.coder == "range" and model.hyper is None:
            raise InputError(f"--coder range: manifold {model.name} has no hyperprior; its coders are huffman and fixed")
        if options.refine:
            from mcode.refine import Refiner

            refiners[model.id] = Refiner(model, options.refine, judge=options.refine_by, weights=options.weights)

    def make(point: float) -> StillCodec:
        model, quality = points[round(point) - 1]
        codec = stills.mcode_still(model, quality, options.coder, refiners.get(model.id))
        return replace(codec, name=name, setting=codec.setting if len(models) == 1 else f"{model.name}, {codec.setting}")

    return make


def _measure(codec: StillCodec, rgb: np.ndarray, judges: Judges) -> _Measured:
    size, decoded = codec.code(rgb)
    scores = judges.score(rgb, decoded)
    return _Measured(size * 8 / (rgb.shape[0] * rgb.shape[1]), scores, judges.patch_features(decoded))


def _mean(found: Sequence[_Measured]) -> tuple[_Measured, dict[str, np.ndarray]]:
    """Means over pictures (None where one is missing), and each network's features of all patches."""
    scores: dict[str, float | None] = {}
    for key in found[0].scores:
        scores[key] = stills.mean([f.scores[key] for f in found])
    bpp = math.fsum(f.bpp for f in found) / len(found)
    features = {}
    for name in found[0].features:
        parts = [f.features[name] for f in found if len(f.features[name])]
        features[name] = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return _Measured(bpp, scores, {}), features


def _bd_rates(rows: Sequence[ImageRow], metrics: Sequence[Metric]) -> Iterator[BdRow]:
    names = list(dict.fromkeys(row.codec for row in rows))
    if ANCHOR not in names:
        return
    for name in names:
        for metric in metrics if name != ANCHOR else ():
            curves = [
                [(row.bpp, value) for row in rows if row.codec == codec and (value := row.scores.get(metric.key)) is not None]
                for codec in (ANCHOR, name)
            ]
            yield BdRow(name, metric.key, bd_rate(*curves, higher_is_better=metric.higher_is_better))


def _close_ups(paths: Sequence[Path], families: dict[str, Family], judges: Judges, count: int) -> Iterator[CropRow]:
    first = next(iter(families.values()))
    middle = first.settings[len(first.settings) // 2]
    if len(first.models) == 1 and first.models[0].default_quality in first.settings:
        middle = first.models[0].default_quality
    for path in paths[:: max(1, -(-len(paths) // count))][:count] if count else []:
        rgb = stills.read_picture(path)
        pixels = rgb.shape[0] * rgb.shape[1]
        target = first.make(middle).code(rgb)[0] * 8 / pixels
        found = []
        for family in families.values():
            codec, size, decoded = at_rate(family, rgb, target, middle if family is first else None)
            bpp = size * 8 / pixels
            found.append(Crop(codec.name, codec.setting, bpp, bpp > target * ABOUT_EQUAL, judges.score(rgb, decoded), decoded))
        yield CropRow(path.name, rgb, tuple(found))


def at_rate(family: Family, rgb: np.ndarray, bpp: float, setting: float | None = None) -> tuple[StillCodec, int, np.ndarray]:
    """The codec at the setting whose rate is nearest to bpp on this picture, its bytes, and the decoded picture.

    By halving: rates must rise from family.worst to family.best. setting: no search, just this one.
    """
    coded: dict[int, tuple[StillCodec, int, np.ndarray]] = {}
    sign = 1 if family.best > family.worst else -1

    def at(index: int) -> tuple[StillCodec, int, np.ndarray]:
        if index not in coded:
            codec = family.make(family.worst + sign * index * family.step)
            coded[index] = (codec, *codec.code(rgb))
        return coded[index]

    if setting is not None:
        codec = family.make(setting)
        return (codec, *codec.code(rgb))
    wanted = bpp * rgb.shape[0] * rgb.shape[1] / 8
    low, high = 0, round(abs(family.best - family.worst) / family.step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle)[1] <= wanted else (low, middle)
    return min((at(low), at(high)), key=lambda found: abs(math.log(found[1] / wanted)))


def _digest(rgb: np.ndarray) -> str:
    return hashlib.sha256(f"{rgb.shape}".encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


class _Cache:
    """Measurements by codec, setting and picture. Named by all that they depend on, so that nothing stale is read."""

    def __init__(self, folder: Path, judges: Judges, manifolds: dict[str, str]) -> None:
        self.folder, self.manifolds = folder, manifolds
        self._names = set(judges.patch_features(np.zeros((256, 256, 3), np.uint8)))
        self._identity = [CACHE_FORMAT, judges.identity]
        self._libraries = [PIL.__version__, av.__version__]

    def _path(self, codec: StillCodec | None, picture: str) -> Path:
        if codec is None:
            made_by: list[Any] = ["original"]
        else:  # of the encoders' options the others have none
            libraries = [*self._libraries, baseline.REVISION] if " intra " in codec.name else self._libraries
            made_by = [codec.name, codec.setting, self.manifolds.get(codec.name, libraries)]
        key = hashlib.sha256(json.dumps([*self._identity, made_by, picture]).encode()).hexdigest()[:32]
        slug = re.sub(r"[^a-z0-9]+", "-", codec.name.lower()).strip("-") if codec else "original"
        return self.folder / slug / f"{key}.npz"

    def get(self, codec: StillCodec | None, picture: str) -> _Measured | None:
        """None where it was not measured, or where the file is damaged."""
        try:
            with open(self._path(codec, picture), "rb") as opened, np.load(opened) as file:
                known = json.loads(str(file["scores"]))
                scores = {"ssim": None, **known["scores"]}  # files from before it was measured have none
                return _Measured(known["bpp"], scores, {name: file[name] for name in self._names})
        except DAMAGED:
            return None

    def read(self, codec: StillCodec | None, picture: str) -> _Measured:
        found = self.get(codec, picture)
        if found is None:
            raise InputError(f"{self._path(codec, picture)}: gone or damaged while evaluating; start again, it will go on")
        return found

    def put(self, codec: StillCodec | None, picture: str, found: _Measured) -> None:
        path = self._path(codec, picture)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"scores": json.dumps({"bpp": found.bpp, "scores": found.scores}), **found.features}
        with whole(path) as part, open(part, "wb") as file:
            np.savez(file, **arrays)


def to_json(report: ImagesReport) -> dict[str, Any]:
    """results.json: plain values, labels included."""
    return {
        **{k: v for k, v in asdict(report).items() if k not in ("metrics", "rows", "bd_rates", "files")},
        "anchor": ANCHOR,
        "metrics": [asdict(metric) for metric in report.metrics],
        "rows": [{"codec": r.codec, "setting": r.setting, "bpp": r.bpp, **r.scores} for r in report.rows],
        "bd_rates": [
            {
                "codec": row.codec,
                "metric": row.metric,
                "percent": row.bd.percent if row.bd else None,
                "overlap": row.bd.overlap if row.bd else None,
            }
            for row in report.bd_rates
        ],
    }
