"""A training run from config to model folder; and fine-tuning of an existing model on a few more rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from models.answers import LoadedModel
from models.backbones import TextBackbone
from models.bundle import load_model, model_folder, new_model, restore_model, save_model
from models.calibration import Calibration, fit_temperature
from models.classifier import Classifier
from models.fusion import make_fusion
from models.model_card import write_card
from models.model_file import ModelFile
from models.tokens import Row, RowTokenizer
from models.training.adaptation import adapt, read_unlabelled
from models.training.blend import average_text
from models.training.config import TrainingConfig
from models.training.datasets import Example, LabelledText, class_shares, examples_of, select
from models.training.distillation import soft_labels
from models.training.gathering import Datasets, gather
from models.training.lineage import fingerprint_of, learned_from
from models.training.losses import class_weights
from models.training.measure import measure
from models.training.text_stage import Cancelled, Encoded, Progress, TextStage, text_logits
from models.training.trackers import Trackers, check_trackers
from monitor.errors import ConfigurationError, InputError
from monitor.taxonomy import Taxonomy, bundled_taxonomy, load_taxonomy

__all__ = ["Cancelled", "Datasets", "fine_tune", "gather", "train"]


def _encode(examples: Sequence[Example], tokenizer: RowTokenizer) -> tuple[Encoded, list[Example]]:
    """The examples that have a text, tokenized, and these examples."""
    rows = tokenizer([example.row for example in examples])
    kept = [index for index, row in enumerate(rows) if row.ids]
    encoded = Encoded(
        [rows[index] for index in kept],
        [examples[index].sentiment for index in kept],
        [examples[index].topic for index in kept],
        [examples[index].score for index in kept],
    )
    return encoded, [examples[index] for index in kept]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _run_text_stage(
    network: Classifier,
    backbone: TextBackbone,
    config: TrainingConfig,
    data: Datasets,
    out: Path,
    *,
    topics: Sequence[str],
    resume: bool,
    base: str,
    progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> Encoded:
    """Train the text part in place; returns the encoded validation part."""
    tokenizer = RowTokenizer(backbone, config.max_tokens)
    train_rows, encoded = _encode(data.train, tokenizer)
    validation, _ = _encode(data.validation or data.train, tokenizer)
    fingerprint = fingerprint_of(config, data.train, base)
    if config.adaptation.epochs:
        texts = [row for row in train_rows.rows if row.span is None]
        further = [Row(text) for path in config.adaptation.files for text in read_unlabelled(Path(path))]
        texts += [row for row in tokenizer(further) if row.ids]
        adapt(
            network,
            backbone,
            config,
            texts,
            out,
            fingerprint=fingerprint,
            resume=resume,
            progress=progress,
            cancelled=cancelled,
        )
    if config.teachers:
        train_rows.soft = soft_labels(config.teachers, encoded, topics, progress=progress, cancelled=cancelled)
    sentiment = class_shares(train_rows.sentiment.tolist(), 3)
    topic = class_shares(train_rows.topic.tolist(), network.topics)
    stage = TextStage(
        network,
        config,
        train_rows,
        validation,
        backbone=backbone,
        sentiment_weight=class_weights(sentiment, config.class_weight_power),
        topic_weight=class_weights(topic, config.class_weight_power),
        folder=out,
        fingerprint=fingerprint,
    )
    if resume:
        stage.restore()
    settings = {key: value for key, value in msgspec.to_builtins(config).items() if not isinstance(value, dict)}
    out.mkdir(parents=True, exist_ok=True)
    with Trackers(config.trackers, out, config.name, settings) as report:
        stage.run(progress, cancelled, report)
    return validation


def _calibrate_text(network: Classifier, validation: Encoded, pad_id: int, base: Calibration) -> Calibration:
    """Temperatures of item sentiment, entity sentiment and topic, fitted on the validation part."""
    logits = text_logits(network, validation, pad_id)
    known = validation.sentiment >= 0
    item, entity, topic = known & ~validation.asked, known & validation.asked, validation.topic >= 0
    fitted = {
        name: fit_temperature(found[mask].numpy(), labels[mask].numpy())
        for name, found, labels, mask in (
            ("item", logits.sentiment, validation.sentiment, item),
            ("entity", logits.sentiment, validation.sentiment, entity),
            ("topic", logits.topic, validation.topic, topic),
        )
        if int(mask.sum()) >= 20
    }
    return msgspec.structs.replace(base, **fitted)


def _threads(config: TrainingConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)


def train(
    config: TrainingConfig,
    out: Path,
    *,
    data: Sequence[Path] = (),
    resume: bool = False,
    recipe: str = "",
    taxonomy: Taxonomy | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Train a model and write it to the folder `out`, with its card, metrics and calibration.

    `data` are labelled files to train on besides the config's bundled sets. With `resume`, an interrupted run in
    `out` is taken up where its last checkpoint was written, with the same result as an uninterrupted one. `recipe` is
    what the model card calls the config.

    Raises `ConfigurationError`, `InputError` (before the first step), `ModelError`, and `Cancelled` when `cancelled`
    said so, with the checkpoint written.
    """
    if not resume and (out / "checkpoint.pt").exists():
        raise ConfigurationError(
            f"{out} holds a run already.", "Add --resume to go on with it, or choose another --out."
        )
    check_trackers(config.trackers)
    _threads(config)
    named = load_taxonomy(Path(config.taxonomy)) if config.taxonomy else None
    topics = taxonomy or named or bundled_taxonomy()
    held = gather(config, data, topics)
    file = ModelFile(
        name=config.name,
        text_backbone=config.text_backbone,
        vision_backbone="",
        fusion=config.fusion,
        adapter=config.adapter,
        vision_adapter=config.vision_adapter,
        taxonomy=topics,
        max_tokens=config.max_tokens,
        sentiment_prior=_three(class_shares([row.sentiment for row in held.train if row.entity is None], 3)),
        topic_prior=class_shares([row.topic for row in held.train], len(topics.topics)),
        data=learned_from(config, held.names),
    )
    if config.base:
        network, backbone, file, base = _begin_with(config, file)
        config = msgspec.structs.replace(config, adapter=file.adapter)
    else:
        (network, backbone), base = new_model(file, seed=config.seed), ""
    network.to(_device())
    validation = _run_text_stage(
        network,
        backbone,
        config,
        held,
        out,
        topics=topics.labels,
        resume=resume,
        base=base,
        progress=progress,
        cancelled=cancelled,
    )
    if config.average_with:
        average_text(network, [model_folder(name) for name in config.average_with])
    file = msgspec.structs.replace(
        file, calibration=_calibrate_text(network, validation, backbone.pad_id, file.calibration)
    )
    if config.vision_backbone and not _keeps_fusion(config):
        from models.training.fusion_stage import train_fusion

        file = train_fusion(
            network,
            backbone,
            file,
            config,
            held,
            progress=progress,
            cancelled=cancelled,
        )
    return _finish(network, file, config, held, out, recipe=recipe, base=base)


