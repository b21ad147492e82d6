"""Checkpoints of the PyTorch port of HiFiC: the same numbers after the import, and one line for every file it cannot be."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcode import importing, latents, manifold
from mcode.cli import main
from mcode.codec import Decoder, Encoder
from mcode.errors import InputError, McodeError
from mcode.frame import Frame
from mcode.importing import import_hific_pytorch, read_hific_pytorch
from mcode.nets import paper
from mcode.testclip import write_clip
from mcode.training import paper as fitting

TINY = paper.PaperConfig(channels=6, width=2, blocks=2, hyper=4)


def port_names() -> list[str]:
    """The port's names for TINY, written out from its published layout, not from the code under test."""
    names = []
    for i in range(1, 6):
        names += [f"Encoder.conv_block{i}.{k}" for k in ("1.weight", "1.bias", "2.gamma", "2.beta")]
    names += ["Encoder.conv_block_out.1.weight", "Encoder.conv_block_out.1.bias"]
    names += [f"Generator.conv_block_init.{k}" for k in ("0.gamma", "0.beta", "2.weight", "2.bias", "3.gamma", "3.beta")]
    for i in range(2):
        for part in ("conv1", "conv2"):
            names += [f"Generator.resblock_{i}.{part}.{k}" for k in ("weight", "bias")]
        for part in ("norm1", "norm2"):
            names += [f"Generator.resblock_{i}.{part}.{k}" for k in ("gamma", "beta")]
    for i in range(1, 5):
        names += [f"Generator.upconv_block{i}.{k}" for k in ("0.weight", "0.bias", "1.gamma", "1.beta")]
    names += ["Generator.conv_block_out.1.weight", "Generator.conv_block_out.1.bias"]
    for net in ("analysis_net", "synthesis_mu", "synthesis_std"):
        names += [f"Hyperprior.{net}.conv{i}.{k}" for i in (1, 2, 3) for k in ("weight", "bias")]
    names += [f"Hyperprior.hyperlatent_likelihood.{k}_{i}" for i in range(4) for k in "Hab"]
    return names


def remade(name: str, shape) -> torch.Tensor:
    """The weights of which the expected outputs were computed: a standard normal seeded by the tensor's name."""
    r = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape).astype(np.float32)
    if name.endswith("gamma"):
        return torch.from_numpy(1 + 0.1 * r)
    return torch.from_numpy(r / np.float32(np.sqrt(np.prod(shape[1:]))) if r.ndim == 4 else np.float32(0.05) * r)


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch):
    monkeypatch.setattr(fitting, "CLIP_SIZE", (64, 48))
    monkeypatch.setattr(fitting, "CLIP_SEEDS", 1)
    monkeypatch.setattr(importing, "_RANGE_SEEDS", 4)
    monkeypatch.setattr(importing, "_RANGE_SIZE", 64)
    monkeypatch.setattr(importing, "RANGE_CROPS", 24)


@pytest.fixture
def tiny() -> tuple[paper.Hific, dict[str, torch.Tensor]]:
    """Networks as trained on [0, 1], and their tensors by the port's names."""
    net = paper.Hific(TINY).eval()
    state = {ours: remade(name, tuple(v.shape)) for name, (ours, v) in zip(port_names(), net.state_dict().items(), strict=True)}
    net.load_state_dict(state)
    return net, dict(zip(port_names(), state.values(), strict=True))


def save(path: Path, tensors: dict[str, torch.Tensor], **more) -> Path:
    torch.save({"model_state_dict": tensors, "epoch": 3, "steps": 12, "args": {"regime": "low"}} | more, path)
    return path


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_networks_for_0_to_1_give_the_same_latents_and_pictures_from_minus_1_to_1(tiny, tmp_path):
    net, tensors = tiny
    found = read_hific_pytorch(save(tmp_path / "a.pt", tensors))
    ours = paper.Hific(found.config).eval()
    ours.load_state_dict(found.state)
    assert found.config == TINY
    x = picture(32, 48)
    with torch.inference_mode():
        y = net.analysis((x + 1) / 2)
        assert torch.allclose(ours.analysis(x), y, atol=1e-5)
        assert torch.allclose((ours.synthesis(y) + 1) / 2, net.synthesis(y), atol=1e-5)


def test_networks_for_minus_1_to_1_end_in_the_ports_tanh(tiny, tmp_path):
    net, tensors = tiny
    found = read_hific_pytorch(save(tmp_path / "a.pt", tensors, args={"normalize_input_image": True}))
    ours = paper.Hific(found.config).eval()
    ours.load_state_dict(found.state)
    with torch.inference_mode():
        y = net.analysis(picture(32, 32))
        assert torch.equal(ours.analysis(picture(32, 32)), y)
        assert torch.equal(ours.synthesis(y), torch.tanh(net.synthesis(y)))


