"""Pictures that are no price chart but turn up where charts do: what the is-a-chart head has to turn away."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from models.charts.render import font_of
from models.charts.screens import sentence, worn
from models.charts.styles import Colour, mix

__all__ = ["KINDS", "not_a_chart"]

Rng = np.random.Generator


def _ink(rng: Rng) -> Colour:
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return r, g, b


def _ground(rng: Rng) -> tuple[Colour, Colour]:
    """A ground and an ink that stands out from it."""
    roll = rng.random()
    if roll < 0.45:
        return (255, 255, 255), (30, 30, 30)
    if roll < 0.7:
        return (19, 23, 34), (209, 212, 220)
    ground = _ink(rng)
    return ground, (15, 15, 15) if sum(ground) > 380 else (240, 240, 240)


def _canvas(rng: Rng) -> tuple[Image.Image, ImageDraw.ImageDraw, Colour]:
    width = int(np.exp(rng.uniform(np.log(130), np.log(700))))
    height = int(np.clip(width / np.exp(rng.normal(0.3, 0.4)), 90, 700))
    ground, ink = _ground(rng)
    image = Image.new("RGB", (width, height), ground)
    return image, ImageDraw.Draw(image), ink


def _text(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    y = int(rng.integers(2, 20))
    while y < image.height - 8:
        size = int(rng.choice([9, 11, 13, 18, 28], p=[0.25, 0.35, 0.2, 0.12, 0.08]))
        indent = int(rng.choice([8, 8, 20, image.width // 4]))
        text = sentence(rng, int(rng.integers(1, 30)))
        draw.text(
            (indent, y), text[: max(4, int(1.8 * image.width / size))], ink, font=font_of(int(rng.integers(4)), size)
        )
        y += size + int(rng.choice([3, 6, 18]))
    return image


def _table(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    rows, columns = int(rng.integers(3, 16)), int(rng.integers(2, 8))
    size = int(np.clip(image.height / rows * 0.6, 7, 16))
    ruled, striped = bool(rng.random() < 0.6), bool(rng.random() < 0.4)
    for row in range(rows):
        y = row * image.height / rows
        if striped and row % 2:
            draw.rectangle((0, y, image.width, y + image.height / rows), fill=mix(image.getpixel((0, 0)), ink, 0.1))  # type: ignore[arg-type]
        if ruled:
            draw.line((0, y, image.width, y), fill=mix((128, 128, 128), ink, 0.3))
        for column in range(columns):
            text = sentence(rng, 1) if column == 0 or row == 0 else f"{rng.normal(0, 100):.2f}"
            tint = ink if column == 0 else ((38, 166, 154), (239, 83, 80), ink)[int(rng.integers(3))]
            draw.text((column * image.width / columns + 4, y + 2), text, tint, font=font_of(int(rng.integers(4)), size))
    return image


def _bars(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    count = int(rng.integers(2, 16))
    heights = rng.random(count) if rng.random() < 0.6 else np.sort(rng.random(count))
    one = _ink(rng)
    margin, slot = 20, (image.width - 30) / count
    lying = bool(rng.random() < 0.3)
    for i, value in enumerate(heights):
        tint = one if rng.random() < 0.7 else _ink(rng)
        if lying:
            step = (image.height - 20) / count
            draw.rectangle(
                (margin, 5 + i * step, margin + value * (image.width - 40), 5 + (i + 0.75) * step), fill=tint
            )
        else:
            top = image.height - margin - value * (image.height - 45)
            draw.rectangle((margin + i * slot, top, margin + (i + 0.75) * slot, image.height - margin), fill=tint)
            if rng.random() < 0.3:
                draw.text((margin + i * slot, top - 12), f"{value:.1f}", ink, font=font_of(0, 9))
    draw.line((margin, image.height - margin, image.width, image.height - margin), fill=ink)
    draw.text((image.width / 2, 3), sentence(rng, 3), ink, font=font_of(0, 12), anchor="ma")
    return image


def _pie(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    r = min(image.size) * float(rng.uniform(0.25, 0.47))
    x, y = image.width * float(rng.uniform(0.35, 0.65)), image.height / 2
    edges = np.concatenate([[0], np.cumsum(rng.dirichlet(np.ones(int(rng.integers(2, 9)))))]) * 360
    for start, stop in itertools.pairwise(edges):
        draw.pieslice((x - r, y - r, x + r, y + r), float(start), float(stop), fill=_ink(rng), outline=ink)
    if rng.random() < 0.4:
        hole = r * float(rng.uniform(0.3, 0.7))
        draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=image.getpixel((0, 0)))
    return image


def _noise(rng: Rng, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Noise of all wavelengths, falling off as in photographs; (H, W) in [0, 1]."""
    width, height = size
    total = np.zeros((height, width))
    for octave in range(1, int(rng.integers(4, 8))):
        cells = 2**octave
        raw = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        total += np.asarray(raw.resize(size, Image.Resampling.BICUBIC), dtype=np.float64) * 0.55**octave
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-9))


