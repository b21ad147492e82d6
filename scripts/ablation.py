"""Trains a family of HiFiC configurations, one after the other, and measures them side by side. Goes on where it stopped.

    python scripts/ablation.py configs/hific --data DIR --out runs/hific --pictures DIR/stills/kodak --device cuda
    python scripts/ablation.py configs/hific --data DIR --out runs/small --small --steps 500 --only no-gan,low,beta-1.5
    python scripts/ablation.py configs/hific --data DIR --out runs/hific --seeds 1,2,3,4 --only low,unconditional,instance-d

configs/hific has, by what the paper shows them in: low, medium, high, no-gan* and hyperprior* (the models, the baseline without
a GAN and M&S, figure 4); beta-* (figure 5); unconditional, blocks-*, hyperprior-gan (figure 6); unconditional, instance-d*
(table 1); instance-eg (darkening); no-perceptual, vgg-l1, lpips (figure 8); gan-alone, gan-alone-fixed (figure 9). stage1* and
mse are what these start from. All but they have 2,000,000 steps, those of what they start from included. d_P is VGG19's
distance where the paper has LPIPS; with its weights, --only NAMES --set loss.perceptual='"lpips"' trains as the paper does.

A configuration whose `initial` names another's checkpoint is trained after it. OUT/NAME holds each training, OUT/NAME.toml what
it was trained with, OUT/report the table, the sweep over beta and ablation.json (as `mcode evaluate ablation` makes them).
--small: networks, crops and batches for an afternoon on a processor. A training that fails is named, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mcode.config import from_dict, read
from mcode.errors import McodeError
from mcode.manifold import read_info
from mcode.training.hific import HificTraining
from mcode.training.loop import CHECKPOINT

SMALL = {
    "network": {"channels": 32, "width": 8, "hyper": 32},
    "data": {"crop": 128, "batch": 4, "longest": 640, "frames_per_video": 2},
    "optimiser": {"learning_rate": 2e-4, "clip": 1.0},
}
SMALL_BLOCKS = {9: 3, 5: 2, 1: 1}
STAGE = 1_000_000
STEPS = {"optimiser": ("steps", "adversarial_steps", "checkpoint_every"), "loss": ("easy_steps",)}
SMALL_MEAN_SCALE = 26  # of 192 channels as 8 of 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, help="a folder of configurations")
    parser.add_argument("--data", type=Path, required=True, help="what the configurations' folders are relative to")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="names of configurations, parted by commas; what they start from is trained too")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, help="in place of each 1,000,000 that a configuration has")
    parser.add_argument("--adversarial-steps", type=int, help="of each stage with the GAN; as many as --steps where left out")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="in every configuration, as TOML")
    parser.add_argument("--seeds", type=whole_numbers, help="as 1,2,3,4: all with each, as NAME, NAME-s2 and so on")
    parser.add_argument("--pictures", type=Path, help="what the models are measured on; DATA/stills/kodak where there is one")
    parser.add_argument("--perceptual", type=Path, help="folder of the weights of losses and metrics; else $MCODE_PERCEPTUAL")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    given = parser.parse_args()
    pictures = given.pictures or given.data / "stills" / "kodak"
    try:
        family = read_family(given.configs, given.only.split(",") if given.only else None)
        changed = {
            name: override(values, given.small, given.steps, given.set, given.adversarial_steps)
            for name, values in family.items()
        }
        for name, values in changed.items():
            from_dict(values, HificTraining, source=f"{given.configs / name}.toml")
        changed = with_seeds(changed, given.seeds) if given.seeds else changed
    except McodeError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    made, left_out = [], []
    for name, values in changed.items():
        try:
            if (start := start_of(values)) in left_out:
                raise McodeError(f"starts from {start}, which was left out")
            made.append(train_one(name, values, given))
        except McodeError as error:
            left_out.append(name)
            print(json.dumps({"configuration": name, "left_out": str(error)}), flush=True)
    if not made:
        return 1
    return max(measure(made, pictures, given), int(bool(left_out)))


def read_family(folder: Path, only: list[str] | None) -> dict[str, dict[str, Any]]:
    """Configurations by file name, those that others start from before them. Raises McodeError."""
    family = {path.stem: read(path) for path in sorted(folder.glob("*.toml"))}
    if not family:
        raise McodeError(f"{folder}: no configurations (.toml) in it")
    if missing := [name for name in only or () if name not in family]:
        raise McodeError(f"--only {missing[0]}: not in {folder}, which has {', '.join(family)}")
    ordered: dict[str, dict[str, Any]] = {}

    def add(name: str, behind: tuple[str, ...] = ()) -> None:
        if name in ordered:
            return
        if name in behind or name not in family:
            raise McodeError(f"{folder}: {' -> '.join((*behind, name))}: no such configuration to start from, or a circle")
        from_dict(family[name], HificTraining, source=f"{folder / name}.toml")
        if start := start_of(family[name]):
            add(start, (*behind, name))
        ordered[name] = family[name]

    for name in only or family:
        add(name)
    return ordered


def start_of(values: dict[str, Any]) -> str | None:
    """The configuration that this one starts from."""
    return Path(values["initial"]).parent.name if values.get("initial") else None


def override(
    values: dict[str, Any], small: bool, steps: int | None, assignments: list[str], adversarial_steps: int | None = None
) -> dict[str, Any]:
    """The configuration with --small, --steps, --adversarial-steps and --set in it. Raises McodeError."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    if small:
        for table, items in SMALL.items():
            changed[table] = changed.get(table, {}) | items
        blocks = changed["network"].get("blocks", 9)
        changed["network"]["blocks"] = SMALL_BLOCKS.get(blocks, blocks)
        if changed["network"].get("autoencoder") == "mean-scale":
            changed["network"]["width"] = SMALL_MEAN_SCALE
    if steps is not None:
        optimiser = changed["optimiser"]
        stages = {key: -(-optimiser.get(key, 0) // STAGE) for key in ("steps", "adversarial_steps")}
        optimiser |= {key: steps * count for key, count in stages.items() if count}
        optimiser["checkpoint_every"] = max(1, min(optimiser.get("checkpoint_every", steps), steps // 5))
        loss = changed.setdefault("loss", {})
        loss["easy_steps"] = min(loss.get("easy_steps", steps // 20), steps // 20)
    if adversarial_steps is not None and changed["optimiser"].get("adversarial_steps"):
        changed["optimiser"]["adversarial_steps"] = adversarial_steps
    for text in assignments:
        place, _, value = text.partition("=")
        table, _, key = place.strip().rpartition(".")
        try:
            target = changed.setdefault(table, {}) if table else changed
            target[key] = tomllib.loads(f"x = {value}")["x"]
        except (tomllib.TOMLDecodeError, TypeError, AttributeError):
            raise McodeError(f"--set {text}: give TABLE.KEY=VALUE with a value as TOML has it, as data.batch=4") from None
    return changed


def whole_numbers(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise ValueError(text)
    return numbers


def with_seeds(family: dict[str, dict[str, Any]], seeds: list[int]) -> dict[str, dict[str, Any]]:
    """The family once for each seed. What a training starts from has its seed, too."""
    made = {}
    for seed in seeds:
        end = f"-s{seed}" if seed != 1 else ""
        for name, values in family.items():
            made[name + end] = values | {"name": values["name"] + end}
            if values.get("seed", 1) != seed:
                made[name + end]["seed"] = seed
            if start := start_of(values):
                made[name + end]["initial"] = f"../{start}{end}/{Path(values['initial']).name}"
    return made


def train_one(name: str, values: dict[str, Any], given: argparse.Namespace) -> Path:
    """The manifold of one configuration, trained as far as it was not yet. Raises McodeError."""
    from mcode.training.train import train

    config = from_dict(values, HificTraining, source=name)
    path, out = given.out / f"{name}.toml", given.out / name
    finished = out / f"{config.name}.safetensors"
    text, before = to_toml(values), path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    begun = (out / CHECKPOINT).exists() and before is not None and but_steps(before) != but_steps(text)
    if begun or (finished.exists() and before not in (None, text)):
        raise McodeError(f"{path}: trained with another configuration; choose another --out, or remove {out}")
    path.write_text(text, encoding="utf-8")
    total = config.optimiser.steps + config.optimiser.adversarial_steps
    card = read_info(finished).card if finished.exists() else {}
    if card.get("steps", 0) - card.get("start_steps", 0) == total:
        print(json.dumps({"configuration": name, "manifold": str(finished), "finished": "before"}), flush=True)
        return finished
    started = time.monotonic()

    def report(row: dict[str, float]) -> None:
        print(f"{name}  " + "  ".join(f"{key} {value:g}" for key, value in row.items()), file=sys.stderr)

    made = train(path, given.data, out, resume=True, device=given.device, perceptual=given.perceptual, report=report)
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"configuration": name, "manifold": str(made), "seconds": seconds}), flush=True)
    return made


def but_steps(text: str) -> dict[str, Any] | None:
    """A configuration without what --steps sets; None where it is damaged."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    for table, keys in STEPS.items():
        if isinstance(items := values.get(table), dict):
            values[table] = {key: value for key, value in items.items() if key not in keys}
    return values


def measure(made: list[Path], pictures: Path, given: argparse.Namespace) -> int:
    import os

    from mcode.evaluation.ablation import evaluate_ablation, seeds_table, table
    from mcode.evaluation.features import WEIGHTS_VARIABLE

    weights = given.perceptual or os.environ.get(WEIGHTS_VARIABLE) or None
    try:
        report = evaluate_ablation(pictures, made, given.out / "report", perceptual=weights, device=given.device, force=True)
    except McodeError as error:
        print(f"ablation.py: error: {error}", file=sys.stderr)
        return 1
    for columns, lines in (table(report), seeds_table(report)):
        if lines:
            print("\n".join("\t".join(line) for line in (columns, *lines)))
    print("\n".join(report.files))
    return 0


def to_toml(values: dict[str, Any]) -> str:
    """Tables of plain values, one level deep, as configurations are. JSON writes them as TOML does."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for table, items in values.items():
        if isinstance(items, dict):
            plain += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in items.items())]
    return "\n".join(plain) + "\n"


if __name__ == "__main__":
    sys.exit(main())
