"""The coder `fixed`: each symbol in its channel's number of bits, clipped to them. No delta, no Huffman: most robust.

The code is folded binary, as telephony's (ITU-T G.711): one bit for the side of the channel's centre, then the distance
from it. Symbols lie near the centre, where a wrong sign bit costs little; natural binary's top bit always costs half
the range.
"""

from __future__ import annotations

import numpy as np

from mcode.coders import bits
from mcode.coders.tables import CodeTables


def clip(whole: np.ndarray, tables: CodeTables) -> np.ndarray:
    """int16 (C, ...) as the other end will have them: clipped to centre - 2^(bits-1) .. centre + 2^(bits-1) - 1."""
    residual, half = _residual(whole, tables)
    return (residual.clip(-half, np.maximum(half - 1, 0)) + _column(tables.centres, whole)).astype(np.int16)


def encode(whole: np.ndarray, tables: CodeTables) -> bytes:
    """int16 (C, P), channel by channel. Always sum(tables.bits) * P bits, filled up to whole bytes."""
    residual, half = _residual(whole, tables)
    negative = residual < 0
    distance = np.minimum(np.where(negative, ~residual, residual), np.maximum(half - 1, 0))
    lengths = np.broadcast_to(tables.bits.astype(np.int32)[:, None], residual.shape)
    codes = np.where(negative, half | distance, distance)
    return bits.pack(codes.astype(np.int32).reshape(-1), lengths.reshape(-1))


def decode(data: bytes, count: int, tables: CodeTables) -> np.ndarray:
    """int16 (C, count). Never raises on `data`: missing bytes read as the channels' centres."""
    widths = tables.bits.astype(np.int64)[:, None]
    starts = count * (np.cumsum(widths) - widths[:, 0])[:, None] + widths * np.arange(count)
    used = (count * int(widths.sum()) + 7) // 8
    found = bits.fields(bits.windows(data[:used]), starts, widths)
    half = 1 << widths >> 1
    residual = np.where(found & half, ~(found & (half - 1)), found)
    return (residual + tables.centres[:, None]).astype(np.int16)


def _residual(whole: np.ndarray, tables: CodeTables) -> tuple[np.ndarray, np.ndarray]:
    if len(whole) != tables.channels:
        raise ValueError(f"expected {tables.channels} channels of symbols, not shape {whole.shape}")
    half = _column(1 << tables.bits.astype(np.int64) >> 1, whole)
    return whole.astype(np.int64) - _column(tables.centres, whole), half


def _column(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *[1] * (like.ndim - 1))
