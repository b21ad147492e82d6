"""MCode: video as coordinates on a learned manifold.

    import mcode
    manifold = mcode.load("general")
    report = mcode.encode_file("in.mp4", "out.mcode", manifold=manifold, n=4)
    mcode.decode_file("out.mcode", "back.mp4")

Frame by frame: `Encoder(manifold, width, height).push(frame)` gives packets, `Decoder(manifold).push(packet)` frames;
`Packet.to_sample` and `Packet.parse_sample` are packets as bytes, `McodeWriter` and `McodeReader` packets in files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec import Decoder as Decoder
    from .codec import Encoder as Encoder
    from .codec import Model as Model
    from .container import McodeReader as McodeReader
    from .container import McodeWriter as McodeWriter
    from .errors import FormatError as FormatError
    from .errors import InputError as InputError
    from .errors import ManifoldError as ManifoldError
    from .errors import McodeError as McodeError
    from .errors import WireError as WireError
    from .frame import TICKS_PER_S as TICKS_PER_S
    from .frame import Frame as Frame
    from .manifold import Manifold as Manifold
    from .manifold import load as load
    from .packet import Packet as Packet
    from .packet import StreamHeader as StreamHeader
    from .transcode import DecodeReport as DecodeReport
    from .transcode import EncodeReport as EncodeReport
    from .transcode import decode_file as decode_file
    from .transcode import encode_file as encode_file

__version__ = "0.1.0"

_PUBLIC = {
    "load": "manifold",
    "Manifold": "manifold",
    "Model": "codec",
    "Frame": "frame",
    "TICKS_PER_S": "frame",
    "Encoder": "codec",
    "Decoder": "codec",
    "Packet": "packet",
    "StreamHeader": "packet",
    "McodeReader": "container",
    "McodeWriter": "container",
    "encode_file": "transcode",
    "decode_file": "transcode",
    "EncodeReport": "transcode",
    "DecodeReport": "transcode",
    "McodeError": "errors",
    "InputError": "errors",
    "ManifoldError": "errors",
    "FormatError": "errors",
    "WireError": "errors",
}
__all__ = ["__version__", *_PUBLIC]

if not TYPE_CHECKING:  # a checker that sees it takes every name for public

    def __getattr__(name):
        """Public names are imported when first used: `mcode --help` must not wait for torch."""
        if name in _PUBLIC:
            return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
