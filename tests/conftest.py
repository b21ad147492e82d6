"""What several tests share: the training data where it is at hand, a small clip with sound, few threads."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest
from hypothesis import settings

from mcode.testclip import write_clip

settings.register_profile("mcode", deadline=None)  # a busy machine is no failure
settings.load_profile("mcode")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data/README.md: $MCODE_DATA, or shared/data beside the checkout. Tests skip without it."""
    beside = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("MCODE_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no training data at {folder} (set MCODE_DATA)")
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96x64, 25 Hz, 2 s, with sound: a figure that moves its arms."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, scene="arms", seconds=2, size=(96, 64), seed=1)
    return path
