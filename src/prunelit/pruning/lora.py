"""Recovery with low-rank adapters that leave removed weights at 0."""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.experts import fused_tensors
from prunelit.models.stores import each_whole
from prunelit.pruning.masks import Masks, unpack

_INNER = ".base_layer"


@dataclass
class LoRA:
    """Train low-rank adapters (Hu et al. 2021, arXiv:2106.09685) of the package `peft`.

    The pruned weights are frozen. Every forward pass masks the updates of removed weights (Zimmer
    et al. 2023, arXiv:2312.15230), so that training, measuring and merging use the same model.

    Args:
        rank: rank of the adapters.
        alpha: adapters are scaled by `alpha / rank`.
        target_modules: as in `peft.LoraConfig`; `all-linear` is every linear map except the
            unembedding, and the fused experts of a mixture. In some families `peft` then leaves out
            what has the names of expert maps elsewhere, such as shared experts.
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
        attach(empty, self)


def attach(model: PreTrainedModel, lora: LoRA) -> None:
    """Add adapters to a model, in place, and freeze its own weights.

    Args:
        model: its blocks may wait in stores, which do not know the adapters.
        lora: settings of the adapters.

    Raises:
        InputError: if the model has no such modules.
    """
    from peft import LoraConfig, get_peft_model  # takes seconds

    fused = [
        f"{name}.{tensor}"
        for name, module in model.named_modules()
        for tensor in fused_tensors(module)
    ]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=lora.target_modules,
        target_parameters=fused if lora.target_modules == "all-linear" and fused else None,
        task_type="CAUSAL_LM",
    )
    try:
        with _stood_in(model), warnings.catch_warnings():
            # Of the ranks that peft itself gives to fused experts.
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
            get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"`model.recovery.lora` does not fit this model: {error}") from error


@contextmanager
def _stood_in(model: PreTrainedModel) -> Iterator[None]:
    """Let weights that are away seem to be here: peft puts adapters where the weights are."""
    away = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.is_meta
    ]
    for module, name, weight in away:
        empty = torch.empty((), dtype=weight.dtype, device=model.device).expand(weight.shape)
        module.register_parameter(name, nn.Parameter(empty, weight.requires_grad))
    try:
        yield
    finally:
        for module, name, weight in away:
            weight.requires_grad_(module.get_parameter(name).requires_grad)
            module.register_parameter(name, weight)


def _adapted(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}


def _parameter(layer: Any) -> str:
    """Name of the parameter that an adapter adapts, inside its module."""
    return getattr(layer, "parameter_name", "weight")


def hold(model: nn.Module, masks: Masks, device: torch.device) -> None:
    """Mask the updates of removed weights by the adapters of a model from now on.

    Args:
        model: with adapters.
        masks: of its weights.
        device: where it computes.
    """
    packed = masks.pack()
    for path, layer in _adapted(model).items():
        # Adapters of several tensors of one module are around each other.
        owner, inner, _ = path.partition(_INNER)
        if (bits := packed.get(f"{owner}.{_parameter(layer)}")) is not None:
            layer.forward = _Masked(layer, bits.to(device), outermost=not inner)


def merge(model: nn.Module) -> None:
    """Add the adapters of a model to all weights, removed ones too, and take the adapters away.

    Args:
        model: the stores of its blocks know the adapters, if it has any.
    """
    layers = _adapted(model)
    for name, layer in zip(layers, each_whole(layers.values(), edited=True), strict=True):
        layer.merge(safe_merge=True)
        if _INNER not in name:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    vars(model).pop("peft_config", None)


class _Masked:
    """Forward pass of a module with an adapter: W + mask * B A instead of W + B A.

    Args:
        layer: of peft.
        bits: the mask, packed, where the model computes.
        outermost: no other adapter is around this one.
    """

    def __init__(self, layer: Any, bits: Tensor, outermost: bool) -> None:
        self._layer, self._bits, self._outermost = layer, bits, outermost
        self._name = _parameter(layer)
        module, self._path = layer.base_layer, self._name
        while module is not layer.get_base_layer():
            module, self._path = module.base_layer, f"base_layer.{self._path}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A checkpoint does not keep the updates of each weight.
        if self._outermost and torch.is_grad_enabled():
            return checkpoint(self._run, *args, use_reentrant=False, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        weight = self._layer.get_base_layer().get_parameter(self._name)
        mask = unpack(self._bits, weight.shape)
        # In the precision of merging, even under autocast.
        with torch.autocast(weight.device.type, enabled=False):
            added = self._layer.get_delta_weight(self._layer.active_adapters[0]) * mask
        changed = {self._path: weight + added.to(weight.dtype)}
        return torch.func.functional_call(self._layer.base_layer, changed, args, kwargs)
