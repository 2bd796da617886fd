"""Training of the text part: adapter, heads and the stand-in for a missing image, several tasks at once.

Interrupted at any step and resumed, it ends with the same weights as in one go: the batches follow from seed and
epoch, the dropout from seed and step, and everything else is in the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from models.adapters import (
    orthogonality,
    plan_ranks,
    rank_state,
    ranks_settle_at,
    ranks_settled,
    restore_ranks,
)
from models.answers import collate
from models.backbones import TextBackbone
from models.classifier import Batch, Classifier, Logits
from models.tokens import TokenizedRow
from models.training.batches import batches_of, epoch_batches
from models.training.config import TrainingConfig
from models.training.losses import SoftLabels, consistency_loss, distillation_loss, supervised_loss
from monitor.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["Cancelled", "Encoded", "Progress", "Reporter", "TextStage", "set_dropout", "text_logits"]

CHECKPOINT = "checkpoint.pt"


class Cancelled(Exception):  # noqa: N818 - a request that was followed, no error
    """The run was asked to stop; its checkpoint is written."""


class Progress(Protocol):
    """Told after every step how far a stage is."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """`done` of `total` steps of `stage`; `note` holds the latest figures."""


class Reporter(Protocol):
    """Takes figures to be plotted (TensorBoard's `SummaryWriter.add_scalar`)."""

    def __call__(self, tag: str, value: float, step: int) -> None:
        """`value` of `tag` at `step`."""


class Encoded:
    """Tokenized examples with their answers (N,): `sentiment` and `topic`, -1 for none; `score`, NaN for none.

    `soft` are the teachers' answers to every row, where there are teachers.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedRow],
        sentiment: Sequence[int],
        topic: Sequence[int],
        score: Sequence[float | None],
    ) -> None:
        self.rows = rows
        self.lengths = [len(row.ids) for row in rows]
        self.sentiment = torch.tensor(sentiment, dtype=torch.long)
        self.topic = torch.tensor(topic, dtype=torch.long)
        self.score = torch.tensor([math.nan if value is None else value for value in score], dtype=torch.float32)
        self.soft: SoftLabels | None = None
        self.asked = torch.tensor([row.span is not None for row in rows], dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.rows)


@torch.inference_mode()
def text_logits(network: Classifier, data: Encoded, pad_id: int, *, token_budget: int = 4096) -> Logits:
    """Logits of all rows, in their order, in evaluation mode."""
    network.eval()
    device = network.device()
    order = sorted(range(len(data)), key=lambda index: data.lengths[index])
    sentiment: list[Tensor] = []
    topic: list[Tensor] = []
    for batch in batches_of(data.lengths, order, token_budget):
        logits = network(collate([data.rows[index] for index in batch], pad_id, device))
        sentiment.append(logits.sentiment.float().cpu())
        topic.append(logits.topic.float().cpu())
    back = torch.argsort(torch.tensor(order))
    return Logits(torch.cat(sentiment)[back], torch.cat(topic)[back])


def accuracies(logits: Logits, data: Encoded) -> dict[str, float]:
    """Accuracy of each task that `data` has answers for: `sentiment`, `entities`, `topic`."""
    found: dict[str, float] = {}
    known = data.sentiment >= 0
    for name, mask in (("sentiment", known & ~data.asked), ("entities", known & data.asked)):
        if bool(mask.any()):
            found[name] = float((logits.sentiment[mask].argmax(-1) == data.sentiment[mask]).float().mean())
    mask = data.topic >= 0
    if bool(mask.any()):
        found["topic"] = float((logits.topic[mask].argmax(-1) == data.topic[mask]).float().mean())
    return found


def set_dropout(network: Classifier, p: float) -> None:
    """Dropout inside the text backbone, but not inside its adapter, becomes `p`."""
    for name, module in network.text.named_modules():
        if isinstance(module, nn.Dropout) and "lora_" not in name:
            module.p = p


class TextStage:
    """One run over `train`, validated on `validation`; the best weights end up in the network."""

    def __init__(
        self,
        network: Classifier,
        config: TrainingConfig,
        train: Encoded,
        validation: Encoded,
        *,
        backbone: TextBackbone,
        sentiment_weight: Tensor,
        topic_weight: Tensor,
        folder: Path,
        fingerprint: str,
    ) -> None:
        self.network = network
        self.config = config
        self.train_data = train
        self.validation = validation
        self.backbone = backbone
        self.pad_id = backbone.pad_id
        self.never_hidden = torch.tensor([*backbone.prefix, *backbone.suffix, *backbone.markers])
        self.device = network.device()
        self.weights = (sentiment_weight.to(self.device), topic_weight.to(self.device))
        self.folder = folder
        self.fingerprint = fingerprint
        set_dropout(network, config.backbone_dropout)
        for parameter in network.fusion.image_parameters():
            parameter.requires_grad_(False)
        if network.vision is not None:
            network.vision.requires_grad_(False)
        self.named = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.begun = {name: value.detach().clone() for name, value in self.named.items()}
        self.optimizer = self._optimizer()
        self.average = {name: value.detach().clone() for name, value in self.named.items()}
        self.best: dict[str, Tensor] = {}
        self.best_score = -1.0
        self.misses = 0
        self.step = 0
        self.epoch_steps = len(epoch_batches(train.lengths, config.token_budget, seed=config.seed, epoch=0))
        self.adalora = cast("PeftModel", network.text) if config.adapter.kind == "adalora" else None
        # Where a run goes on from a model, its ranks are settled.
        self.ranked = None if self.adalora is None or ranks_settled(self.adalora) else self.adalora
        if self.ranked is not None:
            plan_ranks(self.ranked, self.total)

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        adapter = [value for name, value in self.named.items() if name.startswith("text.")]
        heads = [value for name, value in self.named.items() if not name.startswith("text.")]
        groups = [
            {"params": adapter, "scale": 1.0},
            {"params": heads, "scale": config.head_learning_rate_factor},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate, weight_decay=config.weight_decay
        )

    @property
    def total(self) -> int:
        """Steps of the whole run. Epochs differ by a batch or two; the schedule goes by the first one's."""
        return self.epoch_steps * self.config.epochs

    def run(
        self,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        report: Reporter | None = None,
    ) -> None:
        """Train to the end or until validation stops improving. Raises `Cancelled` once a stop is asked for."""
        if not self.total:
            return
        every = max(1, self.epoch_steps // self.config.validations_per_epoch)
        saved = time.monotonic()
        loss, note = math.nan, ""
        while self.step < self.total and self.misses < self.config.patience:
            epoch, offset = divmod(self.step, self.epoch_steps)
            batches = epoch_batches(
                self.train_data.lengths, self.config.token_budget, seed=self.config.seed, epoch=epoch
            )
            # The first epoch's number of batches counts for all, so that a step number says where it belongs.
            batches = (batches * 2)[: self.epoch_steps]
            for batch in batches[offset:]:
                value = self._train_step(batch)
                loss = value if math.isnan(loss) else 0.98 * loss + 0.02 * value
                self.step += 1
                if report is not None and self.step % 20 == 0:
                    report("train/loss", loss, self.step)
                if self.step % every == 0 or self.step == self.total:
                    found = self._validate()
                    note = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
                    if report is not None:
                        for name, value in found.items():
                            report(f"validation/{name}", value, self.step)
                if progress is not None:
                    progress("text", self.step, self.total, f"loss {loss:.3f}  {note}")
                if cancelled is not None and cancelled():
                    self.save()
                    raise Cancelled
                if time.monotonic() - saved > self.config.checkpoint_s:
                    self.save()
                    saved = time.monotonic()
                if self.misses >= self.config.patience:
                    break
        self.save()
        chosen = self.best if self.config.keep == "best" else {}
        ended, share = chosen or self.average, self.config.base_blend
        self._load({name: value.lerp(self.begun[name], share) for name, value in ended.items()} if share else ended)

    def _train_step(self, rows: list[int]) -> float:
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        self.network.train()
        if self.network.vision is not None:
            self.network.vision.eval()
        batch = self._hide(collate([self.train_data.rows[row] for row in rows], self.pad_id, self.device))
        data = self.train_data
        sentiment, topic, score = (held[rows].to(self.device) for held in (data.sentiment, data.topic, data.score))
        half = config.precision == "bfloat16" or (config.precision == "auto" and self.device.type == "cuda")
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            loss = self._loss(batch, sentiment, topic, score, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.named.values(), config.gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * group["scale"] * self._schedule()
        self.optimizer.step()
        if self.ranked is not None:
            cast(Any, self.ranked).base_model.update_and_allocate(self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        # The average follows closely at first, when the weights still move far.
        decay = min(config.averaging, (1 + self.step) / (10 + self.step)) if config.averaging else 0.0
        with torch.no_grad():
            for name, value in self.named.items():
                self.average[name].lerp_(value, 1.0 - decay)
        return float(loss.detach())

    def _hide(self, batch: Batch) -> Batch:
        """`batch` with a share of its tokens hidden; markers and special tokens stay."""
        if not self.config.token_dropout:
            return batch
        hidden = (torch.rand(batch.ids.shape) < self.config.token_dropout).to(self.device) & batch.mask
        hidden &= ~torch.isin(batch.ids, self.never_hidden.to(self.device))
        return Batch(batch.ids.masked_fill(hidden, self.backbone.mask_id), batch.mask, batch.span)

    def _loss(self, batch: Batch, sentiment: Tensor, topic: Tensor, score: Tensor, rows: list[int]) -> Tensor:
        loss = self._answered(batch, sentiment, topic, score, rows)
        return loss if self.adalora is None else loss + orthogonality(self.adalora)

    def _answered(self, batch: Batch, sentiment: Tensor, topic: Tensor, score: Tensor, rows: list[int]) -> Tensor:
        logits: Logits = self.network(batch)
        loss = self._taught(logits, sentiment, topic, score, rows)
        if not self.config.consistency:
            return loss
        second: Logits = self.network(batch)
        supervised = (loss + self._taught(second, sentiment, topic, score, rows)) / 2
        return supervised + self.config.consistency * consistency_loss(logits, second)

    def _taught(self, logits: Logits, sentiment: Tensor, topic: Tensor, score: Tensor, rows: list[int]) -> Tensor:
        """The loss against the labels and, where there are teachers, against their answers."""
        loss = self._supervised(logits, sentiment, topic, score)
        if self.train_data.soft is None:
            return loss
        soft = SoftLabels(*(held[rows].to(self.device) for held in self.train_data.soft))
        asked = self.train_data.asked[rows].to(self.device)
        share = self.config.distillation
        return (1.0 - share) * loss + share * distillation_loss(logits, soft, asked)

    def _supervised(self, logits: Logits, sentiment: Tensor, topic: Tensor, score: Tensor) -> Tensor:
        return supervised_loss(
            logits,
            sentiment,
            topic,
            score,
            sentiment_weight=self.weights[0],
            topic_weight=self.weights[1],
            label_smoothing=self.config.label_smoothing,
        )

    def _schedule(self) -> float:
        rise = max(1, int(self.config.warmup * self.total))
        if self.step < rise:
            return (self.step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (self.step - rise) / max(1, self.total - rise)))

    def _validate(self) -> dict[str, float]:
        current = {name: value.detach().clone() for name, value in self.named.items()}
        self._load(self.average)
        found = accuracies(text_logits(self.network, self.validation, self.pad_id), self.validation)
        score = sum(found.values()) / max(1, len(found))
        # What AdaLoRA has yet to drop would be missing from the best weights once they are saved.
        settled = self.ranked is None or self.step >= ranks_settle_at(self.total)
        if settled and score > self.best_score:
            self.best_score, self.misses = score, 0
            self.best = {name: value.clone() for name, value in self.average.items()}
        elif settled:
            self.misses += 1
        self._load(current)
        return found

    @torch.no_grad()
    def _load(self, state: dict[str, Tensor]) -> None:
        for name, value in self.named.items():
            value.copy_(state[name])

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / f"{CHECKPOINT}.part"
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "step": self.step,
                "best_score": self.best_score,
                "misses": self.misses,
                "weights": {name: value.detach() for name, value in self.named.items()},
                "average": self.average,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "ranks": rank_state(self.ranked) if self.ranked is not None else {},
            },
            written,
        )
        written.replace(self.folder / CHECKPOINT)

    def restore(self) -> bool:
        """Take up the checkpoint; False when there is none.

        Raises `InputError` when it is damaged or belongs to another config or other data.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise InputError(f"The checkpoint {path} is damaged.", "Start anew in another folder.") from error
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"The checkpoint {path} belongs to another config or other data.",
                "Resume with the same, or start anew in another folder.",
            )
        self._load(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ranked is not None:
            restore_ranks(self.ranked, state["ranks"])
        self.average, self.best = state["average"], state["best"]
        self.step, self.best_score, self.misses = state["step"], state["best_score"], state["misses"]
        return True
