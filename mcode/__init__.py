"""MCode: video as coordinates on a learned manifold.

    import mcode
    manifold = mcode.load("general")
    report = mcode.encode_file("in.mp4", "out.mcode", manifold=manifold, n=4)
    mcode.decode_file("out.mcode", "back.mp4")

Frame by frame: `Encoder(manifold, width, height).push(frame)` gives packets, `Decoder(manifold).push(packet)` frames.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "manifold",
    "Manifold": "manifold",
    "Frame": "frame",
    "Encoder": "codec",
    "Decoder": "codec",
    "Packet": "packet",
    "StreamHeader": "packet",
    "encode_file": "transcode",
    "decode_file": "transcode",
    "EncodeReport": "transcode",
    "DecodeReport": "transcode",
    "McodeError": "errors",
    "WireError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `mcode --help` must not wait for torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