def _photo(rng: Rng) -> Image.Image:
    image, _, _ = _canvas(rng)
    layers = []
    base = _noise(rng, image.size)
    for _ in range(3):
        share = float(rng.uniform(0.4, 0.98))
        layers.append(np.clip(share * base + (1 - share) * _noise(rng, image.size), 0, 1) ** float(rng.uniform(0.5, 2)))
    pixels = np.stack(layers, -1) * 255
    if rng.random() < 0.5:
        # A horizon: two scenes meet.
        at = int(image.height * rng.uniform(0.3, 0.7))
        pixels[at:] = pixels[at:] * 0.5 + np.array(_ink(rng)) * 0.5
    photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(photo)
    for _ in range(int(rng.integers(0, 7))):
        x, y = float(rng.uniform(0, photo.width)), float(rng.uniform(0, photo.height))
        a, b = rng.uniform(0.03, 0.35, 2) * min(photo.size)
        (draw.ellipse if rng.random() < 0.6 else draw.rectangle)((x - a, y - b, x + a, y + b), fill=_ink(rng))
    if rng.random() < 0.7:
        photo = photo.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 4))))
    if rng.random() < 0.5:
        grain = rng.normal(0, float(rng.uniform(2, 20)), (photo.height, photo.width, 1))
        photo = Image.fromarray(np.clip(np.asarray(photo) + grain, 0, 255).astype(np.uint8))
    return photo


def _plain(rng: Rng) -> Image.Image:
    image, draw, _ = _canvas(rng)
    if rng.random() < 0.5:
        one, other = np.array(_ink(rng), float), np.array(_ink(rng), float)
        along = np.linspace(0, 1, image.width)[None, :, None] * np.ones((image.height, 1, 1))
        if rng.random() < 0.5:
            along = np.linspace(0, 1, image.height)[:, None, None] * np.ones((1, image.width, 1))
        return Image.fromarray((one + (other - one) * along).astype(np.uint8))
    if rng.random() < 0.5:
        # An empty grid: a chart that has not loaded.
        for x in range(0, image.width, int(rng.integers(15, 80))):
            draw.line((x, 0, x, image.height), fill=(128, 128, 128))
        for y in range(0, image.height, int(rng.integers(15, 80))):
            draw.line((0, y, image.width, y), fill=(128, 128, 128))
    return image


def _shapes(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    for _ in range(int(rng.integers(1, 14))):
        x, y = rng.uniform(0, 1, 2) * image.size
        a, b = rng.uniform(0.03, 0.4, 2) * min(image.size)
        tint, pen = _ink(rng), int(rng.integers(1, 6))
        match int(rng.integers(5)):
            case 0:
                draw.ellipse((x - a, y - b, x + a, y + b), fill=tint)
            case 1:
                draw.rectangle((x - a, y - b, x + a, y + b), outline=tint, width=pen)
            case 2:
                draw.polygon([(x, y - a), (x - b, y + a), (x + b, y + a)], fill=tint)
            case 3:
                draw.arc(
                    (x - a, y - b, x + a, y + b), float(rng.uniform(0, 180)), float(rng.uniform(180, 360)), tint, pen
                )
            case _:
                draw.line((x, y, x + a * float(rng.normal()), y + b * float(rng.normal())), fill=ink, width=pen)
    return image


def _logo(rng: Rng) -> Image.Image:
    image, draw, _ = _canvas(rng)
    tint, r = _ink(rng), min(image.size) * 0.25
    x, y = image.width / 2, image.height * 0.4
    match int(rng.integers(4)):
        case 0:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tint)
        case 1:
            draw.rounded_rectangle((x - r, y - r, x + r, y + r), r / 3, fill=tint)
        case 2:
            turn = float(rng.uniform(0, 360))
            draw.regular_polygon((x, y, r), int(rng.integers(3, 8)), turn, fill=tint)
        case _:
            for n in range(3):
                draw.arc((x - r + n * 8, y - r, x + r + n * 8, y + r), 30, 300, tint, 6)
    name = sentence(rng, 1).upper()
    draw.text(
        (x, image.height * 0.75), name, tint, font=font_of(int(rng.integers(4)), max(10, int(r / 1.5))), anchor="mm"
    )
    return image


