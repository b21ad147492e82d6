"""`mcode evaluate paper`: every table and figure of Santurkar, Budden, Shavit 2017 made anew, with the paper's beside.

Each part writes PART.json and pictures into the output folder and can be made by itself; the page shows all parts that are
there. Manifolds are looked for by name (configs/paper/NAME.toml trains them); what is missing is left out and named.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, ManifoldError
from ...whole import refuse_existing, write_whole
from . import classifier, images, page, sets, video

if TYPE_CHECKING:
    from ...manifold import Manifold

PARTS = ("figure3", "figure4a", "figure4b", "figure5", "figure6", "figure7", "talking-head")
TITLES = {
    "figure3": "Figure 3: small pictures",
    "figure4a": "Figure 4a: what a classifier still sees",
    "figure4b": "Figure 4b: bit errors",
    "figure5": "Figure 5: KTH actions",
    "figure6": "Figure 6: DCGAN and WGAN",
    "figure7": "Figure 7: graceful degradation",
    "talking-head": "Beyond the paper: a talking head",
}
PICTURES = {
    "figure3": tuple(f"figure3-{which.name}.png" for which in sets.SETS),
    "figure4a": ("figure4a.png",),
    "figure4b": ("figure4b.png",),
    "figure5": ("figure5-frames.png", "figure5.png"),
    "figure6": ("figure6.png",),
    "figure7": ("figure7.png",),
    "talking-head": ("talking-head-frames.png", "talking-head.png"),
}
FOREIGN = "add --force to replace it or choose another folder"
SHIPPED = Path(__file__).parents[2] / "manifolds" / "paper"
MOST_PICTURES = 1000
"""Test pictures of a set in figures 3 and 4b; figure 4a takes all."""
_IMAGE_COLUMNS = ("codec", "setting", "bit/pixel", "factor", "PSNR dB", "SSIM", "VGG19", "MobileNet")
_VIDEO_COLUMNS = ("codec", "setting", "kbit/s", "before Huffman", "PSNR dB", "SSIM", "VGG19", "MobileNet")


@dataclass(frozen=True)
class PaperReport:
    """made: parts measured now. missing: manifolds that were not found. files: what was written."""

    made: tuple[str, ...]
    missing: tuple[str, ...]
    files: tuple[str, ...]
    page: str


class _Room:
    """What every part needs."""

    def __init__(
        self,
        data: Path,
        out: Path,
        folders: Sequence[Path],
        weights: str | None,
        device: str,
        most: int,
        say: Callable[[str], None],
    ) -> None:
        self.data, self.out, self.folders, self.device, self.most, self.say = data, out, folders, device, most, say
        self.features = images.Features(weights) if weights else None
        self.missing: list[str] = []
        self._loaded: dict[str, Manifold] = {}

    def manifold(self, name: str) -> Manifold | None:
        """By name, from the folders given; None where it is not there."""
        from ...manifold import load

        if name not in self._loaded:
            path = next((f / f"{name}.safetensors" for f in self.folders if (f / f"{name}.safetensors").is_file()), None)
            if path is None:
                if name not in self.missing:
                    self.missing.append(name)
                return None
            self._loaded[name] = load(path, self.device)
        return self._loaded[name]

    def manifolds(self, *names: str) -> dict[str, Manifold]:
        found = {name: self.manifold(name) for name in names}
        return {name: model for name, model in found.items() if model is not None}

    def of_set(self, which: sets.PictureSet) -> dict[str, Manifold]:
        return self.manifolds(*(f"{which.name}-{middle}{m}" for middle in ("", "residual-") for m in (100, 25)))

    def write(self, part: str, found: dict[str, Any]) -> None:
        """Before the part's pictures: by it they are known as ours."""
        text = json.dumps({"part": part, "title": TITLES[part], **_facts(), **found}, indent=1)
        write_whole(self.out / f"{part}.json", text)