def _begin_with(config: TrainingConfig, file: ModelFile) -> tuple[Classifier, TextBackbone, ModelFile, str]:
    """The text part of the config's base model, trainable; `file` with its backbone and adapter; the base's version."""
    network, backbone, base = restore_model(model_folder(config.base), trainable=True)
    if config.adaptation.epochs and base.adapter.kind == "none":
        raise ConfigurationError(f"The model {config.base} has no adapter to adapt.", "Leave `adaptation` out.")
    if base.taxonomy.labels != file.taxonomy.labels:
        raise ConfigurationError(
            f"The model {config.base} knows other topics.", "Bring its taxonomy, or train without a base."
        )
    kept = msgspec.structs.replace(
        file,
        text_backbone=base.text_backbone,
        adapter=base.adapter,
        max_tokens=base.max_tokens,
        calibration=base.calibration,
        data=tuple(dict.fromkeys((*base.data, *file.data))),
    )
    if _keeps_fusion(config):
        kept = msgspec.structs.replace(
            kept, fusion=base.fusion, vision_backbone=base.vision_backbone, vision_adapter=base.vision_adapter
        )
        return network, backbone, kept, base.version
    fusion = make_fusion(config.fusion, backbone.hidden_size, 1)
    with torch.no_grad():
        fusion.absent_image.copy_(network.fusion.absent_image)
    network.vision, network.fusion = None, fusion
    return network, backbone, kept, base.version


