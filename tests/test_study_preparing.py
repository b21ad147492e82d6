"""The folder of a user study made: methods at settings and rates, manifolds, refinement, and what was there before."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcode import manifold, refine
from mcode.errors import InputError
from mcode.evaluation import stills
from mcode.evaluation.study import NOTE, ORIGINAL, open_material, parse_methods, prepare
from tests.block_means import BlockMeans
from tests.small_hific import small_manifolds
from tests.studies import picture, turn_pictures
from tests.test_stills import claiming


@pytest.fixture
def turned(monkeypatch):
    turn_pictures(monkeypatch)


class Blocks(BlockMeans):
    name, qualities, frame_size = "blocks", 1, None


class Coarse(Blocks):
    """Steps four times as large: fewer bits."""

    name, id = "coarse", "ffeeddccbbaa9988"

    def gain(self, quality: int) -> torch.Tensor:
        return super().gain(quality) / 4

    def inverse(self, quality: int) -> torch.Tensor:
        return super().inverse(quality) * 4


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    return tmp_path / "images"


def test_methods_are_read_from_settings_rates_and_multiples():
    methods = parse_methods(["mcode:q3", "jpeg:10", "h265@0.2", "webp@1.5x"])
    assert [each.name for each in methods] == ["mcode-3", "jpeg-10", "h265-at-0.2", "webp-at-1.5x"]
    assert [(each.setting, each.bpp, each.times, each.of) for each in methods] == [
        (3, None, None, None),
        (10, None, None, None),
        (None, 0.2, None, None),
        (None, None, 1.5, "mcode-3"),
    ]


def test_methods_name_manifolds_refinement_and_whose_bits_are_meant():
    text = ["mcode/hific-lo:q1", "mcode-unrefined/a/b c:q2", "h265@1.5x:mcode-hific-lo-1", "mcode/m-1+m-2+m-3@1x"]
    methods = parse_methods(text)
    assert [each.name for each in methods] == [
        "mcode-hific-lo-1",
        "mcode-unrefined-a-b-c-2",
        "h265-at-1.5x-of-mcode-hific-lo-1",
        "mcode-m-1-to-m-3-at-1x",
    ]
    assert [each.manifold for each in methods] == ["hific-lo", "a/b c", None, "m-1+m-2+m-3"]
    assert [each.refined for each in methods] == [True, False, True, True]
    assert [each.of for each in methods] == [None, None, "mcode-hific-lo-1", "mcode-hific-lo-1"]


def test_the_papers_own_study_can_be_written_down():
    """Section 5, User Study: nine methods, M&S at the bits of each HiFiC, BPG (here H.265 intra) at 1.5 and 2 times Mi's."""
    mns = "+".join(f"ms-{i}" for i in range(1, 16))
    hific = [f"mcode/hific-{rate}:q1" for rate in ("lo", "mi", "hi")]
    baselines = [f"mcode/{mns}@1x:mcode-hific-{rate}-1" for rate in ("lo", "mi", "hi")]
    others = ["mcode/no-gan:q1", "h265@1.5x:mcode-hific-mi-1", "h265@2x:mcode-hific-mi-1"]
    methods = parse_methods([*hific, *baselines, *others])
    assert len({each.name for each in methods}) == 9
    assert [each.of for each in methods if each.times] == [f"mcode-hific-{rate}-1" for rate in ("lo", "mi", "hi", "mi", "mi")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mcode:q3", "two methods at least"),
        ("mcode:q3,vp9:30", "--codecs vp9:30: give CODEC:SETTING"),
        ("mcode:q3,jpeg", "--codecs jpeg: give CODEC:SETTING"),
        ("mcode:q3,jpeg:96", "--codecs jpeg:96: jpeg's setting is 1 to 95"),
        ("mcode:q3,h265:52", "--codecs h265:52: h265's setting is 0 to 51"),
        ("mcode:q3,jpeg2000:0", "the compression ratio, 1 to 2000"),
        ("jpeg@2x,webp:3", "the first method has none before it"),
        ("jpeg:3,webp@0", "a rate is more than 0 and at most 24"),
        ("jpeg:3,jpeg:3", "--codecs jpeg:3: named twice"),
        ("mcode/:q3,jpeg:3", "--codecs mcode/:q3: give CODEC:SETTING"),
        ("mcode/a,jpeg:3", "--codecs mcode/a: give CODEC:SETTING"),
        ("mcode-refined:q3,jpeg:3", "--codecs mcode-refined:q3: give CODEC:SETTING"),
        ("jpeg/a:3,webp:3", "--codecs jpeg/a:3: jpeg has no manifolds and is never refined"),
        ("jpeg-unrefined:3,webp:3", "jpeg has no manifolds and is never refined"),
        ("mcode/a b:q3,mcode/a?b:q3", "--codecs mcode/a?b:q3: named twice"),
        ("jpeg:3,webp@1x:jpeg-4", "--codecs webp@1x:jpeg-4: no method named jpeg-4 before it, but jpeg-3"),
        ("jpeg:3,webp@1:jpeg-3", "--codecs webp@1:jpeg-3: give CODEC:SETTING"),
        ("mcode:q" + "9" * 5000 + ",jpeg:3", "give CODEC:SETTING"),
    ],
)
def test_methods_that_cannot_be_are_refused(text, message):
    with pytest.raises(InputError) as refused:
        parse_methods(text.split(","))
    assert message in str(refused.value)


