"""Manifold files that mean harm: each is one line of ManifoldError, costs no memory, and hides no other manifold."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings

import numpy as np
import pytest
import torch

from mcode import manifold
from mcode.cli import main
from mcode.coders import CodeTables
from mcode.errors import ManifoldError
from mcode.header import LARGEST_SIDE, read_header
from mcode.nets import build

from .small_hific import small_manifolds
from .test_manifold import HEIGHT, WIDTH, M, save


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A compact manifold with a hyperprior."""
    return small_manifolds(tmp_path_factory.mktemp("dense"))[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's folder of manifolds."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(manifold.SEARCH_VARIABLE, raising=False)
    place = tmp_path / "home" / "mcode" / "manifolds"
    place.mkdir(parents=True)
    return place


def parts(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path, header, body=b""):
    """The file with this header, which is JSON's text where it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def craft(source, path, *, config=None, tensors=None, tables=None, card="{}"):
    """A copy whose id is right, with other content: config (a function of the old one, or text), tensors (new ones), tables."""
    from safetensors.numpy import load_file, save_file

    metadata = parts(source)[0]["__metadata__"] | {"card": card}
    if config is not None:
        values = json.loads(metadata["config"])
        metadata["config"] = config if isinstance(config, str) else json.dumps(values | config(values))
    metadata["tables"] = metadata["tables"] if tables is None else tables
    held = load_file(source) | (tensors or {})
    metadata["id"] = manifold.content_id(metadata["kind"], metadata["config"], metadata["tables"], held)
    save_file(held, path, metadata)
    return path


def refused(path, words, *calls):
    for call in calls or (manifold.read_info, manifold.load, manifold.verify):
        with warnings.catch_warnings(), pytest.raises(ManifoldError, match=words) as error:
            warnings.simplefilter("error")
            call(path, "cpu") if call is manifold.load else call(path)
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500 + len(str(path))


def metadata(**values):
    return lambda header: header | {"__metadata__": header["__metadata__"] | values}


def tensor(**entry):
    return lambda header: header | {"x": entry}


BAD_HEADERS = {
    "text": (lambda _: b'"abc"', "not a manifold"),
    "list": (lambda _: b"[]", "not a manifold"),
    "deep": (lambda _: b'{"a":' * 100_000, "nested too deep"),
    "not UTF-8": (lambda _: b"\xff\xfe{}", "not a manifold"),
    "tensor is a number": (lambda header: header | {"x": 5}, "tensor 'x'"),
    "tensor without shape": (tensor(dtype="F32"), "tensor 'x'"),
    "shape of text": (tensor(dtype="F32", shape=["a"], data_offsets=[0, 0]), "tensor 'x'"),
    "shape beyond the file": (tensor(dtype="F32", shape=[10**30, 10**30], data_offsets=[0, 4]), "tensor 'x'"),
    "nine dimensions": (tensor(dtype="F32", shape=[1] * 9, data_offsets=[0, 4]), "tensor 'x'"),
    "too many tensors": (lambda header: header | {str(i): {} for i in range(10_001)}, "more than 10,000 tensors"),
    "a long format": (metadata(mcode="9" * 10_000), "manifold format 9{40};"),
    "unknown type": (tensor(dtype="F33", shape=[1], data_offsets=[0, 4]), "tensor 'x'"),
    "metadata is a list": (lambda header: header | {"__metadata__": []}, "not a manifold of MCode"),
    "card is no JSON": (metadata(card="{"), "card"),
    "card is a list": (metadata(card="[]"), "card is no table"),
    "card is a number": (metadata(card="5"), "card is no table"),
    "card is deep": (metadata(card="[" * 100_000), "card is nested too deep"),
    "card is deep, and whole": (metadata(card='{"a":' * 40 + "1" + "}" * 40), "card is nested too deep"),
    "half a character": (metadata(card=json.dumps({"title": "\ud800"})), "card holds half a character"),
    "config is no text": (metadata(config=5), "config is no text"),
    "config is a list": (metadata(config="[]"), "config is no table"),
    "config is deep": (metadata(config="[" * 100_000), "config is nested too deep"),
    "endless qualities": (metadata(config='{"qualities":1e999}'), "qualities"),
    "a list of qualities": (metadata(config='{"qualities":[1]}'), "qualities"),
    "a million qualities": (metadata(config='{"qualities":1000000}'), "qualities"),
    "qualities is true": (metadata(config='{"qualities":true}'), "qualities"),
    "no default quality": (metadata(config='{"qualities":4,"default_quality":0}'), "default_quality"),
    "a stride of fixed sizes": (metadata(config='{"qualities":1,"frame_size":[8,4],"stride":16}'), "stride; .* none"),
    "5000 digits": (metadata(config='{"qualities":' + "9" * 5000 + "}"), "config"),
    "id is a number": (metadata(id=5), "id is no text"),
    "id is no number": (metadata(id="z" * 16), "id 'zzz"),
    "id is long": (metadata(id="z" * 1000), "id 'zzz"),
    "name is a list": (metadata(name=[1]), "name is no text"),
    "kind is a list": (metadata(kind=[]), "kind is no text"),
    "tables are a number": (metadata(tables=5), "tables is no text"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_hostile_header_is_one_line(case, tmp_path):
    change, words = BAD_HEADERS[case]
    save(tmp_path / "good.safetensors")
    header, body = parts(tmp_path / "good.safetensors")
    refused(write(tmp_path / "bad.safetensors", change(header), body), words)


@pytest.mark.parametrize("case", [*BAD_HEADERS, "a folder", "a link to itself", "a pipe"])
def test_one_bad_file_spoils_no_list_and_is_named_once(case, folder, capsys):
    save(folder / "mine.safetensors")
    bad = folder / "bad.safetensors"
    if case in BAD_HEADERS:
        header, body = parts(folder / "mine.safetensors")
        write(bad, BAD_HEADERS[case][0](header), body)
    elif case == "a folder":
        bad.mkdir()
    elif case == "a pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to(bad)
    skipped = []
    assert {"mine", "general"} <= {info.name for info in manifold.list_manifolds(skipped)}
    assert len(skipped) == 1 and "bad.safetensors" in skipped[0]
    assert manifold.find("mine") == folder / "mine.safetensors"
    assert main(["manifolds", "list"]) == 0
    out, err = capsys.readouterr()
    assert "mine" in out and err.count("\n") == err.count("bad.safetensors") == 1


@pytest.mark.parametrize("size", ["ab", [WIDTH], 5, [WIDTH, 0], [WIDTH, LARGEST_SIDE + 1], [8.0, 4], None])
def test_a_frame_size_that_is_none_is_one_line(size, tmp_path):
    save(tmp_path / "good.safetensors")
    bad = craft(tmp_path / "good.safetensors", tmp_path / "bad.safetensors", config=lambda _: {"frame_size": size})
    refused(bad, "frame_size")


@pytest.mark.parametrize("stride", ["16", 16.5, -16, 0, 1, 10**6, None, True])
def test_another_stride_than_the_networks_have_is_one_line(stride, dense, tmp_path):
    refused(craft(dense, tmp_path / "bad.safetensors", config=lambda _: {"stride": stride}), "stride is not 16")


CONFIGS = {
    "default quality": ({"default_quality": "x"}, "default_quality"),
    "frame size": ({"frame_size": [96, 64]}, "frame_size"),
    "network": ({"network": []}, "network is no table"),
    "hyper": ({"hyper": [1]}, "hyper is no table"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_of_other_types_is_one_line(case, dense, tmp_path):
    change, words = CONFIGS[case]
    refused(craft(dense, tmp_path / "bad.safetensors", config=lambda _: change), words)


@pytest.mark.parametrize(
    ("config", "default"),
    [({"qualities": 4, "default_quality": 9}, 4), ({"qualities": 4, "default_quality": 1}, 1), ({"qualities": 3}, 2)],
)
@pytest.mark.parametrize("kind", ["linear", "hific"])
def test_the_default_quality_is_one_there_is_and_the_middle_where_none_is_told(kind, config, default, tmp_path):
    save(tmp_path / "good.safetensors")
    header, body = parts(tmp_path / "good.safetensors")
    more = {"frame_size": [WIDTH, HEIGHT]} if kind == "linear" else {"stride": 16, "network": {}}
    changed = metadata(kind=kind, config=json.dumps(config | more))(header)
    found = read_header(write(tmp_path / "other.safetensors", changed, body))
    assert (found.qualities, found.default_quality) == (config["qualities"], default)


def changed(part, **values):
    return lambda config: {part: config[part] | values}


NETWORKS = {
    "channels": (changed("network", channels=200_000), r"channels|is \("),
    "no channels": (changed("network", channels=0), "channels"),
    "widths": (changed("network", analysis_widths=[10**6] * 3), r"is \("),
    "a width beyond 64 bits": (changed("network", analysis_widths=[10**20, 8, 8]), "do not fit"),
    "blocks": (changed("network", analysis_blocks=[10**6, 0, 0]), "residual blocks"),
    "no widths": (changed("network", analysis_widths=[]), "analysis_widths"),
    "a family that is a list": (changed("network", family=[]), "family"),
    "paper": (lambda config: {"network": {"family": "paper", "width": 10**5}}, "residual blocks"),
    "scales": (changed("hyper", scales=1e999), "no whole number"),
    "scales of another type": (changed("hyper", scales=48.0), "no whole number"),
    "passes of texts": (changed("hyper", passes=[["a", "b", None]]), "no whole number"),
    "passes of nothing": (changed("hyper", passes=[[0, None, None]]), "no whole number"),
}


def without_memory(make):
    """make, which may be called where tensors have no memory only."""

    def called(*arguments):
        assert torch.empty(0).is_meta
        return make(*arguments)

    return called


@pytest.mark.parametrize("case", NETWORKS)
def test_networks_larger_than_the_file_are_refused_before_they_are_made(case, dense, tmp_path, monkeypatch):
    change, words = NETWORKS[case]
    if case in ("scales", "scales of another type", "passes of texts", "passes of nothing"):  # networks come first, and fit
        refused(craft(dense, tmp_path / "bad.safetensors", config=change), words, manifold.load)
        return
    for name in ("_compact", "_paper"):
        monkeypatch.setattr(build, name, without_memory(getattr(build, name)))
    refused(craft(dense, tmp_path / "bad.safetensors", config=change), words, manifold.load)


@pytest.mark.parametrize("network", [{"m": 200_000}, {"width": 4000, "widest": 10**6}, {"m": 10**20}])
def test_an_ncode_network_larger_than_the_file_takes_no_memory(network, tmp_path, monkeypatch):
    from mcode.config import to_dict
    from mcode.nets import ncode
    from mcode.nets.ncode import NCode, NCodeConfig

    config = NCodeConfig(size=32, channels=1, m=3, width=4)
    held = {k: v.numpy() for k, v in NCode(config).state_dict().items() if not k.endswith("num_batches_tracked")}
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    described = {"frame_size": [32, 32], "stride": None, "qualities": 2, "network": to_dict(config)}
    save(good, kind="ncode", config=described, tensors=held)
    manifold.load(good, "cpu")
    with monkeypatch.context() as patched:
        patched.setattr(ncode, "NCode", without_memory(NCode))
        refused(craft(good, bad, config=changed("network", **network)), "do not fit", manifold.load)
    refused(craft(good, bad, config=lambda _: {"frame_size": [96, 64]}), "that of the networks", manifold.load)


def ones(*shape):
    return np.ones(shape, np.float32)


TENSORS = {
    "gain of no dimension": ({"gain": ones()}, "gains are"),
    "gain of one dimension": ({"gain": ones(2)}, "gains are"),
    "gain of three dimensions": ({"gain": ones(2, 6, 1)}, "gains are"),
    "gain of other channels": ({"gain": ones(2, 5), "inverse": ones(2, 5)}, "gains are"),
    "gain of few qualities": ({"gain": ones(1, 6)}, "gain is"),
    "inverse of few qualities": ({"inverse": ones(1, 6)}, "inverse is"),
    "gain is no number": ({"gain": np.full((2, 6), np.nan, np.float32)}, "holds what is no finite"),
    "inverse is endless": ({"inverse": np.full((2, 6), np.inf, np.float32)}, "holds what is no finite"),
    "margin of another shape": ({"zero_margin": ones(3)}, "zero_margin is"),
    "no margin": ({"zero_margin": ones(0)}, "zero_margin is"),
    "one more tensor": ({"more\x1b[31m": ones(3)}, r"'more\\x1b\[31m' is no part"),
    "sizes that are no numbers": ({"hyper.tables.sizes": np.full(144, np.nan, np.float32)}, "holds what is no finite"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_other_shapes_are_one_line(case, dense, tmp_path):
    change, words = TENSORS[case]
    refused(craft(dense, tmp_path / "bad.safetensors", tensors=change), words, manifold.load)


def base64_of(channels):
    return manifold._tables_text([CodeTables.fit([np.zeros((channels, 1, 1), np.int16)])] * 2)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ("{", "code tables are damaged"),
        ("5", "code tables are damaged"),
        ("{}", "code tables are damaged"),
        ("[" * 100_000, "code tables are damaged"),
        ('["***", "***"]', "code tables are damaged"),
        ('["AAA", "AAA"]', "code tables are damaged"),
        ('["\u00e9", "\u00e9"]', "code tables are damaged"),
        ("[5, 5]", "code tables are damaged"),
        ("[null, null]", "code tables are damaged"),
        (json.dumps(json.loads(base64_of(6))[:1]), "1 code tables for 2 qualities"),
        (base64_of(7), "for 7 channels, and the networks have 6"),
    ],
)
def test_tables_that_are_none_are_told_when_the_manifold_is_loaded(tables, words, dense, tmp_path):
    refused(craft(dense, tmp_path / "bad.safetensors", tables=tables), words, manifold.load)


@pytest.mark.parametrize("ranges", ["x", 5, [1], [[1e999, 1]], [["a", "b"]], {"a": 1}])
def test_a_card_with_other_ranges_for_integers_is_one_line_or_none(ranges, dense, tmp_path):
    path = craft(dense, tmp_path / "odd.safetensors", card=json.dumps({"ranges": ranges}))
    try:
        manifold.load(path, "cpu")
    except ManifoldError as error:
        assert "ranges for integers do not fit" in str(error)


def test_a_linear_manifold_holds_no_more_components_than_its_pictures_have_values(tmp_path):
    save(tmp_path / "good.safetensors")
    for m in (10**9, 3 * WIDTH * HEIGHT + 1, M + 1, 0, -3, "x", 3.0, True):
        bad = craft(tmp_path / "good.safetensors", tmp_path / "bad.safetensors", config=lambda _, m=m: {"m": m})
        refused(bad, "do not fit", manifold.load)


def test_a_file_that_calls_itself_otherwise_hides_no_manifold(folder):
    general = manifold.read_info(manifold.folders()[-1] / "general.safetensors")
    save(folder / "evil.safetensors", name="general")
    save(folder / "odd.safetensors", name="tiny", config={"m": M, "frame_size": [WIDTH, HEIGHT], "qualities": 2})
    assert manifold.find_id(bytes.fromhex(general.id)) == manifold.find("general") == manifold.find(general.id) == general.path
    skipped = []
    listed = {info.name: info.path for info in manifold.list_manifolds(skipped)}
    assert listed["general"] == general.path and listed["tiny"] == manifold.find("tiny") == folder / "odd.safetensors"
    assert len(skipped) == 1 and "evil.safetensors: calls itself general" in skipped[0]
    evil = manifold.read_info(folder / "evil.safetensors").id
    assert manifold.find_id(bytes.fromhex(evil)) == manifold.find(evil) == folder / "evil.safetensors"


def test_a_file_with_anothers_id_does_not_stand_in_for_it(folder):
    save(folder / "good.safetensors")
    info = manifold.read_info(folder / "good.safetensors")
    header, body = parts(folder / "good.safetensors")
    write(folder / "a.safetensors", header, bytes(len(body)))
    assert manifold.read_info(folder / "a.safetensors").id == info.id
    assert manifold.find_id(bytes.fromhex(info.id)) == folder / "good.safetensors"
    shutil.copy(folder / "good.safetensors", folder / "0.safetensors")
    assert manifold.find_id(bytes.fromhex(info.id)) == folder / "0.safetensors"


def test_verify_sees_every_installed_file(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(manifold.SEARCH_VARIABLE, str(tmp_path / "more"))
    (tmp_path / "more").mkdir()
    save(folder / "mine.safetensors")
    assert main(["manifolds", "verify"]) == 0
    header, body = parts(folder / "mine.safetensors")
    write(tmp_path / "more" / "other.safetensors", header, bytes(len(body)))  # "mine" by its name, too, and damaged
    (folder / "short.safetensors").write_bytes((folder / "mine.safetensors").read_bytes()[:50])
    capsys.readouterr()
    assert main(["manifolds", "verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        len([line for line in lines if "BAD" in line]) == 2 and sum(line.endswith("  ok") for line in lines) == len(lines) - 2
    )
    assert main(["manifolds", "verify", "--json"]) == 1
    found = {result["path"]: result for result in json.loads(capsys.readouterr().out)["manifolds"]}
    short = found[str(folder / "short.safetensors")]
    assert (short["name"], short["id"], short["ok"]) == ("short", None, False) and "short.safetensors: " in short["error"]
    assert found[str(folder / "mine.safetensors")]["ok"]


ESCAPES = "\x1b]0;pwned\x07\x1b[31mred\x9b\u202e"


def test_nothing_in_a_manifold_tells_the_terminal_what_to_do(folder, capsys):
    path = folder / "mine.safetensors"
    save(path, name=f"mine{ESCAPES}", card={"title": f"a{ESCAPES}\nb", f"k{ESCAPES}": {"x": ESCAPES}, "l": [ESCAPES]})
    for arguments in (["list"], ["show", str(path)], ["verify", str(path)], ["list", "--json"], ["show", str(path), "--json"]):
        assert main(["manifolds", *arguments]) == 0
        out, err = capsys.readouterr()
        assert "pwned" in out and all(c.isprintable() or c == "\n" for c in out + err)
        if arguments[-1] == "--json":
            found = json.loads(out)
            assert (found.get("manifolds") or [found])[0]["name"] == f"mine{ESCAPES}"


def test_tables_and_reports_keep_their_columns(capsys):
    from mcode.cli.output import one_line, print_report, print_table, print_warnings

    print_table(("a\x1b", "b "), [("x\ny", "  1"), ("\u00e9\u4e2d", "22")], right=("b ",))
    print_report("t\x07", {"k\x1b": "v\x1b[2J\n", "long": "w"})
    print_warnings(["a\x1b\nb"])
    out, err = capsys.readouterr()
    assert out == "a?    b\nx y    1\n\u00e9\u4e2d    22\nt?\n  k?    v?[2J \n  long  w\n" and err == "mcode: warning: a? b\n"
    assert one_line("a \n\tb\ud800\x7f") == "a b??"
