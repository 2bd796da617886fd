"""The chart encoder: a small residual network that looks at a picture and says what the chart in it shows.

The label that it learns (`models.charts.labels`) does not change when a picture is stretched along either axis or
loses plain margins. `to_pixels` therefore strips the margins and fills the whole input with what is left, so that a
small chart on a wide ground is read at the same resolution as a tight crop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from models.charts.labels import CURVE_POINTS
from monitor.errors import ModelError

__all__ = [
    "ChartEncoder",
    "ChartEncoderConfig",
    "ChartLogits",
    "ChartReader",
    "ChartReadings",
    "VisionOutput",
    "content_box",
    "load_chart_encoder",
    "normalise",
    "preprocess",
    "save_chart_encoder",
    "to_pixels",
]

HEIGHT: Final = 80
WIDTH: Final = 144
WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "config.json"

# Difference of 8-bit values up to which a row or column counts as plain: above JPEG noise, below any drawn line.
_PLAIN: Final = 28
# Working size before margins are looked for: bounds the time that a big screenshot takes.
_WORKING_SIDE: Final = 640
_MEAN, _DEVIATION = 0.5, 0.25


class ChartEncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and calibration of the network, as `config.json` beside the weights holds them.

    `trend_temperature` and `chart_temperature` divide the logits (Guo et al. 2017); a picture is called a chart when
    its calibrated probability reaches `chart_threshold`. `weights_sha256` is the digest of the weights file.
    """

    height: int = HEIGHT
    width: int = WIDTH
    channels: tuple[int, int, int, int] = (40, 80, 144, 192)
    pyramid: int = 48
    keypoints: int = 32
    hidden_size: int = 192
    dropout: float = 0.1
    trend_temperature: float = 1.0
    chart_temperature: float = 1.0
    chart_threshold: float = 0.5
    weights_sha256: str = ""
    architecture: str = "chart-encoder-2"


class VisionOutput(NamedTuple):
    """`tokens` (B, T, D): one vector per 16 x 16 pixels, row by row; `pooled` (B, D): the whole picture."""

    tokens: Tensor
    pooled: Tensor


class ChartLogits(NamedTuple):
    """Uncalibrated logits `trend` (B, 3) and `chart` (B,), that the picture is one; `curve` (B, CURVE_POINTS)."""

    trend: Tensor
    chart: Tensor
    curve: Tensor


class ChartReadings(NamedTuple):
    """Calibrated probabilities: `trend` (N, 3) down, flat, up; `chart` (N,) that the picture is a price chart."""

    trend: NDArray[np.float32]
    chart: NDArray[np.float32]