def test_a_prepared_folder_is_a_study_with_its_rates_noted(images, tmp_path):
    methods = parse_methods(["mcode:q1", "jpeg@1x", "webp@1", "jpeg:5"])
    prepared = prepare(images, tmp_path / "study", methods, manifolds=[Blocks()])
    material = open_material(tmp_path / "study")
    assert set(material.methods) == {"mcode-1", "jpeg-at-1x", "webp-at-1", "jpeg-5"} and material.pictures == ("0", "1")
    assert np.array_equal(material.read(ORIGINAL, "1"), picture(1))
    note = json.loads((tmp_path / "study" / NOTE).read_text())
    assert note["methods"]["mcode-1"]["manifolds"] == {"blocks": Blocks.id} and note["methods"]["mcode-1"]["coder"] == "huffman"
    assert note["methods"]["jpeg-5"]["manifolds"] == {} and note["methods"]["jpeg-5"]["coder"] is None
    rates = {name: [each["bpp"] for each in method["pictures"].values()] for name, method in note["methods"].items()}
    for mine, jpeg, webp in zip(rates["mcode-1"], rates["jpeg-at-1x"], rates["webp-at-1"], strict=True):
        assert mine <= jpeg < 1.1 * mine and 1 <= webp < 1.1
    for method in prepared.methods:
        assert method.reached == 2 and method.bpp == pytest.approx(np.mean(rates[method.method]))
    entry = note["methods"]["jpeg-5"]["pictures"]["0"]
    assert entry["setting"] == 5 and entry["bpp"] == entry["bytes"] * 8 / (96 * 80)


def test_what_is_coded_is_what_is_read(turned, images, tmp_path):
    prepare(images, tmp_path / "study", parse_methods(["jpeg:95", "jpeg:5"]))
    with Image.open(tmp_path / "study" / ORIGINAL / "0.png") as image, Image.open(tmp_path / "study/jpeg-95/0.png") as coded:
        assert np.array_equal(np.array(image), np.rot90(picture(0))) and coded.size == (80, 96)


def noted(folder: Path) -> dict[str, dict]:
    return json.loads((folder / NOTE).read_text())["methods"]


def test_each_method_is_of_the_manifold_that_it_names(images, tmp_path):
    methods = parse_methods(["mcode:q1", "mcode/coarse:q1"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks(), Coarse()])
    material, note = open_material(tmp_path / "study"), noted(tmp_path / "study")
    assert material.methods == ("mcode-1", "mcode-coarse-1")
    for method, model in (("mcode-1", Blocks()), ("mcode-coarse-1", Coarse())):
        size, decoded = stills.mcode_still(model, 1).code(picture(0))
        assert np.array_equal(material.read(method, "0"), decoded)
        assert note[method]["pictures"]["0"]["bytes"] == size and note[method]["pictures"]["0"]["manifold"] == model.name
        assert note[method]["manifolds"] == {model.name: model.id}
        assert (note[method]["coder"], note[method]["refine"], note[method]["refine_by"]) == ("huffman", 0, None)


