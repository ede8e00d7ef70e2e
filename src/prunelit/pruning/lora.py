"""Recovery with low-rank adapters that leave removed weights at 0."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.pruning.masks import Masks


@dataclass
class LoRA:
    """Train low-rank adapters (Hu et al. 2021, arXiv:2106.09685) of the package `peft`.

    The pruned weights are frozen. Every forward pass masks the updates of removed weights (Zimmer
    et al. 2023, arXiv:2312.15230), so that training, measuring and merging use the same model.

    Args:
        rank: rank of the adapters.
        alpha: adapters are scaled by `alpha / rank`.
        target_modules: as in `peft.LoraConfig`; `all-linear` is every linear map except the
            unembedding.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(
                f"Expected `lora.rank` of at least 1 and `alpha` > 0 but got {self.rank} and "
                f"{self.alpha}."
            )
        if importlib.util.find_spec("peft") is None:
            raise InputError(
                "`model.recovery.lora` needs the package peft: pip install 'prunelit[lora]'."
            )

    def check(self, model: PreTrainedModel) -> None:
        """Refuse target modules that are not in `model`; change nothing.

        Raises:
            InputError: with the message of peft.
        """
        with torch.device("meta"):
            empty = type(model)(model.config)
        Adapters(empty, self)


class Adapters:
    """Add adapters to a model and freeze its own weights.

    Args:
        model: gets the adapters in place.
        lora: settings of the adapters.

    Raises:
        InputError: if the model has no such modules.
    """

    def __init__(self, model: PreTrainedModel, lora: LoRA) -> None:
        from peft import LoraConfig, get_peft_model  # takes seconds

        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        )
        try:
            self._adapted = get_peft_model(model, config)
        except ValueError as error:
            raise InputError(f"`model.recovery.lora` does not fit this model: {error}") from error
        self._model = model

    def hold(self, masks: Masks, device: torch.device | None = None) -> None:
        """Mask the updates of removed weights from now on.

        Args:
            masks: of the weights of the model.
            device: where the model computes; None is that of its weights.
        """
        from peft.tuners.lora import LoraLayer

        for name, module in self._model.named_modules():
            if isinstance(module, LoraLayer) and f"{name}.weight" in masks:
                weight = module.get_base_layer().get_parameter("weight")
                mask = masks[f"{name}.weight"].to(device or weight.device)
                setattr(module, "forward", _Masked(module, mask))  # noqa: B010 - a mixin without one

    def merge(self) -> None:
        """Add the adapters to all weights and remove them from the model."""
        self._adapted.merge_and_unload(safe_merge=True)


class _Masked:
    """Forward pass of a linear map with an adapter: W + mask * B A instead of W + B A."""

    def __init__(self, layer: Any, mask: Tensor) -> None:
        self._layer, self._mask = layer, mask

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        if torch.is_grad_enabled():  # a checkpoint does not keep the updates of each weight
            return checkpoint(self._run, x, use_reentrant=False)  # type: ignore[return-value]
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        base: nn.Module = self._layer.get_base_layer()
        weight = base.get_parameter("weight")
        # In the precision of merging, even under autocast.
        with torch.autocast(x.device.type, enabled=False):
            added = self._layer.get_delta_weight(self._layer.active_adapters[0]) * self._mask
        return torch.func.functional_call(base, {"weight": weight + added.to(weight.dtype)}, (x,))
