"""Dtypes of weights: a model of a narrow type keeps some of them in float32."""

import copy
import re
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

FindDType = Callable[[nn.Parameter], torch.dtype]


def take_dtype(model: PreTrainedModel, dtype: torch.dtype | None) -> FindDType:
    """Let a model be in the dtype of a run: its buffers and its configuration now, weights later.

    It is then as `from_pretrained` makes it in this dtype. A family names weights that stay in
    float32, such as routers, or makes them so in its code. It computes some buffers in the dtype.

    Args:
        model: loaded in the dtype of its files; its weights are not changed.
        dtype: of the run; None, or that of the model, leaves all as it is.

    Returns:
        A function that gives the dtype of a parameter of the model.
    """
    if dtype is None or dtype == model.config.dtype:
        return lambda weight: weight.dtype
    _note(model, dtype)
    made = _make_again(model, dtype)
    plan = model._get_dtype_plan(dtype)
    patterns = {re.compile(name.replace("*", ".*")): kind for name, kind in plan.items()}

    def find(name: str, usual: torch.dtype) -> torch.dtype:
        return next((kind for own, kind in patterns.items() if own.search(name)), usual)

    stored = model.state_dict()
    for name, buffer in list(model.named_buffers()):
        other = made.get_buffer(name)
        path, _, key = name.rpartition(".")
        own = buffer.to(find(name, other.dtype)) if name in stored else other.to(buffer.device)
        setattr(model.get_submodule(path), key, own)
    return {
        weight: find(name, made.get_parameter(name).dtype)
        for name, weight in model.named_parameters()
    }.__getitem__


def _note(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Write the dtype of a model into its configuration, and into those of its parts."""
    parts = (getattr(model.config, name) for name in model.config.sub_configs)
    for config in (model.config, *filter(None, parts)):
        config.dtype = dtype


def _make_again(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model of the same configuration, whose weights and stored buffers have no values."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            made = type(model)(copy.deepcopy(model.config))
    finally:
        torch.set_default_dtype(before)
    stored = made.state_dict()
    for name, buffer in list(made.named_buffers()):
        if name not in stored:
            path, _, key = name.rpartition(".")
            setattr(made.get_submodule(path), key, torch.empty_like(buffer, device="cpu"))
    made.initialize_weights()
    return made