def test_of_several_manifolds_the_cheapest_with_enough_bits_is_taken_for_each_picture(images, tmp_path):
    """As the paper takes one of its fifteen M&S models (section 5, User Study)."""
    methods = parse_methods(["mcode:q1", "mcode/coarse:q1", "mcode/blocks+coarse@1x", "mcode/blocks+coarse@1x:mcode-coarse-1"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks(), Coarse()])
    note = noted(tmp_path / "study")
    for name, of in (
        ("mcode-blocks-to-coarse-at-1x", "mcode-1"),
        ("mcode-blocks-to-coarse-at-1x-of-mcode-coarse-1", "mcode-coarse-1"),
    ):
        assert note[name]["pictures"] == note[of]["pictures"] and note[name]["reached"] == 2
        assert note[name]["manifolds"] == {"blocks": Blocks.id, "coarse": Coarse.id}
    prepare(images, tmp_path / "more", parse_methods(["jpeg:9", "mcode/coarse+blocks@20"]), manifolds=[Blocks(), Coarse()])
    beyond = noted(tmp_path / "more")["mcode-coarse-to-blocks-at-20"]
    assert beyond["reached"] == 0 and {each["manifold"] for each in beyond["pictures"].values()} == {"blocks"}


def test_several_manifolds_stand_at_their_floor_only_where_none_has_fewer_bits(images, tmp_path, monkeypatch):
    monkeypatch.setattr("mcode.evaluation.study.ladders.FLOOR_SHARE", 0.0)
    methods = parse_methods(["mcode/coarse:q1", "mcode/blocks+coarse@0.5x", "mcode/blocks+coarse@1.002x"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks(), Coarse()])
    _, below, between = noted(tmp_path / "study").values()
    for note, name, floor in ((below, "coarse", 2), (between, "blocks", 0)):
        assert {picture["manifold"] for picture in note["pictures"].values()} == {name}
        assert note["at_floor"] == floor and note["reached"] == 2


def test_a_rate_may_be_that_of_any_method_before_it(images, tmp_path):
    methods = parse_methods(["mcode:q1", "jpeg:80", "webp@1.5x:jpeg-80", "webp@1.5x"])
    prepare(images, tmp_path / "study", methods, manifolds=[Blocks()])
    note = noted(tmp_path / "study")
    for name, of in (("webp-at-1.5x-of-jpeg-80", "jpeg-80"), ("webp-at-1.5x", "mcode-1")):
        for rate, wanted in zip(note[name]["pictures"].values(), note[of]["pictures"].values(), strict=True):
            assert 1.5 * wanted["bpp"] <= rate["bpp"] < 1.65 * wanted["bpp"]


