"""Which weights were removed, and how they stay so while the model is trained on."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from prunelit.errors import InputError


class Masks:
    """Keep masks of the parameters that were pruned: True keeps.

    Args:
        masks: bool tensors by the name of the parameter in the model.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self.masks = dict(masks or {})

    def __len__(self) -> int:
        return len(self.masks)

    def grow(self, later: "Masks") -> None:
        """Take over the masks of a later round, which removed more."""
        self.masks.update(later.masks)

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set removed weights to 0."""
        for parameter, mask in self._pairs(model):
            parameter.mul_(mask)

    def check(self, model: nn.Module) -> None:
        """Assert that every removed weight is exactly 0."""
        for name, mask in self.masks.items():
            parameter = model.get_parameter(name)
            regrown = int((parameter.detach() != 0).logical_and_(~mask.to(parameter.device)).sum())
            assert regrown == 0, f"{regrown} removed weights of {name} are not 0."

    def hold(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> list[RemovableHandle]:
        """Keep removed weights at 0 through optimizer steps, whatever momentum and decay do.

        Their gradients are 0 before clipping sees them, and the weights are set to 0 after each
        step.

        Args:
            model: the one that is trained.
            optimizers: those that step over its parameters.

        Returns:
            Handles; call `remove` on each to let go.
        """
        pairs = list(self._pairs(model))

        def after_step(*_: Any) -> None:
            with torch.no_grad():
                for parameter, mask in pairs:
                    parameter.mul_(mask)

        handles = [
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
            for parameter, mask in pairs
            if parameter.requires_grad
        ]
        return handles + [optimizer.register_step_post_hook(after_step) for optimizer in optimizers]

    def packed(self) -> dict[str, Tensor]:
        """One bit a weight: bit i of byte j (least significant first) is weight 8 j + i.

        Returns:
            (ceil(numel / 8),) uint8 by parameter name, on the CPU.
        """
        return {
            name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=None, bitorder="little"))
            for name, mask in self.masks.items()
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Tensor], model: nn.Module) -> "Masks":
        """The inverse of `packed`, shaped like the parameters of `model`.

        Raises:
            InputError: if the model has no such parameters.
        """
        masks = {}
        for name, bits in packed.items():
            try:
                parameter = model.get_parameter(name)
            except AttributeError as error:
                raise InputError(
                    f"Expected masks of this model but got one for {name!r}, which it lacks."
                ) from error
            count = parameter.numel()
            if bits.numel() != -(-count // 8):
                raise InputError(
                    f"Expected a mask of {count} bits for {name!r} but got {8 * bits.numel()}."
                )
            flat = np.unpackbits(bits.numpy(), count=count, bitorder="little")
            masks[name] = torch.from_numpy(flat).bool().view(parameter.shape).to(parameter.device)
        return cls(masks)

    def _pairs(self, model: nn.Module) -> Iterable[tuple[nn.Parameter, Tensor]]:
        for name, mask in self.masks.items():
            parameter = model.get_parameter(name)
            self.masks[name] = mask = mask.to(parameter.device)
            yield parameter, mask


def count_zeros(model: nn.Module) -> dict[str, int]:
    """Entries that are exactly 0, by parameter name."""
    return {name: int((value == 0).sum()) for name, value in model.named_parameters()}


def removed_since(model: nn.Module, before: Mapping[str, int]) -> Masks:
    """The masks of the parameters that have more zeros than `before`.

    A bias goes with its row: a removed output has no bias to learn either.

    Args:
        model: after a round of pruning.
        before: its `count_zeros` before that round.
    """
    masks = {
        name: value.detach() != 0
        for name, value in model.named_parameters()
        if int((value == 0).sum()) > before[name]
    }
    for name, module in model.named_modules():
        mask = masks.get(f"{name}.weight")
        bias = getattr(module, "bias", None)
        if mask is None or mask.ndim != 2 or not isinstance(bias, nn.Parameter):
            continue
        is_transposed = isinstance(module, Conv1D)
        alive = mask.any(0 if is_transposed else 1)
        if not alive.all():
            masks[f"{name}.bias"] = alive
    return Masks(masks)