def _keeps_fusion(config: TrainingConfig) -> bool:
    return bool(config.base) and config.fusion_stage.epochs == 0


def fine_tune(
    base: LoadedModel | str | Path,
    rows: Sequence[LabelledText],
    out_dir: Path,
    *,
    epochs: int = 1,
    seed: int = 0,
    learning_rate: float = 2e-4,
    name: str = "",
    folder: Path | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Train an existing model's text part on `rows` and write the new model to `out_dir`.

    `base` is `default`, a model folder, or a loaded model together with the `folder` it came from. Of the rows, those
    with part `validation` (or a split-off share) serve for calibration and for choosing the best weights; rows with
    part `test` are left out. The fusion and the vision part stay as they are. Returns `out_dir`.

    Raises `ModelError`, `InputError` when there is nothing to train on, and `Cancelled`.
    """
    source = folder or model_folder("default" if isinstance(base, LoadedModel) else base)
    network, backbone, file = restore_model(source, trainable=True)
    base_version = file.version
    examples = {part: examples_of(select(rows, part), file.taxonomy) for part in ("train", "validation")}
    if not examples["train"]:
        raise InputError("There is no labelled row to fine-tune on.")
    config = TrainingConfig(
        name=name or file.name,
        seed=seed,
        text_backbone=file.text_backbone,
        vision_backbone=file.vision_backbone,
        fusion=file.fusion,
        adapter=file.adapter,
        max_tokens=file.max_tokens,
        epochs=epochs,
        learning_rate=learning_rate,
        class_weight_power=0.0,
        averaging=0.0 if file.adapter.kind == "adalora" else 0.98,
    )
    held = Datasets(
        examples["train"],
        examples["validation"],
        [],
        tuple(sorted({*file.data, *(row.origin for row in rows if row.origin)})),
    )
    network.to(_device())
    validation = _run_text_stage(
        network,
        backbone,
        config,
        held,
        out_dir,
        topics=file.taxonomy.labels,
        resume=False,
        base=base_version,
        progress=progress,
        cancelled=cancelled,
    )
    calibration = file.calibration
    if len(examples["validation"]) >= 200:
        calibration = _calibrate_text(network, validation, backbone.pad_id, calibration)
    file = msgspec.structs.replace(file, name=config.name, calibration=calibration, data=held.names, metrics={})
    return _finish(network, file, config, held, out_dir, base=base_version)


def _finish(
    network: Classifier,
    file: ModelFile,
    config: TrainingConfig,
    held: Datasets,
    out: Path,
    *,
    recipe: str = "",
    base: str = "",
) -> Path:
    """Save, measure the saved model on the test part, and save the figures and the card with it."""
    network.cpu()
    save_model(network, file, out, card="")
    metrics: dict[str, float] = dict(file.metrics)
    if held.test:
        metrics |= measure(load_model(out, device="cpu"), held.test)
    file = msgspec.structs.replace(file, metrics=metrics)
    rows = {"train": len(held.train), "validation": len(held.validation), "test": len(held.test)}
    save_model(network, file, out, card=write_card(file, config, rows, recipe=recipe, base=base))
    return out


def _three(shares: tuple[float, ...]) -> tuple[float, float, float]:
    negative, neutral, positive = shares
    return negative, neutral, positive
