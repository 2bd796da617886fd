"""Chart images from untrusted bytes: PNG, JPEG and WebP only, size checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from monitor.records import Rejected

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "ImageHeader",
    "decode_image",
    "ignore_warnings",
    "image_header",
    "image_size",
    "media_type",
]

DEFAULT_MAX_PIXELS: Final = 10_000_000
MAX_SIDE: Final = 65_535
# The EXIF tag, and the first of its values that turn by a quarter.
ORIENTATION: Final = 0x0112
FIRST_TURNED: Final = 5

_FORMATS: Final = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


def ignore_warnings() -> None:
    """What the library says of a damaged EXIF block or an odd palette helps nobody. Done once for the whole process:
    `warnings.catch_warnings` swaps its state, so that threads that decode would have to wait for each other."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


ignore_warnings()


def media_type(data: bytes) -> str | None:
    """Media type by the signature in the first bytes (never by a name or header); None for anything unsupported."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk the marker segments (ITU T.81, B.1) to the frame header."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker in (0xD9, 0xDA):
            return None
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas size from the first chunk (RFC 9649): lossy `VP8 `, lossless `VP8L` or extended `VP8X`."""
    chunk = data[12:16]
    if len(data) < 30:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header states them, without decoding; None when there is no valid header."""
    kind = media_type(data)
    if kind == "image/png":
        if len(data) < 24 or data[12:16] != b"IHDR":
            return None
        width, height = struct.unpack_from(">II", data, 16)
        return int(width), int(height)
    if kind == "image/jpeg":
        return _jpeg_size(data)
    return _webp_size(data) if kind == "image/webp" else None


def _flatten(image: Image.Image) -> Image.Image:
    """Transparency on a plain ground that the drawing stands out from: white, or near black under a light drawing."""
    rgba = image.convert("RGBA")
    pixels = np.asarray(rgba)
    opaque = pixels[..., 3] > 127
    light = bool(opaque.any()) and not opaque.all() and float(pixels[opaque][:, :3].mean()) > 200.0
    ground = Image.new("RGBA", rgba.size, (19, 23, 34, 255) if light else (255, 255, 255, 255))
    return Image.alpha_composite(ground, rgba).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that the three formats can hold, as 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(wide // 257, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _flatten(image)
    return image.convert("RGB")


def _checked(data: bytes, limit: int) -> str | Rejected:
    """Media type of an image whose signature and header are in order and that has at most `limit` pixels."""
    if not data:
        return Rejected(code="empty", reason="The image is empty.")
    kind = media_type(data)
    if kind is None:
        return Rejected(code="unsupported_image", reason="The image is none of PNG, JPEG and WebP.")
    size = image_size(data)
    if size is None or min(size) < 1:
        return Rejected(code="undecodable_image", reason=f"The {_FORMATS[kind]} image has no valid header.")
    width, height = size
    if width * height > limit or max(size) > MAX_SIDE:
        return Rejected(
            code="too_many_pixels", reason=f"The image has {width} x {height} pixels; the limit is {limit} in all."
        )
    return kind


class ImageHeader(NamedTuple):
    """What an image says of itself; sizes in pixels, upright."""

    media_type: str
    width: int
    height: int


def image_header(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader | Rejected:
    """What the header says, of a PNG after its chunks' check sums, and no pixel decoded; or why it cannot be used.

    Damage inside the pixels is found only by `decode_image`, which has the same codes.
    """
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    kind = _checked(data, limit)
    if isinstance(kind, Rejected):
        return kind
    name = _FORMATS[kind]
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as opened:
            width, height = opened.size
            if width * height > limit:
                return Rejected(code="too_many_pixels", reason=f"The image has more than {limit} pixels.")
            if "exif" in opened.info and opened.getexif().get(ORIENTATION, 1) >= FIRST_TURNED:
                width, height = height, width
            opened.verify()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a decoder may raise nearly anything on a damaged file
        return _damaged(name, error)
    return ImageHeader(kind, width, height)


def _damaged(name: str, error: Exception) -> Rejected:
    if isinstance(error, UnidentifiedImageError):
        # Its own words name an address in memory.
        return Rejected(code="undecodable_image", reason=f"The {name} image is damaged: its header cannot be read.")
    return Rejected(
        code="undecodable_image", reason=f"The {name} image is damaged: {str(error)[:120] or type(error).__name__}."
    )


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image | Rejected:
    """The picture as 8-bit RGB, upright, of an animation the first frame; or why it cannot be used.

    The size in the header is checked against `max_pixels` before any pixel is decoded, so that a small file cannot
    fill the memory. Codes: `empty`, `unsupported_image`, `undecodable_image`, `too_many_pixels`. Raises `MemoryError`
    alone: the picture is not to blame for it. Threads may decode side by side.
    """
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    kind = _checked(data, limit)
    if isinstance(kind, Rejected):
        return kind
    name = _FORMATS[kind]
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as opened:
            if opened.width * opened.height > limit:
                return Rejected(code="too_many_pixels", reason=f"The image has more than {limit} pixels.")
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a decoder may raise nearly anything on a damaged file
        return _damaged(name, error)
