"""Adaptation of the text backbone to unlabelled text of the domain before it learns any task.

Masked language modelling (Devlin et al. 2019) of the adapter on the texts at hand, as in Gururangan et al. 2020, "Don't
Stop Pretraining". The head that names the hidden tokens shares the backbone's word embeddings and is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.answers import collate
from models.backbones import TextBackbone
from models.classifier import Classifier
from models.tokens import TokenizedRow
from models.training.batches import epoch_batches
from models.training.config import TrainingConfig
from models.training.text_stage import Cancelled, Progress, set_dropout
from monitor.errors import InputError

__all__ = ["adapt", "hide", "read_unlabelled"]

_DONE = "adapted.pt"
_NO_ANSWER = -100


class _Text(msgspec.Struct):
    text: str


def read_unlabelled(path: Path) -> list[str]:
    """The texts of a JSON Lines file, one `text` a line. Raises `InputError` naming file and line."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    texts.append(msgspec.json.decode(line, type=_Text).text)
                except msgspec.MsgspecError as error:
                    raise InputError(f"{path}, line {number}: {error}.") from error
    except OSError as error:
        raise InputError(f"The file {path} cannot be read: {error.strerror}.") from error
    return texts


def hide(
    ids: Tensor, allowed: Tensor, share: float, mask_id: int, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) with a share of the `allowed` (B, L) ones hidden, and the answers (B, L), -100 elsewhere.

    Of the chosen tokens 80 % become `mask_id`, 10 % any token, 10 % stay (Devlin et al. 2019, section 3.1).
    """
    chosen = (torch.rand(ids.shape, generator=generator) < share) & allowed
    fate = torch.rand(ids.shape, generator=generator)
    drawn = torch.randint(vocabulary, ids.shape, generator=generator)
    shown = torch.where(chosen & (fate < 0.8), torch.full_like(ids, mask_id), ids)
    shown = torch.where(chosen & (fate >= 0.9), drawn, shown)
    return shown, torch.where(chosen, ids, torch.full_like(ids, _NO_ANSWER))


def adapt(
    network: Classifier,
    backbone: TextBackbone,
    config: TrainingConfig,
    rows: Sequence[TokenizedRow],
    folder: Path,
    *,
    fingerprint: str,
    resume: bool,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Adapt the trainable weights of `network.text` in place to the texts of `rows`.

    The outcome is kept in `folder`, where `resume` takes it up; interrupted in between, the stage begins anew and ends
    with the same weights. Raises `Cancelled`, and `InputError` when what is kept is damaged or of another run
    (`fingerprint`).
    """
    named = {name: value for name, value in network.text.named_parameters() if value.requires_grad}
    kept = folder / _DONE
    device = network.device()
    if resume and kept.is_file():
        try:
            state = torch.load(kept, map_location=device, weights_only=True)
        except Exception as error:
            raise InputError(f"The checkpoint {kept} is damaged.", "Start anew in another folder.") from error
        if state["fingerprint"] != fingerprint:
            raise InputError(
                f"The checkpoint {kept} belongs to another config or other data.",
                "Resume with the same, or start anew in another folder.",
            )
        with torch.no_grad():
            for name, value in state["weights"].items():
                named[name].copy_(value)
        return
    plan = config.adaptation
    words = cast(Tensor, cast(Any, network.text).get_input_embeddings().weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        width = words.shape[1]
        head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)).to(device)
    optimizer = torch.optim.AdamW([*named.values(), *head.parameters()], lr=plan.learning_rate, weight_decay=0.01)
    special = torch.tensor([backbone.pad_id, *backbone.prefix, *backbone.suffix, *backbone.markers])
    lengths = [len(row.ids) for row in rows]
    plans = [epoch_batches(lengths, config.token_budget, seed=config.seed, epoch=epoch) for epoch in range(plan.epochs)]
    batches = [batch for planned in plans for batch in planned]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=plan.learning_rate, total_steps=max(1, len(batches)), pct_start=config.warmup
    )
    generator = torch.Generator().manual_seed(config.seed)
    network.train()
    set_dropout(network, config.backbone_dropout)
    loss_mean = 0.0
    for step, chosen in enumerate(batches, 1):
        torch.manual_seed(config.seed * 1_000_003 + step)
        batch = collate([rows[index] for index in chosen], backbone.pad_id, torch.device("cpu"))
        allowed = batch.mask & ~torch.isin(batch.ids, special)
        shown, answers = hide(batch.ids, allowed, plan.hidden, backbone.mask_id, len(words), generator)
        tokens = network.text(input_ids=shown.to(device), attention_mask=batch.mask.long().to(device)).last_hidden_state
        asked = (answers != _NO_ANSWER).to(device)
        if bool(asked.any()):
            logits = head(tokens[asked]) @ words.detach().T
            loss = functional.cross_entropy(logits.float(), answers.to(device)[asked])
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(named.values(), config.gradient_norm)
            optimizer.step()
            loss_mean += (float(loss.detach()) - loss_mean) / min(step, 20)
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if progress is not None:
            progress("adaptation", step, len(batches), f"loss {loss_mean:.3f}")
        if cancelled is not None and cancelled():
            raise Cancelled
    folder.mkdir(parents=True, exist_ok=True)
    written = kept.with_suffix(".part")
    weights = {name: value.detach().cpu() for name, value in named.items()}
    torch.save({"fingerprint": fingerprint, "weights": weights}, written)
    written.replace(kept)