def _heat_map(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    rows, columns = int(rng.integers(2, 14)), int(rng.integers(2, 14))
    one, other = ((220, 40, 40), (40, 170, 80)) if rng.random() < 0.5 else (_ink(rng), _ink(rng))
    w, h, gap = image.width / columns, image.height / rows, int(rng.integers(0, 4))
    for row in range(rows):
        for column in range(columns):
            box = (column * w + gap, row * h + gap, (column + 1) * w, (row + 1) * h)
            draw.rectangle(
                (*box[:2], max(box[2], box[0]), max(box[3], box[1])), fill=mix(one, other, float(rng.random()))
            )
            if w > 40 and h > 18 and rng.random() < 0.6:
                draw.text((box[0] + 4, box[1] + 3), f"{rng.normal(0, 3):+.1f}%", ink, font=font_of(0, 10))
    return image


def _scatter(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    for _ in range(int(rng.integers(1, 4))):
        tint, r, count = _ink(rng), float(rng.uniform(1, 5)), int(rng.integers(15, 200))
        centre, spread = rng.uniform(0.25, 0.75, 2), rng.uniform(0.05, 0.3, 2)
        for x, y in rng.normal(centre, spread, (count, 2)) * image.size:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tint)
    draw.line((15, 5, 15, image.height - 15, image.width, image.height - 15), fill=ink)
    return image


def _diagram(rng: Rng) -> Image.Image:
    image, draw, ink = _canvas(rng)
    spots = [rng.uniform(0.08, 0.8, 2) * image.size for _ in range(int(rng.integers(3, 9)))]
    for a, b in itertools.pairwise(spots):
        draw.line((*a.tolist(), *b.tolist()), fill=ink, width=int(rng.integers(1, 3)))
    for x, y in spots:
        draw.rounded_rectangle((x - 5, y - 5, x + 70, y + 25), 5, fill=_ink(rng), outline=ink)
        draw.text((x, y), sentence(rng, 1), ink, font=font_of(0, 11))
    return image


def _card(rng: Rng) -> Image.Image:
    """A photograph with a headline: the preview of a news story."""
    photo = _photo(rng)
    ground: Colour = (255, 255, 255) if rng.random() < 0.6 else (24, 24, 28)
    image = Image.new("RGB", (photo.width, round(photo.height * 1.5)), ground)
    image.paste(photo, (0, 0))
    draw = ImageDraw.Draw(image)
    ink = (20, 20, 20) if ground[0] == 255 else (235, 235, 235)
    for line in range(3):
        draw.text((8, photo.height + 6 + 20 * line), sentence(rng, 8), ink, font=font_of(1, 15))
    return image


def _code(rng: Rng) -> Image.Image:
    """A matrix of black and white modules."""
    n = int(rng.integers(15, 45))
    modules = Image.fromarray(((rng.random((n, n)) < 0.5) * 255).astype(np.uint8))
    side = int(rng.integers(120, 400))
    image = Image.new("RGB", (side + 40, side + 40), (255, 255, 255))
    image.paste(modules.resize((side, side), Image.Resampling.NEAREST).convert("RGB"), (20, 20))
    return image


def _wave(rng: Rng) -> Image.Image:
    """Regular curves and contour lines: lines, but no prices."""
    image, draw, ink = _canvas(rng)
    x = np.linspace(0, image.width, 200)
    for n in range(int(rng.integers(2, 7))):
        height = image.height * float(rng.uniform(0.05, 0.4))
        y = image.height * (0.3 + 0.08 * n) + height * np.sin(x * float(rng.uniform(2, 16)) / image.width * np.pi + n)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=_ink(rng), width=int(rng.integers(1, 5)))
    if rng.random() < 0.5:
        for r in range(10, int(min(image.size) / 2), int(rng.integers(6, 25))):
            box = (image.width / 2 - r, image.height / 2 - r * 0.8, image.width / 2 + r, image.height / 2 + r * 0.8)
            draw.ellipse(box, outline=ink)
    return image


KINDS: Final[dict[str, Callable[[Rng], Image.Image]]] = {
    "text": _text,
    "table": _table,
    "bar_chart": _bars,
    "pie_chart": _pie,
    "photo": _photo,
    "plain": _plain,
    "shapes": _shapes,
    "logo": _logo,
    "heat_map": _heat_map,
    "scatter": _scatter,
    "diagram": _diagram,
    "card": _card,
    "code": _code,
    "wave": _wave,
}


def not_a_chart(rng: Rng, kind: str | None = None) -> Image.Image:
    """A picture of a named kind (a key of `KINDS`), or of any; passed on like a chart would be."""
    names = list(KINDS)
    return worn(KINDS[kind or names[int(rng.integers(len(names)))]](rng), rng)