def evaluate_paper(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    only: Sequence[str] = PARTS,
    manifolds: str | os.PathLike[str] | None = None,
    perceptual: str | None = None,
    device: str = "auto",
    most: int = MOST_PICTURES,
    force: bool = False,
    say: Callable[[str], None] | None = None,
) -> PaperReport:
    """Measures the parts named and writes their JSON and pictures, and index.html over all parts in `out`. What an evaluation
    before has written there is replaced, other files with force alone.

    data: the folder with small/, kth/ and grid_s1/. manifolds: a folder of trained ones (NAME.safetensors, or
    NAME/NAME.safetensors as `mcode train` leaves them), looked at before those of the package. perceptual: the folder of
    VGG19's and MobileNet's weights; without it no feature distances. Raises InputError.
    """
    data, out = Path(data), Path(out)
    sets.check(data)
    for part in only:
        if part not in PARTS:
            raise InputError(f"there is no part {part!r}; choose from {', '.join(PARTS)}")
    folders = [SHIPPED]
    if manifolds is not None:
        given = Path(manifolds)
        if not given.is_dir():
            raise InputError(f"{given}: no such folder of manifolds")
        folders = [given, *(p for p in sorted(given.iterdir()) if p.is_dir()), SHIPPED]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder for the results")
    before = [part for part in PARTS if _is_ours(out, part)]
    _shown(out, [part for part in PARTS if part not in only], only)
    for part in only:
        refuse_existing((out / name for name in (f"{part}.json", *PICTURES[part])), force or part in before, FOREIGN)
    refuse_existing([out / "index.html"], force or bool(before), FOREIGN)
    out.mkdir(parents=True, exist_ok=True)
    room = _Room(data, out, folders, perceptual, device, most, say or (lambda text: None))
    rooms = {
        "figure3": _figure3,
        "figure4a": _figure4a,
        "figure4b": _figure4b,
        "figure5": _figure5,
        "figure6": _figure6,
        "figure7": _figure7,
        "talking-head": _talking_head,
    }
    for part in only:
        rooms[part](room)
    page.write_page(out / "index.html", _facts(), _shown(out, PARTS, only))
    files = sorted(str(p) for p in out.iterdir() if p.suffix in {".json", ".png", ".html"})
    return PaperReport(tuple(only), tuple(room.missing), tuple(files), str(out / "index.html"))


def _is_ours(out: Path, part: str) -> bool:
    """Whether the part's JSON is one of `_Room.write`."""
    try:
        return bool(json.loads((out / f"{part}.json").read_bytes())["part"] == part)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _facts() -> dict[str, str]:
    import torch

    return {
        "made": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
    }


def _figure3(room: _Room) -> None:
    found: dict[str, Any] = {"sets": {}}
    drawn = {}
    for which in sets.SETS:
        pixels = sets.load(room.data, which, room.most)
        rows, pictures = images.figure3(which, pixels, room.of_set(which), room.features, room.say)
        found["sets"][which.title] = {
            "stands_for": which.stands_for,
            "pictures": len(pixels),
            "rows": images.as_dicts(rows),
        }
        chosen = np.linspace(0, len(pixels) - 1, 12).astype(int)
        lines = [(_title(key, rows), value[chosen]) for key, value in pictures.items()]
        drawn[f"figure3-{which.name}.png"] = page.sheet(lines, 2 if which.size == 32 else 1)
    room.write("figure3", found)
    for name, picture in drawn.items():
        page.save_picture(room.out / name, picture)


def _title(key: str, rows: Sequence[images.Scores]) -> str:
    for row in rows:
        if key == f"{row.codec} {row.setting}":
            return f"{key}\n{row.bpp:.3f} bit/pixel\n{row.psnr_db:.1f} dB, SSIM {row.ssim:.3f}"
    return key


