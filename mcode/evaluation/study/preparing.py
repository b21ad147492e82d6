"""The folder of a study made: the pictures of every method, and a note of what each of them took."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mcode.errors import InputError
from mcode.evaluation.study.ladders import Ladder, Options, code, open_ladders
from mcode.evaluation.study.material import ORIGINAL, pictures_in
from mcode.evaluation.study.methods import Method
from mcode.video import read_picture
from mcode.whole import partial_name

if TYPE_CHECKING:
    from mcode.manifold import Manifold

NOTE = "study.json"
"""What `prepare` notes beside the folders: each method's codec, manifolds, setting and bits per pixel."""


@dataclass(frozen=True)
class PreparedMethod:
    """bpp, psnr_db: means over the pictures. reached: of how many pictures the wanted rate could be reached; at_floor: of how
    many the cheapest setting has more than that, by over FLOOR_SHARE (ladders.py). manifolds: ids by name. coder, refine
    (steps), refine_by: MCode's; None, 0 and None where there is none."""

    method: str
    codec: str
    setting: str
    bpp: float
    psnr_db: float
    reached: int
    at_floor: int
    manifolds: dict[str, str]
    coder: str | None
    refine: int
    refine_by: str | None


@dataclass(frozen=True)
class Prepared:
    folder: str
    pictures: int
    methods: tuple[PreparedMethod, ...]


