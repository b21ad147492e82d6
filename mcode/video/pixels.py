"""Pixels: decoded pictures become RGB as displayed, RGB is cut, scaled and turned into pictures for an encoder."""

from __future__ import annotations

import operator

import av
import cv2
import numpy as np
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from mcode.errors import InputError
from mcode.video.images import exif_orientation
from mcode.video.paths import StrPath

_BT709, _BT601 = 1, 6  # code points of ISO/IEC 23091-2: colour matrices 1 (BT.709) and 6 (BT.601)
_UNSPECIFIED = 2
_MATRIX_NAMES = {  # of those that swscale does not read
    **{8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 12: "derived from its primaries"},
    **{13: "derived from its primaries", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"},
}
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_MIRRORED = {2: (-1, 0, 0, 1), 4: (1, 0, 0, -1), 5: (0, 1, 1, 0), 7: (0, -1, -1, 0)}  # EXIF: matrix, see _display_matrix
_TURNED = {90: (0, -1, 1, 0), -90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), -180: (-1, 0, 0, -1)}  # degrees: matrix
_LONGEST_SIDE = 65_535  # as streams and commands have it


def to_rgb(picture: av.VideoFrame, path: StrPath, alpha: np.ndarray | None = None) -> np.ndarray:
    """Decoded picture of the file `path` -> uint8 (H, W, 3) as displayed. alpha: its opacity from elsewhere, before turning."""
    layout = picture.format
    if picture.colorspace == _UNSPECIFIED and not layout.is_rgb:
        picture.colorspace = assumed_matrix(picture.width, picture.height)
    has_alpha = layout.has_palette or any(component.is_alpha for component in layout.components)
    try:
        # threads=1: swscale's own threads were ten times slower at 640x360 than one
        rgb = picture.to_ndarray(
            format="rgba" if has_alpha else "rgb24",
            interpolation=_EXACT,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
    except MemoryError:  # FFmpeg's is an FFmpegError, too
        raise
    except av.error.FFmpegError as error:
        matrix = _MATRIX_NAMES.get(picture.colorspace, f"number {picture.colorspace}")
        colours = f"{layout.name}, matrix {matrix}"
        raise InputError(f"{path}: its colours ({colours}) cannot be read: convert it to BT.709 first") from error
    if has_alpha:
        rgb, alpha = rgb[:, :, :3], rgb[:, :, 3]
    if alpha is not None and alpha.shape == rgb.shape[:2]:
        opacity = alpha[:, :, None].astype(np.uint16)
        rgb = ((rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    return _upright(rgb, _display_matrix(picture, path))


def to_yuv(rgb: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """uint8 (H, W, 3) -> picture of limited range, in the matrix that its size implies and tagged so."""
    matrix = assumed_matrix(rgb.shape[1], rgb.shape[0])
    try:
        picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
            format=pixel_format,
            dst_colorspace=Colorspace.ITU709 if matrix == _BT709 else Colorspace.ITU601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_EXACT,
            threads=1,
        )
    except av.error.ArgumentError as error:
        raise InputError(f"FFmpeg cannot hold {rgb.shape[1]}x{rgb.shape[0]}: choose a smaller --size") from error
    picture.colorspace = matrix
    return picture


def assumed_matrix(width: int, height: int) -> int:
    """The colour matrix of pictures that name none, as players assume it."""
    return _BT709 if width >= 1280 or height > 576 else _BT601


def turns_sideways(picture: av.VideoFrame, path: StrPath) -> bool:
    """Whether width and height change places when it is displayed."""
    return _display_matrix(picture, path)[0] == 0


def _display_matrix(picture: av.VideoFrame, path: StrPath) -> tuple[int, int, int, int]:
    """a, b, c, d of ISO/IEC 14496-12's matrix, as signs: x' = a x + c y, y' = b x + d y."""
    try:
        side = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18.1 does not know FFmpeg 8.1's EXIF side data and refuses to list any; its rotation tells no mirroring
        return _MIRRORED.get(exif_orientation(path)) or _TURNED.get(picture.rotation, (1, 0, 0, 1))
    if side is None:
        return 1, 0, 0, 1
    assert isinstance(side, SideData)
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(side), np.int32)[:5])
    if abs(b) > abs(a):
        return 0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0
    return -1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1


def _upright(rgb: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    if a == 0:
        rgb = cv2.transpose(rgb)
        a, d = c, b
    if a < 0 or d < 0:
        rgb = cv2.flip(rgb, -1 if a < 0 and d < 0 else 1 if a < 0 else 0)
    return rgb


def check_size(size: tuple[int, int] | None, name: str = "size") -> None:
    """Raises InputError for what is neither None nor (width, height)."""
    if size is None:
        return
    try:
        width, height = map(operator.index, size)
    except (TypeError, ValueError):
        width = height = 0
    if not (1 <= width <= _LONGEST_SIDE and 1 <= height <= _LONGEST_SIDE):
        raise InputError(f"the {name} must be (width, height), whole numbers from 1 to {_LONGEST_SIDE}, not {size!r}")


def resize(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3): area means along an axis that shrinks, Lanczos (8 taps) along one that grows."""
    h, w = rgb.shape[:2]
    if width < w or height < h:
        rgb = cv2.resize(rgb, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    if width > w or height > h:
        rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LANCZOS4)
    return rgb


def centre_crop(rgb: np.ndarray, aspect: tuple[int, int]) -> np.ndarray:
    """The largest centred part of (H, W, 3) with the aspect w:h, contiguous."""
    h, w = rgb.shape[:2]
    width, height = cropped_size(w, h, aspect)
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def cropped_size(width: int, height: int, aspect: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of the largest part with the aspect w:h; of all where it is None."""
    if aspect is None:
        return width, height
    w, h = aspect
    return max(1, min(width, round(height * w / h))), max(1, min(height, round(width * h / w)))
