"""Freed memory that is kept: fewer page faults, and hands off where the user has said what malloc is to do."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from mcode import memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is glibc's to keep")
PROGRAM = """
import json, resource, sys, threading
from mcode.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []

def work():
    for i in range(40):
        if i == 10:
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        a, b = b"a" * (24 << 20), b"b" * (48 << 20)
        del b, a
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps([kept, faults[1] - faults[0]]))
"""


def test_memory_that_torch_does_not_get_is_known_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.ran_out(error.value) and memory.ran_out(MemoryError())
    assert memory.ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB."))
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not memory.ran_out(OSError())


def run(how: str, **environment: str) -> tuple[bool | None, int]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=plain | environment, capture_output=True, text=True, check=True
    )
    kept, faults = json.loads(done.stdout)
    return kept, faults


@needs_glibc
def test_memory_that_is_used_again_and_again_is_asked_for_once():
    kept, few = run("keep")
    _, many = run("leave")
    assert kept is True
    assert many > 100_000 and few < many / 10


@needs_glibc
@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_has_set_stays(name):
    kept, faults = run("keep", **{name: "glibc.malloc.arena_max=4" if name == "GLIBC_TUNABLES" else "4"})
    assert kept is False and faults > 10_000


def test_other_systems_go_on_without(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False


def test_other_c_libraries_go_on_without(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    monkeypatch.setattr(memory.sys, "platform", "linux")
    for name in memory._SAID:
        monkeypatch.delenv(name, raising=False)
    assert memory.keep_freed_memory() is False
