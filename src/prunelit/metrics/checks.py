"""Refuse arguments of metrics that would be broadcast, or would give a number without a meaning."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunelit.errors import InputError

Numbers = Tensor | np.ndarray


def check_vectors(**vectors: Numbers) -> None:
    """Refuse arguments that are no vectors of one length, or that hold NaN.

    Args:
        vectors: (n,) each, by the name of the argument.

    Raises:
        InputError: naming the shapes, or the argument.
    """
    shapes = {name: tuple(vector.shape) for name, vector in vectors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise InputError(f"Expected vectors of one length but got {_list(shapes)}.")
    check_numbers(**vectors)


def check_numbers(**given: Numbers) -> None:
    """Refuse NaN.

    Raises:
        InputError: naming the argument.
    """
    for name, values in given.items():
        different: Any = values != values
        if different.any():
            raise InputError(f"Expected numbers as `{name}` but some are NaN.")


def check_ids(name: str, ids: Tensor, size: int | None = None) -> None:
    """Refuse ids that are no whole numbers, or are not in [0, size).

    Raises:
        InputError: naming the argument, and the type or an id.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"Expected whole numbers as `{name}` but got {ids.dtype}.")
    if size is not None and (wrong := ids[(ids < 0) | (ids >= size)].tolist()):
        raise InputError(f"Expected `{name}` in [0, {size}) but got {wrong[0]}.")


def _list(shapes: dict[str, Any]) -> str:
    return " and ".join(f"`{name}` of shape {shape}" for name, shape in shapes.items())
