"""Image files by Pillow: sizes and tags, and the refusal of what FFmpeg decodes wrongly or not at all."""

from __future__ import annotations

import struct
import threading
import warnings
from typing import BinaryIO

import av
from PIL import Image, UnidentifiedImageError

from mcode.errors import InputError
from mcode.packet import LARGEST_PICTURE, too_large
from mcode.video.paths import StrPath

_COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 259, 262, 274  # tags of TIFF and EXIF
_PILLOWS_LIMIT = threading.Lock()


def open_image(file: StrPath | BinaryIO) -> Image.Image:
    """Image.open without Pillow's own limit: it warns of 89 million pixels, which are fewer than LARGEST_PICTURE."""
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def picture_size(path: StrPath) -> tuple[int, int] | None:
    """(width, height) of an image file by its header, before it is turned; None where Pillow knows no image in it.

    Raises InputError where it cannot be read.
    """
    try:
        with open_image(path) as image:
            return image.size
    except (UnidentifiedImageError, IsADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def check_picture_size(path: StrPath, width: int, height: int) -> None:
    """Raises InputError for more than LARGEST_PICTURE pixels."""
    if width * height > LARGEST_PICTURE:
        raise InputError(f"{path}: {too_large(width, height)}, the most in a picture; scale it down first")


def refuse_too_large(path: StrPath, stream: av.VideoStream) -> None:
    """Raises InputError for more than LARGEST_PICTURE pixels, as FFmpeg has found them, else Pillow."""
    context = stream.codec_context
    size = (context.width, context.height) if context.width else picture_size(path)
    if size:
        check_picture_size(path, *size)


def refuse_unsupported(path: StrPath, stream: av.VideoStream) -> None:
    """Raises InputError where FFmpeg decodes no picture of this kind at all."""
    name, kind = stream.codec_context.name, None
    if name == "webp":
        with open(path, "rb") as file:
            head = file.read(21)
        if head[12:16] == b"VP8X" and head[20] & 0x02:
            kind = "animated WebP is not supported: convert it to GIF or MP4"
    elif name == "tiff" and (mode := _pillows_tags(path)[0]) in ("LAB", "F"):
        kind = f"TIFF of {'CIELAB' if mode == 'LAB' else 'floating-point'} colours is not supported: convert it to PNG"
    if kind:
        raise InputError(f"{path}: its {name} pictures cannot be decoded ({kind})")


def refuse_wrong_tiff(path: StrPath) -> None:
    """Raises InputError where FFmpeg gives wrong pixels, without an error."""
    _, tags = _pillows_tags(path)
    as_jpeg, is_ycbcr = tags.get(_COMPRESSION) in (6, 7), tags.get(_PHOTOMETRIC) == 6
    if as_jpeg or is_ycbcr:
        how = "compressed as JPEG" if as_jpeg else "of YCbCr colours"
        raise InputError(f"{path}: a TIFF {how} is not supported: convert it to PNG")


def exif_orientation(path: StrPath) -> int:
    """How a picture is to be turned, 1 to 8 as EXIF counts; 1, not at all, where Pillow finds nothing."""
    found = _pillows_tags(path)[1].get(_ORIENTATION)
    return found if isinstance(found, int) else 1


def _pillows_tags(path: StrPath) -> tuple[str, dict[int, object]]:
    """The mode of an image by Pillow, and its EXIF tags, of a TIFF all of its tags; nothing where Pillow does not read it."""
    with warnings.catch_warnings(action="ignore"):  # damaged tags: Pillow warns or raises
        try:
            with open_image(path) as image:
                return image.mode, dict(image.getexif())
        except (OSError, ValueError, LookupError, SyntaxError, struct.error):
            return "", {}
