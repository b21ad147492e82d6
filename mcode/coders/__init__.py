"""Coders: symbols to bytes and back, one slice at a time. Not packets (mcode.packet), not networks, no torch.

| call | takes | gives |
|---|---|---|
| `CodeTables.fit(whole, delta)` | sequences of int16 (C, h, w), `delta` may be empty | what both ends share |
| `tables.to_bytes()`, `CodeTables.from_bytes(data)` | | bytes; `FormatError` where they are no tables |
| `slices.split(symbols, slices)` | int16 (C, h, w) | list of int16 (C, P_s) |
| `slices.join(parts, h, w)` | list of int16 (C, P_s) | int16 (C, h, w) |
| `slices.positions(s, slices, h, w)` | | the P_s flat positions of slice s, ascending |
| `huffman.encode(whole, delta, tables)` | int16 (C, P), int16 (C, P) or None | bytes, of whichever is shorter |
| `huffman.decode(data, previous, count, tables)` | bytes, the last keyframe's (C, P) or None, P | `Decoded` |
| `fixed.encode(whole, tables)` | int16 (C, P) | bytes, always the same number |
| `fixed.decode(data, count, tables)` | bytes, P | int16 (C, P) |
| `fixed.clip(whole, tables)` | int16 (C, ...) | what the other end of `fixed` will hold |
| `range.encode(symbols, previous, slices, quality, model)` | int16 (C, h, w), the last keyframe's or None | bytes by slice |
| `range.decode(data, previous, s, slices, (h, w), quality, model)` | bytes, the last (C, P) or None | `range.Decoded` |
| `entropy_bits(samples)` | sequence of int16 (C, h, w) | ideal bits per sample, channel-wise and memoryless |

`delta` is `whole - previous` in int16 arithmetic, which wraps and so loses nothing. `decode` never raises on bytes:
damaged or missing ones give symbols of the right shape, wrong ones perhaps; missing bits read as "no change" (a delta
slice) or as the channel's centre. `Decoded` is `(symbols, needs_previous)`: the latter is True when the slice holds a
delta and `previous` was None; the symbols are then the delta around the channels' centres (`range`: what is predicted
from nothing). `range` needs a `RangeModel`, which a manifold may have; the others need `CodeTables`, which all have.
"""

from mcode.coders import fixed, huffman, slices
from mcode.coders.huffman import Decoded
from mcode.coders.tables import CodeTables, entropy_bits

__all__ = ["CodeTables", "Decoded", "entropy_bits", "fixed", "huffman", "slices"]