def prepare(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    methods: Sequence[Method],
    *,
    manifolds: Sequence[str | os.PathLike[str] | Manifold] = ("general",),
    coder: str = "huffman",
    refine: int = 0,
    refine_by: str = "eye",
    perceptual: str | os.PathLike[str] | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Prepared:
    """Writes the folder of a study: the original and every method's pictures as PNG, and their bits per pixel in NOTE.

    manifolds: names, files or loaded ones, of which those are run that a method names. coder, refine, refine_by, perceptual:
    of MCode's methods, as when encoding. At a rate, each picture gets the cheapest setting with at least that many bits, as
    the paper gives the methods compared with (section 5, User Study), or the codec's best. The folder appears whole or not at
    all. Raises InputError, ManifoldError.
    """
    folder, output = output, Path(os.path.realpath(output))  # "." and links have no name to write beside
    _check_replaceable(output, folder, force)
    source = Path(images)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder of pictures")
    pictures = pictures_in(source)
    if not pictures:
        raise InputError(f"{source}: no pictures in it")
    options = Options(coder, refine, refine_by, perceptual, device)
    ladders = open_ladders(methods, manifolds, options)
    hidden = partial_name(f".{output.name}")
    partial = output / hidden if output.is_dir() else output.with_name(hidden)  # within: a mount point has nothing beside it
    try:
        notes = _code_all(pictures, methods, ladders, partial, progress)
        made = tuple(_prepared(method, ladders[method.name], options, notes[method.name]) for method in methods)
        record = {each.method: {**each.__dict__, "pictures": notes[each.method]} for each in made}
        note = {"pictures": len(pictures), "methods": record}
        (partial / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if output.exists():
            _put_in(output, folder, partial, force)
        else:
            os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(os.fspath(folder), len(pictures), made)


def _code_all(
    pictures: dict[str, Path],
    methods: Sequence[Method],
    ladders: dict[str, tuple[Ladder, ...]],
    folder: Path,
    progress: Callable[[int, int | None], None] | None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every picture as it is and by every method into its folder; what is to be noted of it, by method and picture."""
    from mcode.evaluation.metrics import psnr

    notes: dict[str, dict[str, dict[str, Any]]] = {method.name: {} for method in methods}
    for name in (ORIGINAL, *notes):
        (folder / name).mkdir(parents=True)
    for done, (picture, path) in enumerate(pictures.items()):
        rgb = read_picture(path)
        Image.fromarray(rgb).save(folder / ORIGINAL / f"{picture}.png")
        for number, method in enumerate(methods):
            wanted = method.bpp
            if method.times is not None and method.of is not None:
                wanted = method.times * notes[method.of][picture]["bpp"]
            coded = code(ladders[method.name], method.setting, wanted, rgb)
            notes[method.name][picture] = {
                "setting": coded.setting,
                **({"manifold": coded.manifold} if coded.manifold is not None else {}),
                "bytes": coded.bytes,
                "bpp": coded.bpp,
                "psnr_db": psnr(rgb, coded.decoded),
                "reached": wanted is None or coded.bpp >= wanted,
                "at_floor": coded.at_floor,
            }
            Image.fromarray(coded.decoded).save(folder / method.name / f"{picture}.png")
            if progress:
                progress(done * len(methods) + number + 1, len(pictures) * len(methods))
    return notes


def _prepared(method: Method, ladders: Sequence[Ladder], options: Options, note: dict[str, Any]) -> PreparedMethod:
    settings = sorted({each["setting"] for each in note.values()})
    manifolds = {ladder.model.name: ladder.model.id for ladder in ladders if ladder.model is not None}
    refine = options.refine if manifolds and method.refined else 0
    return PreparedMethod(
        method.name,
        method.codec,
        str(settings[0]) if len(settings) == 1 else f"{settings[0]}-{settings[-1]}",
        bpp=sum(each["bpp"] for each in note.values()) / len(note),
        psnr_db=sum(each["psnr_db"] for each in note.values()) / len(note),
        reached=sum(each["reached"] for each in note.values()),
        at_floor=sum(each["at_floor"] for each in note.values()),
        manifolds=manifolds,
        coder=options.coder if manifolds else None,
        refine=refine,
        refine_by=options.refine_by if refine else None,
    )


def _check_replaceable(output: Path, name: str | os.PathLike[str], force: bool) -> list[Path]:
    """What of the folder is to make way: a study's note and its folders, if nothing else lies there. name: output, as given."""
    if not output.exists() or (output.is_dir() and all(path.name[:1] == "." for path in output.iterdir())):
        return []
    if not force:
        raise InputError(f"{name}: exists; add --force to replace it or choose another name")
    if not (output / NOTE).is_file():
        raise InputError(f"{name}: has no {NOTE}, so it is no study and is not replaced; choose another name")
    try:
        methods = json.loads((output / NOTE).read_bytes())["methods"]
        named = {method: {f"{picture}.png" for picture in facts["pictures"]} for method, facts in methods.items()}
        named[ORIGINAL] = set().union(*named.values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: its {NOTE} is damaged, so it is not replaced; choose another name") from error
    here = sorted(output.iterdir())
    folders = [path for path in here if path.name in named and path.is_dir() and not path.is_symlink()]
    others = [path for path in here if path not in (*folders, output / NOTE)]
    for folder in folders:
        others += [path for path in sorted(folder.iterdir()) if path.name not in named[folder.name] or path.is_dir()]
    for path in others:
        if path.name[:1] != ".":
            raise InputError(f"{name} holds {path.relative_to(output)}, which is no part of the study; move it")
    return [*folders, output / NOTE]


def _put_in(output: Path, name: str | os.PathLike[str], made: Path, force: bool) -> None:
    """The study's parts into a folder that exists, which others may stand in, in place of an earlier study's, which comes back
    where that fails; what of it cannot, stays in a hidden folder. made: within that folder."""
    old = _check_replaceable(output, name, force)  # answers may have come while pictures were coded
    aside = made.with_name(f"{made.name}-old")
    aside.mkdir()
    put: list[Path] = []
    try:
        for part in old:
            os.replace(part, aside / part.name)
        for part in sorted(made.iterdir(), key=lambda path: path.name == NOTE):
            os.replace(part, output / part.name)
            put.append(output / part.name)
    except BaseException:
        for part in put:
            os.replace(part, made / part.name)
        for part in aside.iterdir():
            os.replace(part, output / part.name)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
