"""Small classifiers whose features are a loss: they learn their folders, and their distance tells classes apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mcode.errors import InputError
from mcode.training import classes
from mcode.training.squares import Squares, load_squares
from mcode.training.train import train

CPU = torch.device("cpu")
CONFIG = """
kind = "ncode"
name = "tiny"
steps = 4
bits = [3]
l3 = 1.0
class_networks = 2
class_epochs = 1
bfloat16 = false
checkpoint_every = 2
[network]
family = "residual"
frame_size = [32, 32]
m = 4
width = 4
blocks = 1
encoder = true
[data]
folders = ["shapes"]
batch = 4
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Noise with upright stripes in one folder, lying ones in the other."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, axis in (("lying", 0), ("upright", 1)):
        (folder / "shapes" / name).mkdir(parents=True)
        for i in range(40):
            stripes = np.sin(np.arange(32) * 1.2 + rng.uniform(0, 6)) * 60
            picture = 128 + np.expand_dims(stripes, 1 - axis) + rng.normal(0, 20, (32, 32))
            rgb = np.repeat(picture[..., None], 3, 2).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / "shapes" / name / f"{i}.png"), rgb)
    return folder


@pytest.fixture(scope="module")
def squares(data) -> Squares:
    return load_squares([data / "shapes"], size=32, channels=3, every=1)


def learn(squares: Squares, path: Path, epochs: int) -> list[classes.ClassNetwork]:
    return classes.learn(squares, 2, path, seed=1, device=CPU, epochs=epochs, bfloat16=False)


def test_classes_are_folders_and_networks_of_both_kinds_learn_them(squares, tmp_path):
    labels, count = classes.numbers(squares)
    assert count == 2
    assert labels.tolist() == [0] * 40 + [1] * 40
    networks = learn(squares, tmp_path / "c.safetensors", epochs=60)
    x = torch.from_numpy(squares.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    for network in networks:
        with torch.no_grad():
            right = (network.eval()(x).argmax(1).numpy() == labels).mean()
        assert right > 0.9
    distance = classes.ClassDistance(networks)
    torch.manual_seed(0)
    same, other = distance(x[:10], x[20:30]).mean(), distance(x[:10], x[50:60]).mean()
    assert other > 2 * same
    assert distance(x[:4], x[:4]).abs().max() < 1e-6


def test_what_was_learned_is_kept_and_a_damaged_file_is_named(squares, tmp_path):
    path = tmp_path / "c.safetensors"
    first = learn(squares, path, epochs=1)
    again = learn(squares, path, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(first[1].parameters(), again[1].parameters(), strict=True))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not the class networks of this training"):
        learn(squares, path, epochs=1)


def test_networks_are_learned_anew_where_they_would_be_others(squares, tmp_path):
    """A run that was ended before its first checkpoint leaves the file, and the next may be given other pictures or epochs."""
    fewer = Squares(squares.pixels[::2], squares.clips[::2], squares.folders[::2])
    swapped = Squares(squares.pixels, squares.clips, squares.folders[::-1])
    path = tmp_path / "c.safetensors"
    for pictures, epochs in ((squares, 1), (fewer, 1), (swapped, 1), (squares, 2)):
        kept, alone = learn(pictures, path, epochs), learn(pictures, tmp_path / "absent" / path.name, epochs)
        (tmp_path / "absent" / path.name).unlink()
        assert all(torch.equal(a, b) for a, b in zip(kept[1].parameters(), alone[1].parameters(), strict=True))
    old = tmp_path / "old.safetensors"
    save_file(load_file(path), old)  # as it was kept before it said what it was made of: a training goes on with it
    assert all(
        torch.equal(a, b) for a, b in zip(kept[1].parameters(), learn(squares, old, epochs=1)[1].parameters(), strict=True)
    )


def test_pictures_of_one_folder_have_no_classes(squares, tmp_path):
    alone = Squares(squares.pixels[:40], squares.clips[:40], squares.folders[:40])
    with pytest.raises(InputError, match="a folder for each class"):
        learn(alone, tmp_path / "c.safetensors", epochs=1)


def test_a_training_with_the_loss_of_classes_logs_it(data, tmp_path):
    path, rows = tmp_path / "config.toml", []
    path.write_text(CONFIG)
    train(path, data, tmp_path / "out", device="cpu", report=rows.append)
    assert all(0 < row["classes"] < 4 for row in rows)
    assert (tmp_path / "out" / classes.FILE).is_file()
