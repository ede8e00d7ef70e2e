"""Recovery with low-rank adapters that touch only the weights that are left."""

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
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) of the package `peft`.

    They train while the pruned weights are frozen. What they add to removed weights is masked in
    every forward pass (Zimmer et al. 2023, arXiv:2312.15230), so the model that is trained and
    measured is the one that merging gives.

    Args:
        rank: of the adapters.
        alpha: what they add is scaled by `alpha / rank`.
        target_modules: as in `peft.LoraConfig`; `all-linear` is every linear map but
            the unembedding.
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
        """Refuse target modules that `model` lacks; changes nothing.

        Raises:
            InputError: with what peft says.
        """
        with torch.device("meta"):
            empty = type(model)(model.config)
        Adapters(empty, self)


class Adapters:
    """Adapters in a model, whose own weights they freeze.

    Args:
        model: gets them in place.
        lora: their settings.

    Raises:
        InputError: if the model has no such modules.
    """

    def __init__(self, model: PreTrainedModel, lora: LoRA) -> None:
        from peft import LoraConfig, get_peft_model  # seconds, that runs without adapters save

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

    def hold(self, masks: Masks) -> None:
        """From now on add nothing to the weights that `masks` removes."""
        from peft.tuners.lora import LoraLayer

        for name, module in self._model.named_modules():
            if isinstance(module, LoraLayer) and f"{name}.weight" in masks:
                weight = module.get_base_layer().get_parameter("weight")
                mask = masks[f"{name}.weight"].to(weight.device)
                setattr(module, "forward", _Masked(module, mask))  # noqa: B010 - a mixin without one

    def merge(self) -> None:
        """Add them to the weights, removed ones too, and take them off the model."""
        self._adapted.merge_and_unload(safe_merge=True)


class _Masked:
    """The forward pass of an adapted linear map, with W + mask * B A in place of W + B A."""

    def __init__(self, layer: Any, mask: Tensor) -> None:
        self._layer, self._mask = layer, mask

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        if torch.is_grad_enabled():  # not to keep a weight's worth of intermediates for each map
            return checkpoint(self._run, x, use_reentrant=False)  # type: ignore[return-value]
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        base: nn.Module = self._layer.get_base_layer()
        weight = base.get_parameter("weight")
        # As merging computes it, mixed precision or not.
        with torch.autocast(x.device.type, enabled=False):
            added = self._layer.get_delta_weight(self._layer.active_adapters[0]) * self._mask
        return torch.func.functional_call(base, {"weight": weight + added.to(weight.dtype)}, (x,))