def _plain(line: NDArray[np.uint8]) -> bool:
    """Whether all pixels (N, 3) are about the same; one that stands out near the start is found without a full scan."""
    for part in (line[:: max(1, len(line) // 16)], line):
        if bool((part.max(axis=0) - part.min(axis=0) > _PLAIN).any()):
            return False
    return True


def content_box(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the picture without its plain margins and frames; `pixels` is (H, W, 3).

    A row or column is stripped while all its pixels are about the same. A picture with nothing in it keeps its size.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    # A frame hides the margins behind it: look again until nothing more comes off.
    for _ in range(4):
        before = (left, top, right, bottom)
        while top < bottom and _plain(pixels[top, left:right]):
            top += 1
        if top == bottom:
            return 0, 0, width, height
        while _plain(pixels[bottom - 1, left:right]):
            bottom -= 1
        while left < right and _plain(pixels[top:bottom, left]):
            left += 1
        if left == right:
            return 0, 0, width, height
        while _plain(pixels[top:bottom, right - 1]):
            right -= 1
        if (left, top, right, bottom) == before:
            break
    return left, top, right, bottom


def to_pixels(image: Image.Image, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """The picture without its margins, stretched to (height, width, 3); a margin of 2 pixels is left all round."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    factor = max(rgb.size) // _WORKING_SIDE
    if factor > 1:
        rgb = rgb.reduce(factor)
    source = np.asarray(rgb)
    left, top, right, bottom = content_box(source)
    border = source[max(top - 1, 0), max(left - 1, 0)]
    target = np.empty((height, width, 3), dtype=np.uint8)
    target[:] = border
    inner = rgb.resize((width - 4, height - 4), Image.Resampling.BOX, box=(left, top, right, bottom), reducing_gap=None)
    target[2:-2, 2:-2] = np.asarray(inner)
    return target


def normalise(pixels: Tensor) -> Tensor:
    """From 8-bit (B, H, W, 3) to float (B, 3, H, W) about zero, the encoder's input."""
    return (pixels.permute(0, 3, 1, 2).float() / 255.0 - _MEAN) / _DEVIATION


def preprocess(image: Image.Image) -> Tensor:
    """The encoder's input (3, H, W) for one picture."""
    return normalise(torch.from_numpy(to_pixels(image))[None])[0]


def _coordinates(like: Tensor) -> Tensor:
    """Heights and then abscissae of the cells of a map (B, C, H, W), as (1, 2, H, W) from -1 to 1."""
    height, width = like.shape[2:]
    y = torch.linspace(-1.0, 1.0, height, device=like.device, dtype=like.dtype).view(1, 1, height, 1)
    x = torch.linspace(-1.0, 1.0, width, device=like.device, dtype=like.dtype).view(1, 1, 1, width)
    return torch.cat([y.expand(1, 1, height, width), x.expand(1, 1, height, width)], dim=1)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions round a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, stride) if stride != 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class ChartEncoder(nn.Module):
    """Residual network that also tells where things are, because where the bars stand is what the label is about.

    Two coordinate channels (Liu et al. 2018) go in. A feature pyramid (Lin et al. 2017) leads back to a quarter of the
    input's resolution, where each of `keypoints` channels is reduced to the place of its mass by a spatial softmax
    (Levine et al. 2016): exact to a fraction of a pixel, where pooling is not.

    Knows heads of its own: the curve of closes (`models.charts.labels.close_curve`), which is learned beside the labels
    since it says why a label is what it is; trend (3), which reads the curve, too; and is-a-chart (1).
    """

    def __init__(self, config: ChartEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or ChartEncoderConfig()
        stem, one, two, last = self.config.channels
        # Strides of 4 at once: half the time of two strides of 2, for a picture made of lines and blocks.
        self.stem = nn.Sequential(nn.Conv2d(5, stem, 7, 4, 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.first = _Residual(stem, one, 2)
        self.second = nn.Sequential(_Residual(one, two, 2), _Residual(two, last, 1))
        level, points = self.config.pyramid, self.config.keypoints
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, level, 1) for inputs in (stem, one, last))
        self.locate = nn.Sequential(
            nn.Conv2d(level, level, 3, 1, 1, bias=False), nn.BatchNorm2d(level), nn.ReLU(), nn.Conv2d(level, points, 1)
        )
        size = self.config.hidden_size
        cells = (self.config.height // 16) * (self.config.width // 16)
        self.project = nn.Linear(last, size)
        # A few channels keep their places, so that "first" and "last" survive the pooling.
        self.place = nn.Conv2d(last, 8, 1)
        self.pool = nn.Linear(last + 8 * cells + 2 * points, size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(self.config.dropout)
        self.curve_head = nn.Linear(size, CURVE_POINTS)
        self.trend_head = nn.Linear(size + CURVE_POINTS, 3)
        self.chart_head = nn.Linear(size, 1)

    @property
    def hidden_size(self) -> int:
        """D of tokens and pooled vector."""
        return self.config.hidden_size

    def forward(self, pixels: Tensor) -> VisionOutput:
        """`pixels` (B, 3, H, W) from `preprocess`."""
        where = _coordinates(pixels).expand(len(pixels), -1, -1, -1)
        quarter = self.stem(torch.cat([pixels, where], dim=1))
        eighth = self.first(quarter)
        features: Tensor = self.second(eighth)
        tokens = self.project(features.flatten(2).transpose(1, 2))
        placed = torch.relu(self.place(features)).flatten(1)
        points = self._keypoints(quarter, eighth, features)
        pooled = self.norm(self.pool(torch.cat([features.mean(dim=(2, 3)), placed, points], dim=1)))
        return VisionOutput(tokens, pooled)

    def _keypoints(self, *levels: Tensor) -> Tensor:
        """Places (B, 2 P), in [-1, 1], of the mass of P channels; `levels` are feature maps, the finest first."""
        level: Tensor | None = None
        for lateral, features in zip(reversed(self.laterals), reversed(levels), strict=True):
            shown = lateral(features)
            level = shown if level is None else shown + functional.interpolate(level, shown.shape[2:])
        assert level is not None
        mass = torch.softmax(self.locate(level).flatten(2), dim=-1)
        return (mass @ _coordinates(level).flatten(2).transpose(1, 2)).flatten(1)

    def heads(self, pooled: Tensor) -> ChartLogits:
        """What the heads say about `pooled` (B, D), uncalibrated."""
        hidden = self.dropout(torch.relu(pooled))
        curve = torch.sigmoid(self.curve_head(hidden))
        trend = self.trend_head(torch.cat([hidden, curve], dim=1))
        return ChartLogits(trend, self.chart_head(hidden).squeeze(-1), curve)

    def calibrated(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Calibrated probabilities for `pooled` (B, D): trend (B, 3) and is-a-chart (B,)."""
        trend, chart, _ = self.heads(pooled)
        return (
            torch.softmax(trend / self.config.trend_temperature, dim=-1),
            torch.sigmoid(chart / self.config.chart_temperature),
        )


def _shipped() -> Path:
    return Path(str(resources.files("models") / "weights" / "chart-encoder"))


def save_chart_encoder(encoder: ChartEncoder, folder: Path, config: ChartEncoderConfig | None = None) -> None:
    """Write weights (safetensors) and `config.json` to `folder`, the config last: a torn write is found out."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / WEIGHTS_FILE
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    final = msgspec.structs.replace(config or encoder.config, weights_sha256=digest)
    (folder / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(final), indent=2) + b"\n")


def load_chart_encoder(path: str | Path | None = None) -> ChartEncoder:
    """The encoder of a folder, or the shipped one; in evaluation mode, on the CPU.

    Raises `ModelError` when the folder lacks a file, or the weights are damaged or of another shape.
    """
    folder = Path(path) if path is not None else _shipped()
    try:
        config = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=ChartEncoderConfig)
        digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"The chart encoder in {folder} lacks the file {Path(str(error.filename)).name}.") from error
    except msgspec.MsgspecError as error:
        raise ModelError(f"The chart encoder's config in {folder} is not valid: {error}.") from error
    if config.weights_sha256 != digest:
        raise ModelError(
            f"The chart encoder's weights in {folder} are not those that its config names.",
            "The file is damaged or was exchanged: install the package again or train anew.",
        )
    try:
        encoder = ChartEncoder(config)
        encoder.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(f"The chart encoder's weights in {folder} do not fit: {str(error)[:200]}.") from error
    return encoder.eval()


class ChartReader:
    """Reads charts with calibrated probabilities: decoded pictures in, probabilities out."""

    def __init__(self, encoder: ChartEncoder, *, batch: int = 64) -> None:
        self.encoder = encoder.eval()
        self.batch = batch

    @property
    def threshold(self) -> float:
        """Probability from which a picture is called a chart."""
        return self.encoder.config.chart_threshold

    @torch.inference_mode()
    def read(self, images: Sequence[Image.Image]) -> ChartReadings:
        """Probabilities for N pictures."""
        return self.read_pixels([to_pixels(image) for image in images])

    @torch.inference_mode()
    def read_pixels(self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> ChartReadings:
        """Probabilities for N pictures that have gone through `to_pixels`, each (H, W, 3)."""
        device = next(self.encoder.parameters()).device
        trends: list[NDArray[np.float32]] = [np.zeros((0, 3), dtype=np.float32)]
        charts: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)]
        for start in range(0, len(pixels), self.batch):
            batch = torch.from_numpy(np.stack(list(pixels[start : start + self.batch]))).to(device)
            trend, chart = self.encoder.calibrated(self.encoder(normalise(batch)).pooled)
            trends.append(trend.float().cpu().numpy())
            charts.append(chart.float().cpu().numpy())
        return ChartReadings(np.concatenate(trends), np.concatenate(charts))
