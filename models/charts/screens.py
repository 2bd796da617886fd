"""What happens to a chart before somebody sends it on: framed in a screenshot, cropped, scaled, compressed, snapped."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from models.charts.render import font_of
from models.charts.styles import Colour, mix

__all__ = ["WORDS", "framed", "sentence", "worn"]

_TEXT: Final = """
shares of the company fell after quarterly results missed estimates analysts said outlook remains strong dividend
growth revenue market today bank rate inflation oil gold investors buy sell hold price target raised cut deal
merger profit loss guidance stock up down week year high low trading volume earnings report news index fund
"""
_BUTTONS: Final = ((255, 95, 87), (254, 188, 46), (40, 200, 64))
WORDS: Final = tuple(_TEXT.split())


def sentence(rng: np.random.Generator, words: int) -> str:
    """Some words in a row, for the text that stands round a picture."""
    return " ".join(rng.choice(WORDS, words)).capitalize()


def _lines(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], ink: Colour, rng: np.random.Generator) -> None:
    size = int(rng.integers(8, 15))
    font = font_of(int(rng.integers(4)), size)
    left, top, right, bottom = box
    for y in range(top, bottom - size, size + 5):
        text = sentence(rng, 30)[: max(3, int((right - left) / size * 1.7 * rng.uniform(0.5, 1)))]
        draw.text((left, y), text, ink, font=font)


def framed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture inside a window, a post or a page: bars and text round it, at least 40 % of the area its own."""
    width, height = image.size
    dark = bool(rng.random() < 0.4)
    ground: Colour = (21, 24, 30) if dark else (255, 255, 255)
    ink: Colour = (220, 220, 220) if dark else (40, 40, 40)
    look = rng.random()
    if look < 0.35:
        # A window with a plain frame.
        edge = int(rng.integers(1, 8))
        bar = int(rng.integers(0, 34))
        frame = Image.new(
            "RGB", (width + 2 * edge, height + 2 * edge + bar), mix(ground, ink, float(rng.uniform(0, 1)))
        )
        if bar > 14:
            draw = ImageDraw.Draw(frame)
            for n in range(3):
                x = 10 + n * 16
                draw.ellipse(
                    (x, bar // 2 - 4, x + 8, bar // 2 + 4), fill=((255, 95, 87), (254, 188, 46), (40, 200, 64))[n]
                )
            draw.text((width / 2, bar / 2), sentence(rng, 3), ink, font=font_of(0, 11), anchor="mm")
        frame.paste(image, (edge, edge + bar))
        return frame
    above = int(height * rng.uniform(0.05, 0.5))
    below = int(height * rng.uniform(0.0, 0.4))
    side = int(width * rng.uniform(0.0, 0.35)) if look > 0.75 else int(rng.integers(0, 16))
    page = Image.new("RGB", (width + 2 * (side if look <= 0.75 else side // 2), height + above + below), ground)
    draw = ImageDraw.Draw(page)
    _lines(draw, (8, 6, page.width - 8, above - 4), ink, rng)
    _lines(draw, (8, above + height + 6, page.width - 8, page.height - 4), mix(ground, ink, 0.7), rng)
    x = side if look <= 0.75 else 0
    if look > 0.75 and side > 40:
        _lines(draw, (width + 8, above, page.width - 4, above + height), mix(ground, ink, 0.7), rng)
    page.paste(image, (x, above))
    return page


def _tilted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Seen by a camera: a slight turn and perspective."""
    width, height = image.size
    shift = rng.uniform(-0.05, 0.05, 8) * np.array([width, height] * 4)
    corners = np.array([0, 0, 0, height, width, height, width, 0]) + shift
    return image.transform(
        image.size, Image.Transform.QUAD, corners.tolist(), Image.Resampling.BILINEAR, fillcolor=(90, 90, 90)
    )


def worn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture after it has been passed on: each step happens or not; most pictures keep their sharpness."""
    if rng.random() < 0.12:
        image = framed(image, rng)
    if rng.random() < 0.2:
        width, height = image.size
        cut = rng.uniform(0, 0.015, 4)
        image = image.crop(
            (int(width * cut[0]), int(height * cut[1]), int(width * (1 - cut[2])), int(height * (1 - cut[3])))
        )
    if rng.random() < 0.04:
        image = _tilted(image, rng)
    if rng.random() < 0.35:
        share = float(np.exp(rng.uniform(np.log(0.35), np.log(1.6))))
        share = max(share, 90 / min(image.size))
        how = (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX, Image.Resampling.NEAREST)
        size = (max(60, round(image.width * share)), max(60, round(image.height * share)))
        image = image.resize(size, how[int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))])
    if rng.random() < 0.08:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.3))))
    if rng.random() < 0.05:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.05:
        image = image.quantize(int(rng.choice([8, 16, 64]))).convert("RGB")
    if rng.random() < 0.12:
        image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.4, 1.5)))
        image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.75, 1.25)))
        image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.6, 1.3)))
    if rng.random() < 0.35:
        coded = io.BytesIO()
        image.save(coded, "JPEG", quality=int(rng.integers(20, 96)))
        image = Image.open(coded).convert("RGB")
    return image
