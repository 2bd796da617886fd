"""`model.json`: what a model is made of, read and checked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from models.adapters import AdapterSettings
from models.backbones import DEFAULT_TEXT_BACKBONE, DEFAULT_VISION_BACKBONE, sha256_of
from models.calibration import Calibration
from models.fusion import FusionKind
from models.tokens import MAX_TOKENS
from monitor.errors import ModelError
from monitor.taxonomy import Taxonomy

__all__ = ["MODEL_JSON", "ModelFile", "read_model_file"]

FORMAT = 1
MODEL_JSON = "model.json"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """What `model.json` holds.

    `sentiment_prior` and `topic_prior` give the shares of the sentiments and topics in the training data: the answer to
    an empty text.
    `files` maps every weights file to its SHA-256. `metrics` are the held-out figures of the training run.
    """

    format: int = FORMAT
    name: str
    version: str = ""
    text_backbone: str = DEFAULT_TEXT_BACKBONE
    vision_backbone: str = DEFAULT_VISION_BACKBONE
    fusion: FusionKind = "cross"
    adapter: AdapterSettings = AdapterSettings()
    vision_adapter: AdapterSettings = AdapterSettings(kind="none")
    taxonomy: Taxonomy
    max_tokens: int = MAX_TOKENS
    calibration: Calibration = Calibration()
    sentiment_prior: tuple[float, float, float] = (0.2, 0.6, 0.2)
    topic_prior: tuple[float, ...] = ()
    data: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    files: dict[str, str] = {}


def read_model_file(folder: Path) -> ModelFile:
    """`model.json` of a folder, with every weights file checked against its hash. Raises `ModelError`."""
    try:
        file = msgspec.json.decode((folder / MODEL_JSON).read_bytes(), type=ModelFile)
    except OSError as error:
        raise ModelError(
            f"There is no model in {folder}: {MODEL_JSON} cannot be read.",
            "`sentiment-monitor models list` names those known.",
        ) from error
    except msgspec.MsgspecError as error:
        raise ModelError(f"{folder / MODEL_JSON} is not valid: {error}.") from error
    if file.format != FORMAT:
        raise ModelError(f"The model in {folder} has format {file.format}; this version reads format {FORMAT}.")
    for name, expected in file.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"The model in {folder} lacks the file {name}.")
        if sha256_of(path) != expected:
            raise ModelError(
                f"{path} is damaged or was exchanged: its hash is not the one in {MODEL_JSON}.",
                "Install or train the model again.",
            )
    return file