def test_manifolds_that_no_method_names_are_not_loaded(images, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(manifold, "load", lambda given, device: loaded.append((given, device)) or Blocks())
    given = {"manifolds": ["talking-head", "general"], "device": "cpu"}
    prepare(images, tmp_path / "study", parse_methods(["mcode/general:q1", "mcode/general@1x", "jpeg:5"]), **given)
    assert loaded == [("general", "cpu")]
    prepare(images, tmp_path / "more", parse_methods(["jpeg:4", "jpeg:5"]), manifolds=["nowhere"])
    assert loaded == [("general", "cpu")]


def test_the_coder_decides_what_equal_bits_are(images, tmp_path):
    model, rates = manifold.load(small_manifolds(tmp_path)[1], "cpu"), {}
    for coder in ("huffman", "range"):
        prepare(images, tmp_path / coder, parse_methods(["mcode:q1", "jpeg@1x"]), manifolds=[model], coder=coder)
        mine, jpeg = noted(tmp_path / coder).values()
        assert (mine["coder"], jpeg["coder"]) == (coder, None)
        for name in "01":
            assert mine["pictures"][name]["bytes"] == stills.mcode_still(model, 1, coder).code(picture(int(name)))[0]
            assert jpeg["pictures"][name]["bpp"] >= mine["pictures"][name]["bpp"]
        rates[coder] = mine["bpp"]
    assert rates["range"] != rates["huffman"]


@pytest.fixture
def brighter(monkeypatch) -> list[tuple]:
    """A refinement that makes every symbol larger by one, and with what it was called."""

    class Brighter:
        def __init__(self, model, steps: int, *, judge: str, weights) -> None:
            self.steps, self.judge = steps, judge
            called.append((model.name, steps, judge, weights))

        def __call__(self, rgb, latent, symbols: np.ndarray, previous, quality: int) -> np.ndarray:
            return symbols + np.int16(1)

    called: list[tuple] = []
    monkeypatch.setattr(refine, "Refiner", Brighter)
    return called


def test_refined_pictures_stand_beside_others_where_they_are_asked_for(images, tmp_path, brighter):
    methods = parse_methods(["mcode:q1", "mcode-unrefined:q1", "mcode-unrefined/coarse:q1", "jpeg:9"])
    given = {"manifolds": [Blocks(), Coarse()], "refine": 10, "refine_by": "vgg19", "perceptual": "weights"}
    prepare(images, tmp_path / "study", methods, **given)
    assert brighter == [("blocks", 10, "vgg19", "weights")]
    material, note = open_material(tmp_path / "study"), noted(tmp_path / "study")
    refined, plain = (material.read(name, "0").astype(int) for name in ("mcode-1", "mcode-unrefined-1"))
    assert np.array_equal(plain, stills.mcode_still(Blocks(), 1).code(picture(0))[1])
    assert np.array_equal(refined, plain + 2)  # a symbol is a step of 2
    found = [(each["refine"], each["refine_by"]) for each in note.values()]
    assert found == [(10, "vgg19"), (0, None), (0, None), (0, None)]


@pytest.mark.parametrize(
    ("codecs", "options", "message"),
    [
        ("mcode:q1,mcode/fine:q1", {}, "--codecs mcode/fine: no such manifold; --manifold gives blocks, coarse"),
        ("mcode:q1,mcode/coarse+fine@1x", {}, "--codecs mcode/fine: no such manifold; --manifold gives blocks, coarse"),
        ("mcode:q1,mcode/coarse:q2", {}, "mcode:q2: manifold coarse has the qualities 1 to 1"),
        ("mcode:q1,mcode/blocks:q1", {}, "--codecs: mcode-1 and mcode-blocks-1 are the same; give one of them"),
        ("jpeg:5,mcode/blocks+coarse:q1", {}, "has several manifolds; these are for a rate, as mcode/blocks+coarse@1x"),
        ("mcode:q1,mcode-unrefined:q1", {}, "mcode-unrefined-1 is as mcode where nothing is refined; give --refine STEPS"),
        ("mcode:q1,jpeg:5", {"coder": "range"}, "--coder range: manifold blocks has no hyperprior"),
        ("mcode:q1,jpeg:5", {"manifolds": [Blocks(), Blocks()]}, "--manifold: two manifolds are named blocks; give each once"),
        ("mcode:q1,jpeg:5", {"manifolds": ["talking-head"]}, "manifold talking-head holds 128x128 alone"),
    ],
)
def test_methods_that_the_manifolds_do_not_allow_are_refused_before_coding(images, tmp_path, codecs, options, message):
    with pytest.raises(InputError) as refused:
        prepare(images, tmp_path / "study", parse_methods(codecs.split(",")), **({"manifolds": [Blocks(), Coarse()]} | options))
    assert message in str(refused.value) and not (tmp_path / "study").exists()


def test_a_rate_is_reached_at_the_cheapest_setting_or_said_not_to_be(images, tmp_path):
    prepared = prepare(images, tmp_path / "study", parse_methods(["jpeg@1.2", "webp@20"]))
    note = json.loads((tmp_path / "study" / NOTE).read_text())["methods"]["jpeg-at-1.2"]["pictures"]["0"]
    below, _ = stills.jpeg(note["setting"] - 1).code(picture(0))
    assert below * 8 / (96 * 80) < 1.2 <= note["bpp"]
    assert [each.reached for each in prepared.methods] == [2, 0]


def test_a_fault_while_preparing_leaves_nothing(images, tmp_path):
    (images / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2\.png: "):
        prepare(images, tmp_path / "study", parse_methods(["jpeg:5", "jpeg:9"]))
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_a_folder_is_replaced_only_by_force_and_only_a_study(images, tmp_path):
    methods = parse_methods(["jpeg:5", "jpeg:9"])
    prepare(images, tmp_path / "study", methods)
    with pytest.raises(InputError, match=r"study: exists; add --force"):
        prepare(images, tmp_path / "study", methods)
    prepare(images, tmp_path / "study", parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert open_material(tmp_path / "study").methods == ("jpeg-7", "jpeg-9")
    with pytest.raises(InputError, match=r"images: has no study.json, so it is no study and is not replaced"):
        prepare(images, images, methods, force=True)
    assert len(list(images.glob("*.png"))) == 2


@pytest.mark.parametrize("place", ["answers.csv", "jpeg-5/answers.csv", "original/mine.png", "more/0.png"])
def test_what_is_no_part_of_a_study_keeps_it_from_being_replaced(images, tmp_path, place):
    methods, folder = parse_methods(["jpeg:5", "jpeg:9"]), tmp_path / "study"
    prepare(images, folder, methods)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("months of work")
    (folder / ".DS_Store").write_text("")
    with pytest.raises(
        InputError,
        match=r"study holds (answers.csv|jpeg-5/answers.csv|original/mine.png|more), which is no part of the study",
    ):
        prepare(images, folder, methods, force=True)
    assert (folder / place).read_text() == "months of work" and len(list((folder / "jpeg-9").glob("*.png"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"images", "study"}


def test_a_study_comes_back_where_its_replacement_cannot_be_put_in(images, tmp_path, monkeypatch):
    folder, rename = tmp_path / "study", os.replace
    prepare(images, folder, parse_methods(["jpeg:5", "jpeg:9"]))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(old, new):
        if Path(new) == folder / "original" and not Path(old).parent.name.endswith("-old"):
            raise OSError(errno.EIO, "the disk failed", str(new))
        rename(old, new)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk failed"):
        prepare(images, folder, parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "study"}


def test_what_of_a_study_cannot_be_put_back_is_not_deleted(images, tmp_path, monkeypatch):
    folder, rename = tmp_path / "study", os.replace
    prepare(images, folder, parse_methods(["jpeg:5", "jpeg:9"]))
    before = sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())

    def fail(old, new):
        if Path(new).parent == folder and Path(new).name in ("original", "jpeg-9"):
            raise OSError(errno.EIO, "the disk failed", str(new))
        rename(old, new)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk failed"):
        prepare(images, folder, parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file()) == before


def test_an_existing_folder_is_filled_without_a_place_beside_it(images, tmp_path, monkeypatch):
    folder = tmp_path / "mounted"
    folder.mkdir()
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *given, **also: (made.append(path), mkdir(path, *given, **also))[1])
    prepare(images, folder, parse_methods(["jpeg:5", "jpeg:9"]))
    assert made and all(folder in path.parents for path in made)
    assert {path.name for path in folder.iterdir()} == {NOTE, "original", "jpeg-5", "jpeg-9"}


@pytest.mark.parametrize("note", ["", "[]", '{"methods": 3}', '{"methods": {"../images": {}}}'])
def test_a_damaged_note_lets_nothing_be_deleted(images, tmp_path, note):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / NOTE).write_text(note)
    (tmp_path / "study" / "thesis.txt").write_text("kept")
    with pytest.raises(InputError, match=r"its study.json is damaged|holds thesis.txt"):
        prepare(images, tmp_path / "study", parse_methods(["jpeg:5", "jpeg:9"]), force=True)
    assert (tmp_path / "study" / "thesis.txt").exists() and len(list(images.glob("*.png"))) == 2


def test_a_picture_whose_name_is_not_utf_8_is_refused_before_coding(images, tmp_path):
    (images / "0.png").rename(images / "\udcff.png")
    with pytest.raises(InputError, match="its name is not UTF-8; rename it"):
        prepare(images, tmp_path / "study", parse_methods(["jpeg:5", "jpeg:9"]))
    assert not (tmp_path / "study").exists()


def test_a_study_may_be_made_here_and_through_a_link(images, tmp_path, monkeypatch):
    methods = parse_methods(["jpeg:5", "jpeg:9"])
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert prepare(images, ".", methods).folder == "."
    assert open_material(".").methods == ("jpeg-5", "jpeg-9")  # "." is still where the study lies
    (tmp_path / "link").symlink_to(here)
    prepare(images, tmp_path / "link", parse_methods(["jpeg:7", "jpeg:9"]), force=True)
    assert open_material(".").methods == ("jpeg-7", "jpeg-9") and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"images", "here", "link"}


def test_a_quality_that_the_manifold_lacks_is_refused(images, tmp_path):
    with pytest.raises(InputError, match="manifold blocks has the qualities 1 to 1"):
        prepare(images, tmp_path / "study", parse_methods(["mcode:q2", "jpeg:9"]), manifolds=[Blocks()])


def test_prepare_prints_the_rates(mcode, images, tmp_path):
    status, out, err = mcode("study", "prepare", images, "-o", tmp_path / "study", "--codecs", "jpeg:5,webp@20")
    assert status == 0 and "jpeg-5" in out and "bit/pixel" in out
    assert "webp-at-20: 2 of 2 pictures have fewer bits than wanted" in err
    status, out, err = mcode("study", "prepare", images, "-o", tmp_path / "more", "--codecs", "jpeg:5,jpeg:9", "--json")
    assert [each["method"] for each in json.loads(out)["methods"]] == ["jpeg-5", "jpeg-9"]


def test_prepare_warns_where_the_cheapest_setting_has_far_more_bits_than_wanted(mcode, images, tmp_path):
    status, out, err = mcode(
        "study", "prepare", images, "-o", tmp_path / "study", "--codecs", "webp:0,jpeg@0.5x,webp@1x", "--json"
    )
    assert status == 0 and [each["at_floor"] for each in json.loads(out)["methods"]] == [0, 2, 0]
    assert err.count("\n") == 1
    assert "jpeg-at-0.5x: 2 of 2 pictures have over 5% more bits than wanted, at jpeg's cheapest setting; a higher rate" in err
    assert {facts["at_floor"] for facts in noted(tmp_path / "study")["jpeg-at-0.5x"]["pictures"].values()} == {True}


def test_prepare_takes_several_manifolds_a_coder_and_refinement(mcode, images, tmp_path, brighter):
    first, second = small_manifolds(tmp_path)[1], tmp_path / "second.safetensors"
    manifold.rewrite(first, second, card={}, name="second")
    files = f"{first},{second}"
    command = ("study", "prepare", images, "-o", tmp_path / "study", "-m", files, "--coder", "range", "--refine", 2)
    codecs = "mcode/second:q2,mcode-unrefined:q2,webp@9x"
    status, out, err = mcode(*command, "--device", "cpu", "--codecs", codecs)
    assert (status, err) == (0, "")
    rows = [line.split("  ") for line in out.splitlines()[2:]]
    assert [[cell.strip() for cell in row if cell][:3] for row in rows] == [
        ["mcode-second-2", "second", "range, refined 2 by eye"],
        ["mcode-unrefined-2", "plain", "range"],
        ["webp-at-9x", "-", "-"],
    ]
    assert [each[:3] for each in brighter] == [("second", 2, "eye")]
    found = {name: (*each["manifolds"], each["coder"], each["refine"]) for name, each in noted(tmp_path / "study").items()}
    assert found == {
        "mcode-second-2": ("second", "range", 2),
        "mcode-unrefined-2": ("plain", "range", 0),
        "webp-at-9x": (None, 0),
    }


def test_a_picture_too_large_to_open_is_one_line(mcode, images, tmp_path):
    claiming(images / "big.png", 20_000, 20_000)
    status, out, err = mcode("study", "prepare", images, "-o", tmp_path / "study", "--codecs", "jpeg:5,jpeg:9")
    assert (status, out) == (2, "") and "big.png: 20000x20000 is more than" in err and err.count("\n") == 1
    assert not (tmp_path / "study").exists()