def test_an_imported_manifold_codes_a_picture_as_the_network_does(tiny, tmp_path, monkeypatch):
    net, tensors = tiny
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rgb = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(rgb).save(pictures / "a.png")
    tensors["Discriminator.conv1.weight"] = torch.zeros(3)
    path = save(tmp_path / "HiFiC-low.pt", tensors)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    report = import_hific_pytorch(path, data=pictures)
    assert report.name == "hific-low" and report.tables_from == "1 pictures and frames of pictures"
    model = manifold.load("hific-low", "cpu", precision="float32")
    assert manifold.verify("hific-low") == report.manifold_id == model.id
    assert (model.kind, model.qualities, model.stride, model.frame_size) == ("hific", 1, 16, None)
    assert model.card["checkpoint"]["steps"] == 12 and model.card["checkpoint"]["regime"] == "low"
    assert model.config["quantiser"] == "mean" and model.latent_shape(80, 64) == (7, 4, 8)
    with torch.inference_mode():
        y = net.analysis(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255)
        y = torch.nn.functional.pad(y, (0, 3, 0, 0), mode="reflect")  # 5 columns, as the port pads them
        z = net.hyperprior.side(y).round()
        mean = net.hyperprior.synthesis_mean(z)
        x_hat = net.synthesis(y)[..., :80]
    latents = model.analyse(rgb[None])
    assert torch.allclose(latents[:, :6], y - mean, atol=0.02)
    back = model.synthesise(latents, 80, 64)
    expected = (x_hat[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    assert np.abs(back[0].astype(int) - expected).mean() < 0.5  # weights in half precision

    (packet,) = Encoder(model, 80, 64, n=1).push(Frame(rgb, 0))
    (frame,) = Decoder(model).push(packet)
    assert np.array_equal(frame.rgb, model.synthesise(latents.round(), 80, 64)[0])


def test_float32_keeps_the_weights_as_they_are(tiny, tmp_path, monkeypatch):
    path = save(tmp_path / "a.pt", tiny[1])
    halved = import_hific_pytorch(path, tmp_path / "half.safetensors")
    exact = import_hific_pytorch(path, tmp_path / "exact.safetensors", float32=True)
    state = read_hific_pytorch(path).state
    kept = manifold.load(exact.path, "cpu", precision="float32").net.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    assert exact.file_bytes > halved.file_bytes and exact.manifold_id != halved.manifold_id
    monkeypatch.setattr(latents, "fast_dtype", lambda device: torch.bfloat16)
    assert [manifold.load(report.path, "cpu").precision for report in (halved, exact)] == ["bfloat16", "float32"]
    assert manifold.load(exact.path, "cpu", precision="bfloat16").precision == "bfloat16"


def test_tables_without_data_are_fitted_to_scenes_that_mcode_draws(tiny, tmp_path):
    report = import_hific_pytorch(save(tmp_path / "a.pt", tiny[1]), tmp_path / "b.safetensors", name="mine")
    assert (report.name, report.tables_from) == ("mine", "scenes rendered by MCode")
    assert report.bits_per_pixel > 0 and manifold.load(report.path, "cpu").tables(1).channels == 7


@pytest.fixture
def one_thread():
    """Two threads of small convolutions wait for each other where other work holds a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("with_data", [True, False])
def test_range_is_trained_for_an_imported_manifold_and_codes_the_same_picture(tiny, tmp_path, with_data, one_thread):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
        small.resize((256, 192), Image.Resampling.BICUBIC).save(pictures / f"{i}.png")
    path = save(tmp_path / "a.pt", {k: 20 * v if k.startswith("Encoder.conv_block_out") else v for k, v in tiny[1].items()})
    told: list[int] = []
    options = {"data": pictures if with_data else None, "force": True, "progress": lambda done, total: told.append(done)}
    plain = import_hific_pytorch(path, tmp_path / "plain.safetensors", **options)
    assert plain.coders == ("huffman", "fixed")
    rgb = np.array(Image.open(pictures / "0.png"))
    sizes = {}
    for steps in (5, 200):
        dense = import_hific_pytorch(path, tmp_path / f"{steps}.safetensors", range_steps=steps, **options)
        assert dense.coders == ("huffman", "fixed", "range")
        assert dense.manifold_id == manifold.verify(dense.path) != plain.manifold_id
        model = manifold.load(dense.path, "cpu", precision="float32")
        source = "24 crops of pictures" if with_data else "scenes rendered by MCode"
        assert f"{steps} steps on {source}" in model.card["hyperprior"]
        shown = {}
        for coder in ("huffman", "range"):
            (packet,) = Encoder(model, 256, 192, n=1, coder=coder).push(Frame(rgb, 0))
            (frame,) = Decoder(model).push(packet)
            sizes[coder, steps], shown[coder] = len(packet.to_sample(1)), frame.rgb
        assert np.array_equal(shown["range"], shown["huffman"])
    assert told[-1] == 200
    assert sizes["huffman", 5] == sizes["huffman", 200]
    assert sizes["range", 200] < 0.9 * sizes["range", 5]  # it learns what these symbols are like


def test_range_of_short_videos_learns_deltas_of_rendered_scenes(tiny, tmp_path, one_thread):
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "videos" / "a.mp4", scene="arms", seconds=0.5, size=(64, 64))
    options = {"data": tmp_path / "videos", "range_steps": 5}
    made = import_hific_pytorch(save(tmp_path / "a.pt", tiny[1]), tmp_path / "b.safetensors", **options)
    assert "range" in made.coders


def test_a_checkpoint_whose_bytes_have_changed_is_refused(tiny, tmp_path):
    path = save(tmp_path / "a.pt", tiny[1])
    data = bytearray(path.read_bytes())
    data[data.index(tiny[1]["Generator.resblock_0.conv1.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    refused(path, "damaged: the checksum of its .* is another; fetch it again")


def test_a_training_that_fails_leaves_no_manifold(tiny, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise McodeError("step 3: the loss is nan; lower the learning rate")

    monkeypatch.setattr("mcode.training.hyper.train", fail)
    with pytest.raises(McodeError, match="step 3"):
        import_hific_pytorch(save(tmp_path / "a.pt", tiny[1]), tmp_path / "b.safetensors", range_steps=5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_manifold_to_be_replaced_stays_until_the_training_is_done(tiny, tmp_path, monkeypatch):
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    seen = []

    def stop(model):
        seen.append(there.read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "_rendered_moves", stop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import_hific_pytorch(save(tmp_path / "a.pt", tiny[1]), there.name, force=True, range_steps=5)
    assert seen == ["mine"] and there.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "there.safetensors"]


class RunsCode:
    def __reduce__(self):
        return os.system, ("echo ran > ran",)


def test_checkpoints_that_would_run_code_are_refused_in_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="refused, since loading it would run code") as error:
        read_hific_pytorch(save(tmp_path / "a.pt", tiny[1], args=RunsCode()))
    assert "\n" not in str(error.value) and "system" in str(error.value)
    assert not (tmp_path / "ran").exists()


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        import_hific_pytorch(path, path.with_suffix(".safetensors"))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not list(path.parent.glob("*.safetensors*"))


def test_checkpoints_of_other_networks_name_the_first_tensor_that_differs(tiny, tmp_path):
    _, tensors = tiny

    def changed(name, tensor):
        return save(tmp_path / "a.pt", {k: v for k, v in (tensors | {name: tensor}).items() if v is not None})

    refused(changed("Generator.upconv_block2.0.bias", None), r"Generator.upconv_block2.0.bias is missing")
    refused(changed("Encoder.conv_block1.1.weight", None), r"Encoder.conv_block1.1.weight is missing")
    refused(changed("Generator.resblock_0.conv1.weight", None), r"Generator.resblock_0.conv1.weight is missing")
    refused(changed("Encoder.conv_block3.1.bias", torch.zeros(7)), r"Encoder.conv_block3.1.bias is 7, not 8")
    refused(changed("Generator.latent_noise_map.0.weight", torch.zeros(1)), r"latent_noise_map.0.weight is not a part")
    refused(changed("Hyperprior.analysis_net.conv2.bias", torch.full((4,), float("nan"))), r"conv2.bias holds values that")
    refused(changed("Encoder.conv_block4.2.gamma", torch.full((1, 16, 1, 1), 1e6)), r"beyond half precision")


def test_files_that_are_no_checkpoints_are_refused(tiny, tmp_path):
    whole = save(tmp_path / "a.pt", tiny[1]).read_bytes()
    cut = tmp_path / "cut.pt"
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        refused(cut, "cut short|damaged")
    cut.write_text("not a checkpoint at all")
    refused(cut, "cut short|damaged")
    torch.save({"state_dict": {}}, cut)
    refused(cut, "has no model_state_dict")
    torch.save([1, 2], cut)
    refused(cut, "has no model_state_dict")
    refused(tmp_path / "absent.pt", "no such file")


def test_a_damaged_file_of_the_older_form_is_refused(tiny, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"model_state_dict": tiny[1]}, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    key = re.search(rb"storage.{0,40}X.\0\0\0(\d{4,})", data, re.DOTALL)  # the name of a storage that is nowhere then
    data[key.end() - 1] ^= 1
    path.write_bytes(data)
    refused(path, "no checkpoint of PyTorch, or one cut short; fetch it again")


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tiny, tmp_path):
    _, tensors = tiny
    name = "Encoder.conv_block1.1.bias"
    plain = tensors[name]
    odd = {
        "stride 0": torch.zeros(1).expand(10**9),
        "meta": torch.zeros(plain.shape, device="meta"),
        "sparse": plain.to_sparse(),
        "complex": plain.to(torch.complex64),
    }
    with warnings.catch_warnings(action="ignore"):  # of its end in PyTorch
        odd["quantised"] = torch.quantize_per_tensor(plain, 1.0, 0, torch.qint8)
    for tensor in odd.values():
        refused(save(tmp_path / "a.pt", tensors | {name: tensor}), f"{name}' is no plain tensor")
    shared = torch.zeros(1 << 18)
    many = {f"Generator.more_{i}": shared for i in range(100)}
    refused(save(tmp_path / "a.pt", tensors | many), "claims more numbers than the file holds")
    wide = {k: torch.zeros(1).expand([10**6 if d == 6 else d for d in v.shape]) for k, v in tensors.items()}
    refused(save(tmp_path / "a.pt", wide), "claims more numbers than the file holds")
    read_hific_pytorch(save(tmp_path / "a.pt", tensors | {"Discriminator.x": torch.zeros(1).expand(10**9)}))  # not of our parts


def test_more_blocks_than_networks_have_are_refused_before_they_are_made(tiny, tmp_path):
    more = {f"Generator.resblock_{i}.conv1.weight": torch.zeros(1) for i in range(2, 5000)}
    refused(save(tmp_path / "a.pt", tiny[1] | more), "5,000 residual blocks")


def test_packed_checkpoints_are_refused_before_they_are_unpacked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    bomb = tmp_path / "bomb.pt"
    for kind, size in ((zipfile.ZIP_DEFLATED, 1000), (zipfile.ZIP_STORED, (16 << 20) + 1)):
        with zipfile.ZipFile(bomb, "w", kind) as archive:
            archive.writestr("archive/data.pkl", bytes(size))
        refused(bomb, "data.pkl' is packed or too large")


def test_nothing_is_overwritten_or_written_under_another_kind_of_name(tiny, tmp_path):
    path = save(tmp_path / "a.pt", tiny[1])
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    with pytest.raises(InputError, match="exists; add --force"):
        import_hific_pytorch(path, there)
    assert there.read_text() == "mine"
    with pytest.raises(InputError, match="ends so"):
        import_hific_pytorch(path, tmp_path / "b.pt")
    with pytest.raises(InputError, match="--data .*no such folder"):
        import_hific_pytorch(path, tmp_path / "b.safetensors", data=tmp_path / "absent")
    with pytest.raises(InputError, match="--data .*no pictures"):
        (tmp_path / "empty").mkdir()
        import_hific_pytorch(path, tmp_path / "b.safetensors", data=tmp_path / "empty")
    with pytest.raises(InputError, match="--name a/b"):
        import_hific_pytorch(path, tmp_path / "b.safetensors", name="a/b")
    with pytest.raises(InputError, match="--name .*file name without folders"):
        import_hific_pytorch(path, tmp_path / "b.safetensors", name="\udce9")


def test_the_name_of_a_manifold_that_comes_with_mcode_is_taken_with_force_only(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    path = save(tmp_path / "General.pt", tiny[1])
    for name in (None, "general", "talking-head"):
        with pytest.raises(InputError, match=f"place of {name or 'general'}, which comes with MCode.*--force"):
            import_hific_pytorch(path, name=name)
    assert not (tmp_path / "home").exists()
    assert import_hific_pytorch(path, force=True).name == "general"
    assert import_hific_pytorch(path, tmp_path / "general.safetensors").name == "general", "a place of its own"


def test_an_output_that_cannot_be_written_is_refused_before_the_checkpoint_is_read(tiny, tmp_path, monkeypatch):
    path = save(tmp_path / "a.pt", tiny[1])
    monkeypatch.setattr(importing, "read_hific_pytorch", None)
    with pytest.raises(InputError, match="a.pt is a file, not a folder"):
        import_hific_pytorch(path, path / "b.safetensors")
    (tmp_path / "c.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder; choose another name"):
        import_hific_pytorch(path, tmp_path / "c.safetensors", force=True)


def test_a_folder_in_place_of_a_checkpoint_is_told_as_such_and_not_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^\.: no such file"):
        import_hific_pytorch(".")


def test_texts_without_a_spelling_in_utf_8_do_not_come_into_the_card(tiny, tmp_path):
    path = save(tmp_path / "a.pt", tiny[1], args={"regime": "\ud800", "dataset": "caf\u00e9"})
    report = import_hific_pytorch(path, tmp_path / "b.safetensors")
    facts = manifold.load(report.path, "cpu").card["checkpoint"]
    assert "regime" not in facts and facts["dataset"] == "caf\u00e9"


def test_the_command_says_what_it_made_and_fails_in_one_line(tiny, tmp_path, capsys, one_thread):
    path, out = save(tmp_path / "a.pt", tiny[1]), tmp_path / "b.safetensors"
    assert main(["manifolds", "import", str(path), "--format", "hific-pytorch", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifold_id"] == manifold.read_info(out).id
    assert main(["manifolds", "import", str(path), "-o", str(out), "--force"]) == 0
    assert f"--manifold {out}" in capsys.readouterr().out
    assert main(["manifolds", "import", str(path), "-o", str(out), "--force", "--range-steps", "2", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "huffman, fixed, range" in told and "in half precision" in told
    assert main(["manifolds", "import", str(path), "-o", str(out), "--force", "--float32"]) == 0
    assert "in float32" in capsys.readouterr().out
    assert main(["manifolds", "import", str(path), "-o", str(out), "--force", "--range-steps", "0"]) == 2
    assert "--range-steps" in capsys.readouterr().err
    path.write_bytes(b"x")
    assert main(["manifolds", "import", str(path), "-o", str(tmp_path / "c.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["manifolds", "import", str(path), "--format", "other"]) == 2


@pytest.mark.slow
def test_full_size_weights_compute_what_the_port_computes(data_dir, tmp_path):
    folder = data_dir / "hific_pytorch"
    layout = json.loads((folder / "state_dict_layout.json").read_text())
    expected = np.load(folder / "expected.npz")
    path = save(tmp_path / "a.pt", {k: remade(k, s) for k, s in layout.items()}, args={"normalize_input_image": True})
    found = read_hific_pytorch(path)
    net = paper.Hific(found.config).eval()
    net.load_state_dict(found.state, assign=True)
    x = np.random.Generator(np.random.PCG64(7)).uniform(-1, 1, (1, 3, 128, 192)).astype(np.float32)
    with torch.inference_mode():
        y = net.analysis(torch.from_numpy(x))
        z = net.hyperprior.side(y)
        mean, scale = net.hyperprior.synthesis_mean(z.round()), net.hyperprior.synthesis_scale(z.round())
        x_hat = net.synthesis((y - mean).round() + mean)
    for name, tensor in {"y": y, "z": z, "mu": mean, "scale_raw": scale}.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], atol=1e-3)
    np.testing.assert_allclose(x_hat.numpy(), np.tanh(expected["x_hat"]), atol=1e-3)


@pytest.mark.slow
def test_full_size_weights_encode_and_decode_to_the_ports_picture(data_dir, tmp_path):
    """From checkpoint to manifold to packet to picture. The port's input lies between the levels of pixels: it takes their
    place in front of the first convolution."""
    folder = data_dir / "hific_pytorch"
    layout = json.loads((folder / "state_dict_layout.json").read_text())
    expected = np.load(folder / "expected.npz")
    x = np.random.Generator(np.random.PCG64(7)).uniform(-1, 1, (1, 3, 128, 192)).astype(np.float32)
    rgb = np.ascontiguousarray(((x[0] + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(rgb).save(tmp_path / "pictures" / "a.png")
    path = save(tmp_path / "a.pt", {k: remade(k, s) for k, s in layout.items()}, args={"normalize_input_image": True})
    report = import_hific_pytorch(path, tmp_path / "a.safetensors", data=tmp_path / "pictures", float32=True)
    model = manifold.load(report.path, "cpu", precision="float32")
    shown = []
    model.net.encoder.register_forward_pre_hook(lambda _, given: (torch.from_numpy(x),))
    model.net.generator.register_forward_hook(lambda _, given, result: shown.append(result))
    (packet,) = Encoder(model, 192, 128, n=1).push(Frame(rgb, 0))
    (frame,) = Decoder(model).push(packet)
    np.testing.assert_allclose(shown[-1].numpy(), expected["x_hat"], atol=1e-3)
    difference = frame.rgb - (np.tanh(expected["x_hat"][0]).transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(difference).max() < 1