def _figure4a(room: _Room) -> None:
    place = room.out / "classifier.safetensors"
    test, labels = sets.load_cifar10(room.data, "test")
    if place.is_file():
        net, facts = classifier.load(place)
    else:
        room.say("training the classifier on uncompressed CIFAR-10")
        pixels, numbers = sets.load_cifar10(room.data, "train")
        net = classifier.train(pixels, numbers, report=lambda row: room.say(f"classifier: {row}"))
        facts = {"epochs": classifier.EPOCHS}
        classifier.save(net, place, facts)
    rows = images.figure4a(net, test, labels, room.of_set(sets.CIFAR10), room.say)
    room.write("figure4a", {"rows": rows, "classifier": facts, "paper": images.PAPER_ACCURACY, "pictures": len(test)})
    page.plot_accuracy(room.out / "figure4a.png", rows, images.PAPER_ACCURACY)


def _figure4b(room: _Room) -> None:
    found = {}
    for which in sets.SETS:
        pixels = sets.load(room.data, which, min(room.most, 300))
        found[which.title] = images.figure4b(which, pixels, room.of_set(which), room.say)
    room.write("figure4b", {"sets": found})
    page.plot_noise(room.out / "figure4b.png", found)


def _figure5(room: _Room) -> None:
    clips = sets.load_clips(room.data, sets.KTH_TEST, (64, 64), 1)
    named = _named(room, (("NCode", "kth-100", 8), ("NCode residual", "kth-residual", None)))
    rows, pictures = video.compare(named, clips, (1, 2, 4, 8), room.say)
    chosen = [(key, np.stack([c[len(c) * k // 5] for k in (1, 3) for c in value])) for key, value in pictures.items()]
    scores, frames = video.as_dicts(rows), sum(map(len, clips))
    room.write("figure5", {"rows": scores, "paper": list(video.PAPER_FIGURE5), "clips": len(clips), "frames": frames})
    page.save_picture(room.out / "figure5-frames.png", page.sheet([k for k in chosen if _in_strip(k[0])], 2))
    page.plot_rates(room.out / "figure5.png", "KTH, 64x64", scores, (("psnr_db", "PSNR, dB"), ("ssim", "SSIM")))


def _in_strip(key: str) -> bool:
    return "N = " not in key or key.endswith(("N = 1", "N = 4", "N = 8"))


def _named(room: _Room, wanted: Sequence[tuple[str, str, int | None]]) -> list[tuple[str, Any, int | None]]:
    """What is there of (label, manifold, quality); a residual manifold's linear part follows it, under its own name."""
    named: list[tuple[str, Any, int | None]] = []
    for label, name, quality in wanted:
        model = room.manifold(name)
        if model is None:
            continue
        named.append((label, model, quality))
        if "residual" in label:
            named.append((f"{label}, linear part alone", LinearPart(model), quality))
    return named


class LinearPart:
    """A residual manifold without its network: the same symbols, hence the same bits."""

    def __init__(self, model: Manifold) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def synthesise(self, latents: Any, width: int, height: int) -> np.ndarray:
        """As Manifold.synthesise."""
        import torch

        net: Any = self._model.net
        with torch.inference_mode():
            x = net.base(latents.flatten(1).float() - net.offset)
            x = x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return np.array(np.broadcast_to(x.cpu().numpy(), (*x.shape[:-1], 3)))


def _figure6(room: _Room) -> None:
    clips = sets.load_clips(room.data, (sets.HEAD_TEST,), (128, 128), 3)
    frames = np.concatenate([clip[::15] for clip in clips])
    rows, lines = [], [("original", frames[:: max(1, len(frames) // 7)][:7])]
    for label, name in (("DCGAN", "head-dcgan-50"), ("WGAN", "head-wgan-50")):
        model = room.manifold(name)
        if model is None:
            continue
        codec = images.Coordinates(model, 8)
        room.say(f"{label} {codec.name}")
        coded = codec(frames)
        rows.append(images.judge(label, codec.name, frames, coded, 3, room.features))
        lines.append((f"{label} {codec.name}", coded.pictures[:: max(1, len(frames) // 7)][:7]))
        lines.append((f"{label}, drawn\nfrom the prior", _drawn(model, 7)))
    room.write("figure6", {"rows": images.as_dicts(rows), "frames": len(frames)})
    page.save_picture(room.out / "figure6.png", page.sheet(lines))


def _drawn(model: Manifold, count: int) -> np.ndarray:
    import torch

    z = torch.rand(count, model.channels, 1, 1, generator=torch.Generator().manual_seed(7)) * 2
    width, height = model.frame_size or (0, 0)
    return model.synthesise(z.to(model.device), width, height)


def _figure7(room: _Room) -> None:
    lines: list[tuple[str, np.ndarray]] = []
    for which in (sets.FACES, sets.OUTDOOR):
        lines += images.strip(which, sets.load(room.data, which, 64), room.of_set(which))
    room.write("figure7", {"rows": [title.replace("\n", ", ") for title, _ in lines]})
    page.save_picture(room.out / "figure7.png", page.sheet(lines))


def _talking_head(room: _Room) -> None:
    from ...manifold import load

    clips = sets.load_clips(room.data, (sets.HEAD_TEST,), (128, 128), 3)
    linear = room.out / "talking-head-linear.safetensors"
    if not linear.is_file():
        from ...training.adapt import adapt_linear

        room.say("learning the linear manifold of 50 coordinates")
        adapt_linear(sorted((room.data / "grid_s1" / "train").glob("*.mpg")), linear, m=50)
    named: list[tuple[str, Any, int | None]] = [("linear, M = 50", load(linear, room.device), None)]
    named += _named(room, (("NCode, WGAN, M = 50", "head-wgan-50", 5),))
    residual = room.manifold("talking-head")
    if residual is None:
        try:
            residual = load("talking-head", room.device)
            room.missing.remove("talking-head")  # the installed one will do
        except ManifoldError:
            residual = None
    if residual is not None and residual.kind == "ncode":
        named.append((f"NCode residual, M = {residual.channels}", residual, None))
        named.append(("NCode residual, linear part alone", LinearPart(residual), None))
    rows, pictures = video.compare(named, clips, (1, 2, 4, 8, 16), room.say, room.features)
    room.write("talking-head", {"rows": video.as_dicts(rows), "clips": len(clips)})
    chosen = [
        (key.replace(", N", "\nN"), np.stack([clip[len(clip) * (2 + i % 2) // 5] for i, clip in enumerate(value[:6])]))
        for key, value in pictures.items()
        if key == "original" or key.endswith("N = 8") or "floor" in key
    ]
    page.save_picture(room.out / "talking-head-frames.png", page.sheet(chosen))
    metrics = (("psnr_db", "PSNR, dB"), ("vgg", "VGG19 distance"), ("mobilenet", "MobileNet distance"))
    page.plot_rates(room.out / "talking-head.png", "Talking head, 128x128", video.as_dicts(rows), metrics)


# The page.


def _shown(out: Path, parts: Sequence[str], only: Sequence[str]) -> list[dict[str, Any]]:
    """Those of `parts` that are there, as `page.write_page` takes them. only: the parts asked for. Raises InputError, which
    names all that are damaged."""
    shown: list[dict[str, Any]] = []
    damaged: dict[str, Exception] = {}
    for part in parts:
        path = out / f"{part}.json"
        if path.is_file():
            try:
                shown.append(_from_json(out, part, json.loads(path.read_bytes())))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                damaged[part] = error
    if damaged:
        paths, first = ", ".join(str(out / f"{part}.json") for part in damaged), next(iter(damaged.values()))
        them = "it" if len(damaged) == 1 else "them"
        raise InputError(
            f"{paths}: damaged, or not of evaluate paper ({type(first).__name__}: {first!s:.80}); move {them} away, or make "
            f"{them} anew with --only {','.join(dict.fromkeys((*only, *damaged)))} --force"
        ) from first
    return shown


def _from_json(out: Path, part: str, found: dict[str, Any]) -> dict[str, Any]:
    pictures = sorted(out.glob(f"{part}*.png"))
    note, tables = "", []
    if part == "figure3":
        note = (
            "Means over test pictures. JPEG and JPEG 2000 are counted without headers: "
            "with at most four times the bits of NCode (100, 5), then with no more than it."
        )
        for title, rows in found["sets"].items():
            head = f"{title}, in place of {rows['stands_for']}; {rows['pictures']} pictures"
            tables.append(_table(head, _IMAGE_COLUMNS, [_image_row(r) for r in rows["rows"]]))
    elif part == "figure4a":
        note = "A ConvNet trained on uncompressed CIFAR-10, on what each codec leaves of the test pictures."
        rows = [[r["codec"], r["setting"], _f(r["bpp"]), f"{r['accuracy']:.2%}", f"{r['kept']:.1%}"] for r in found["rows"]]
        clean = found["paper"]["original"]
        rows += [[f"{k} in the paper", "", "", f"{v:.2%}", f"{v / clean:.1%}"] for k, v in found["paper"].items()]
        tables.append(_table("", ("codec", "setting", "bit/pixel", "accuracy", "kept"), rows))
    elif part == "figure4b":
        note = "(100, 5) with the bits of each level flipped at the rate given; JPEG with flips in its scan only. PSNR in dB."
        for title, rows in found["sets"].items():
            tables.append(_noise_table(title, rows))
    elif part in ("figure5", "talking-head"):
        note = (
            f"{found['clips']} clips, each by itself, all bytes of the packets counted."
            if part == "talking-head"
            else "Second halves of person01's hand-waving and person04's boxing; the rest for training."
        )
        rows = [_video_row(r) for r in [*found["rows"], *found.get("paper", ())]]
        tables.append(_table("", _VIDEO_COLUMNS, rows))
    elif part == "figure6":
        note = f"{found['frames']} frames of unseen clips, and pictures drawn from the prior."
        tables.append(_table("", _IMAGE_COLUMNS, [_image_row(r) for r in found["rows"]]))
    return {"id": part, "title": found["title"], "note": note, "tables": tables, "pictures": pictures}


def _table(title: str, columns: Sequence[str], rows: list[list[str]]) -> dict[str, Any]:
    used = [i for i in range(len(columns)) if i < 2 or any(row[i] for row in rows)]
    return {"title": title, "columns": [columns[i] for i in used], "rows": [[row[i] for i in used] for row in rows]}


def _image_row(r: dict[str, Any]) -> list[str]:
    rest = [_f(r[k]) for k in ("bpp",)] + [_f(r["factor"], 0), _f(r["psnr_db"], 2), _f(r["ssim"])]
    return [r["codec"], r["setting"], *rest, _f(r["vgg"]), _f(r["mobilenet"])]


def _video_row(r: dict[str, Any]) -> list[str]:
    kbps = _f(r["kbps"], 2), _f(r.get("kbps_before_huffman"), 2)
    return [r["codec"], r["setting"], *kbps, _f(r["psnr_db"], 2), _f(r["ssim"]), _f(r.get("vgg"), 4), _f(r.get("mobilenet"), 4)]


def _noise_table(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    rates = sorted({r["bit_error_rate"] for r in rows})
    found = {(r["codec"], r["code"], r["bit_error_rate"]): r["psnr_db"] for r in rows}
    lines = [
        [codec, code, *(_f(found.get((codec, code, rate)), 2) for rate in rates)]
        for codec, code in dict.fromkeys((r["codec"], r["code"]) for r in rows)
    ]
    return _table(title, ("codec", "code", *(f"{rate:g}" for rate in rates)), lines)


def _f(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
