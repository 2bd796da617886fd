"""Image bytes from strangers: decoded to RGB, or refused with a reason; nothing is raised, nothing leaks."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from models.charts.images import (
    ImageHeader,
    decode_image,
    ignore_warnings,
    image_header,
    image_size,
    media_type,
)
from monitor.records import Rejected
from monitor.settings import Settings


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignore_warnings()
        yield


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).astype(np.uint8).reshape(size[1], size[0], 3)
    return Image.fromarray(ramp).convert(mode)


def coded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rejection(data: bytes, **options: int) -> str:
    result = decode_image(data, **options)
    assert isinstance(result, Rejected)
    assert result.reason.endswith(".")
    return result.code


@pytest.mark.parametrize(("kind", "media"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_three_formats_are_read(kind: str, media: str, lossless: bool) -> None:
    data = coded(picture(), kind, **({"lossless": lossless} if kind == "WEBP" else {}))
    image = decode_image(data)
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size, media_type(data), image_size(data)) == ("RGB", (40, 30), media, (40, 30))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(picture()).astype(int)).mean() < 6


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("I;16", "PNG"),
     ("L", "JPEG"), ("CMYK", "JPEG")],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    if mode == "I;16":
        grey = np.asarray(picture("L")).astype(np.uint16) * 257
        data = coded(Image.fromarray(grey), kind)
    else:
        data = coded(picture(mode), kind)
    image = decode_image(data)
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
    left, right = np.asarray(image)[0, 0].mean(), np.asarray(image)[-1, -1].mean()
    assert left < 60
    assert right > 190


def test_transparency_lies_on_a_ground_that_the_drawing_stands_out_from() -> None:
    for ink, ground_is_light in (((20, 20, 20, 255), True), ((250, 250, 250, 255), False)):
        image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
        image.putpixel((3, 3), ink)
        decoded = decode_image(coded(image, "PNG"))
        assert isinstance(decoded, Image.Image)
        corner, drawn = decoded.getpixel((10, 10)), decoded.getpixel((3, 3))
        assert isinstance(corner, tuple)
        assert (corner[0] > 128) is ground_is_light
        assert drawn == ink[:3]


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = picture("P")
    assert isinstance(decode_image(coded(image, "PNG", transparency=bytes(range(256)))), Image.Image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    image = decode_image(coded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True))
    assert isinstance(image, Image.Image)
    assert image.getpixel((8, 8)) == (200, 0, 0)


def test_a_turned_photograph_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(coded(picture(), "JPEG", exif=exif))
    assert isinstance(image, Image.Image)
    assert image.size == (30, 40)


def test_a_damaged_exif_block_does_no_harm() -> None:
    data = coded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + b"\xee" * 40)
    assert isinstance(decode_image(data), Image.Image)


def test_other_formats_and_no_images_are_refused_by_content() -> None:
    for data in (
        coded(picture(), "GIF"),
        coded(picture(), "BMP"),
        coded(picture(), "TIFF"),
        b"<svg/>",
        b"%PDF-1.4",
        b"\0",
    ):
        assert rejection(data) == "unsupported_image"
    assert rejection(b"") == "empty"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    data = coded(noise, kind)
    assert rejection(data[: len(data) // 2]) == "undecodable_image"
    assert rejection(data[:20]) == "undecodable_image"


def bomb(width: int, height: int) -> bytes:
    """A valid PNG of a few hundred bytes that states any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded a bomb"))
    assert rejection(bomb(50_000, 50_000)) == "too_many_pixels"
    assert rejection(bomb(1, 60_000_000)) == "too_many_pixels"
    assert rejection(bomb(101, 100), max_pixels=10_000) == "too_many_pixels"
    assert rejection(bomb(0, 100)) == "undecodable_image"


def test_a_screen_of_4k_is_read_unless_configured_otherwise_and_a_larger_one_is_not() -> None:
    limit = Settings().max_chart_pixels
    assert isinstance(decode_image(coded(picture("L", (3840, 2160)), "PNG"), max_pixels=limit), Image.Image)
    assert rejection(bomb(5120, 2880), max_pixels=limit) == "too_many_pixels"


def test_a_limit_above_the_library_s_own_warns_nobody() -> None:
    assert rejection(bomb(12_000, 12_000), max_pixels=10**9) == "too_many_pixels"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    st.integers(0, 400),
)
def test_damaged_bytes_never_raise(kind: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(coded(picture(), kind))
    for at, value in changes:
        data[at % len(data)] = value
    result = decode_image(bytes(data[: len(data) - cut % len(data)]), max_pixels=1_000_000)
    assert isinstance(result, (Image.Image, Rejected))
    if isinstance(result, Image.Image):
        assert result.mode == "RGB"


@given(st.binary(max_size=200), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b""]))
def test_noise_behind_a_signature_never_raises(noise: bytes, signature: bytes) -> None:
    result = decode_image(signature + noise, max_pixels=1_000_000)
    assert isinstance(result, Rejected)


def test_the_reason_of_a_damaged_header_is_the_same_every_time() -> None:
    # Whole up to the size, then cut: PIL names the buffer's address in its own message.
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(buffer, "PNG")
    rejected = decode_image(buffer.getvalue()[:40])
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "The PNG image is damaged: its header cannot be read."


def test_pictures_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    data, met = coded(picture(), "PNG"), threading.Barrier(2)
    load = ImageFile.ImageFile.load

    def together(image: ImageFile.ImageFile) -> object:
        # Raises where the other thread is not in here at the same time.
        met.wait(timeout=20)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", together)
    with ThreadPoolExecutor(2) as pool:
        assert all(isinstance(one, Image.Image) for one in pool.map(decode_image, [data, data]))


def test_a_header_is_read_without_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {kind: coded(picture(), kind) for kind in ("PNG", "JPEG", "WEBP")}
    turned = coded(picture(), "JPEG", exif=exif)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _image: pytest.fail("decoded"))
    for kind, data in files.items():
        assert image_header(data) == ImageHeader(f"image/{kind.lower()}", 40, 30)
        assert isinstance(image_header(data[:20]), Rejected)
    assert image_header(turned) == ImageHeader("image/jpeg", 30, 40)
    for data in (files["PNG"][:60], files["PNG"].replace(b"IDAT", b"IDAX")):
        found = image_header(data)
        assert isinstance(found, Rejected)
        assert found.code == "undecodable_image"
    too_many = image_header(files["PNG"], max_pixels=1000)
    assert isinstance(too_many, Rejected)
    assert too_many.code == "too_many_pixels"


def test_a_picture_is_not_to_blame_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(_image: object) -> object:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", short)
    with pytest.raises(MemoryError):
        decode_image(coded(picture(), "PNG"))
