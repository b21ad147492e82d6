"""Configuration files: what loads, what is refused, and with which words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcode import config
from mcode.errors import ConfigError


@dataclass(frozen=True)
class Optimiser:
    learning_rate: float
    kind: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate = {self.learning_rate} must be above 0")


@dataclass(frozen=True)
class Stage:
    steps: int
    weight: float = 1.0


@dataclass(frozen=True)
class Train:
    name: str
    optimiser: Optimiser
    bits: Literal[4, 8] = 4
    seed: int | None = None
    note: Optional[str] = None  # noqa: UP045 - both spellings of an optional must work
    widths: tuple[int, ...] = (64, 128)
    ema: bool = False
    stages: tuple[Stage, ...] = ()
    second: Optimiser = field(default_factory=lambda: Optimiser(0.1))
    size: int | str = "native"


@dataclass(frozen=True)
class Unusable:
    numbers: list[int]


def write(tmp_path, text: str):
    path = tmp_path / "train.toml"
    path.write_text(text)
    return path


def refusal(tmp_path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, text), Train)
    message = str(caught.value)
    assert "train.toml" in message and "\n" not in message
    return message.partition("train.toml: ")[2]


MINIMAL = 'name = "a"\n[optimiser]\nlearning_rate = 1\n'


def test_a_file_becomes_nested_frozen_dataclasses(tmp_path):
    text = """
    name = "small"
    bits = 8
    seed = 3
    widths = [96, 192, 384]
    size = 64
    [optimiser]
    learning_rate = 2e-4
    kind = "sgd"
    betas = [0.5, 1]
    [[stages]]
    steps = 10
    [[stages]]
    steps = 20
    weight = 2
    """
    assert config.load(write(tmp_path, text), Train) == Train(
        name="small",
        bits=8,
        seed=3,
        widths=(96, 192, 384),
        size=64,
        optimiser=Optimiser(2e-4, "sgd", (0.5, 1.0)),
        stages=(Stage(10), Stage(20, 2.0)),
    )


def test_what_is_left_out_has_its_default(tmp_path):
    loaded = config.load(write(tmp_path, MINIMAL), Train)
    assert loaded == Train(name="a", optimiser=Optimiser(1.0))
    assert type(loaded.optimiser.learning_rate) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nmae = "a"', 'unknown key "nmae"; did you mean "name"?'),
        (
            'name = "a"\n[optimiser]\nlearing_rate = 1',
            'unknown key "learing_rate" in [optimiser]; did you mean "learning_rate"?',
        ),
        (
            MINIMAL + "xyz = 1",
            'unknown key "xyz" in [optimiser]; known keys are learning_rate, kind, betas',
        ),
        ("[optimiser]\nlearning_rate = 1", 'missing key "name", a text in quotes'),
        ('name = "a"\n[optimiser]', 'missing key "learning_rate" in [optimiser], a finite number'),
        ('name = "a"', 'missing key "optimiser", a table'),
        ("name = 3\n[optimiser]\nlearning_rate = 1", "name = 3 is not a text in quotes"),
        ('name = "a"\noptimiser = "adam"', 'optimiser = "adam" is not a table'),
        (MINIMAL + 'kind = "adm"', 'optimiser.kind = "adm" is not one of "adam", "sgd"; did you mean "adam"?'),
        (MINIMAL + "betas = [1]", "optimiser.betas = [1] is not a list of 2: a finite number, a finite number"),
        (MINIMAL + 'betas = [1, "x"]', 'optimiser.betas[1] = "x" is not a finite number'),
        ("seed = true\n" + MINIMAL, "seed = true is not a whole number"),
        ("seed = 1.0\n" + MINIMAL, "seed = 1.0 is not a whole number"),
        ("ema = 1\n" + MINIMAL, "ema = 1 is not true or false"),
        ("bits = 5\n" + MINIMAL, "bits = 5 is not one of 4, 8"),
        ("size = 1.5\n" + MINIMAL, "size = 1.5 is not a whole number or a text in quotes"),
        ('widths = "64"\n' + MINIMAL, 'widths = "64" is not a list where each is a whole number'),
        ("widths = [64, true]\n" + MINIMAL, "widths[1] = true is not a whole number"),
        (MINIMAL + "[[stages]]\nsteps = 1\n[[stages]]\n", 'missing key "steps" in [stages[1]], a whole number'),
        ('name = "a"\n[optimiser]\nlearning_rate = nan', "optimiser.learning_rate = NaN is not a finite number"),
        ('name = "a"\n[optimiser]\nlearning_rate = -1', "[optimiser] learning_rate = -1.0 must be above 0"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_remedy(tmp_path, text, message):
    assert refusal(tmp_path, text) == message


def test_broken_toml_names_the_line(tmp_path):
    assert refusal(tmp_path, 'name = "a"\nbits = = 3') == "not valid TOML: Invalid value (at line 2, column 8)"


def test_a_missing_file_and_a_binary_one_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot read this configuration: No such file"):
        config.load(tmp_path / "nowhere.toml", Train)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: not a TOML file"):
        config.load(tmp_path / "binary.toml", Train)


def test_an_unusable_schema_is_a_programming_error():
    with pytest.raises(TypeError, match="a config field cannot be of type list"):
        config.from_dict({"numbers": [1]}, Unusable)


finite = st.floats(min_value=1e-6, max_value=1e6)
optimisers = st.builds(Optimiser, finite, st.sampled_from(["adam", "sgd"]), st.tuples(finite, finite))


@given(
    st.builds(
        Train,
        name=st.text(),
        optimiser=optimisers,
        bits=st.sampled_from([4, 8]),
        seed=st.none() | st.integers(),
        note=st.none() | st.text(),
        widths=st.lists(st.integers()).map(tuple),
        ema=st.booleans(),
        stages=st.lists(st.builds(Stage, st.integers(), finite)).map(tuple),
        second=optimisers,
        size=st.integers() | st.text(),
    )
)
def test_a_config_survives_a_checkpoint(original):
    stored = json.dumps(config.to_dict(original))
    assert config.from_dict(json.loads(stored), Train) == original
