"""Low-rank adapters on a backbone's linear layers, through `peft`.

LoRA (Hu et al. 2021), DoRA (Liu et al. 2024) and AdaLoRA (Zhang et al. 2023) are selectable; what is saved is the
standard PEFT layout (`adapter_config.json`, `adapter_model.safetensors`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
import torch
from torch import Tensor, nn

from monitor.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "AdapterSettings",
    "add_adapter",
    "load_adapter",
    "merge_adapter",
    "orthogonality",
    "plan_ranks",
    "rank_state",
    "ranks_settle_at",
    "ranks_settled",
    "restore_ranks",
    "save_adapter",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


class AdapterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a backbone is adapted.

    Attributes
    ----------
    kind : `lora`, `dora` or `adalora`; `none` leaves the backbone as it is.
    rank : rank of the update of each matrix.
    alpha : the update is scaled by alpha / rank.
    dropout : share of an update's inputs dropped in training; on a CPU it costs a third of the speed.
    """

    kind: Literal["lora", "dora", "adalora", "none"] = "lora"
    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0


def add_adapter(encoder: nn.Module, settings: AdapterSettings, *, total_steps: int = 0) -> PeftModel:
    """`encoder` with a fresh trainable adapter on all its linear layers; everything else is frozen.

    AdaLoRA plans its ranks over `total_steps` optimiser steps.
    """
    from peft import AdaLoraConfig, LoraConfig, PeftConfig, get_peft_model

    common: dict[str, Any] = {
        "target_modules": "all-linear",
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "bias": "none",
    }
    if settings.kind == "adalora":
        config: PeftConfig = AdaLoraConfig(
            init_r=settings.rank + max(1, settings.rank // 2),
            target_r=settings.rank,
            **_rank_plan(total_steps),
            **common,
        )
    else:
        config = LoraConfig(r=settings.rank, use_dora=settings.kind == "dora", **common)
    return cast("PeftModel", get_peft_model(cast(Any, encoder), config))


def _rank_plan(total_steps: int) -> dict[str, Any]:
    """When AdaLoRA begins and ends to drop ranks: not in the first tenth and not in the second half of the steps.

    What a rank is worth is known from the second step on, as an update begins at zero.
    """
    steps = max(total_steps, 3)
    return {
        "total_step": steps,
        "tinit": max(1, steps // 10),
        "tfinal": min(steps // 2, steps - 3),
        "deltaT": max(1, steps // 100),
    }


def plan_ranks(model: PeftModel, total_steps: int) -> None:
    """Spread the dropping of ranks of a fresh AdaLoRA adapter over `total_steps` optimiser steps."""
    for config in model.peft_config.values():
        for name, value in _rank_plan(total_steps).items():
            setattr(config, name, value)


def ranks_settled(model: PeftModel) -> bool:
    """Whether an AdaLoRA adapter comes with the ranks that an earlier run has left it; they are kept."""
    return all(cast(Any, config).rank_pattern is not None for config in model.peft_config.values())


def ranks_settle_at(total_steps: int) -> int:
    """The step of so many after which AdaLoRA drops no more ranks."""
    plan = _rank_plan(total_steps)
    return int(plan["total_step"] - plan["tfinal"])


def orthogonality(model: PeftModel) -> Tensor:
    """Scalar: AdaLoRA's regulariser (Zhang et al. 2023, eq. 4), weighted as its config says.

    How far the singular vectors of each update are from orthogonal; the singular values say what a rank is worth only
    while they are nearly so. The library adds it to the loss of models that have one of their own; encoders have none.
    """
    config: Any = next(iter(model.peft_config.values()))
    found = []
    for name, value in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = value @ value.T if "lora_A" in name else value.T @ value
            found.append(torch.linalg.norm(product - torch.eye(len(product), device=value.device)))
    return float(config.orth_reg_weight) * torch.stack(found).mean()


# What AdaLoRA remembers about its ranks besides its weights.
_MEMORY = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def rank_state(model: PeftModel) -> dict[str, Any]:
    """How important AdaLoRA has found each rank so far, to go on from."""
    allocator = cast(Any, model).base_model.rankallocator
    config: Any = next(iter(model.peft_config.values()))
    return {name: dict(getattr(allocator, name)) for name in _MEMORY} | {"kept": config.rank_pattern}


def restore_ranks(model: PeftModel, state: dict[str, Any]) -> None:
    """Take up what `rank_state` gave."""
    allocator = cast(Any, model).base_model.rankallocator
    for name in _MEMORY:
        setattr(allocator, name, dict(state[name]))
    config: Any = next(iter(model.peft_config.values()))
    config.rank_pattern = state["kept"]


def load_adapter(encoder: nn.Module, folder: Path, *, trainable: bool = False) -> PeftModel:
    """`encoder` with the adapter of `folder`, read from safetensors only.

    Raises `ModelError` when the folder lacks a file or the adapter does not fit.
    """
    from peft import PeftModel

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"The adapter in {folder} lacks the file {name}.")
    try:
        return PeftModel.from_pretrained(cast(Any, encoder), str(folder), is_trainable=trainable)
    except Exception as error:
        raise ModelError(
            f"The adapter in {folder} does not fit its backbone: {str(error).splitlines()[0][:200]}"
        ) from error


def save_adapter(model: PeftModel, folder: Path, *, base_model: str) -> None:
    """Write the adapter in the PEFT layout; `base_model` is the name that its config states."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_model
        config.inference_mode = True
    card = folder / "README.md"
    card.unlink(missing_ok=True)
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / WEIGHTS_FILE).chmod(0o644)
    # PEFT's template card says nothing; the model card is written by `models.model_card`.
    card.unlink(missing_ok=True)


def merge_adapter(model: PeftModel) -> nn.Module:
    """The backbone with the adapter's update added to its weights; same results, no extra work."""
    return cast(nn.Module, cast(Any, model).merge_and_unload(safe_merge=True))
