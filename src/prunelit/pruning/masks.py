"""Masks of removed weights, which keep them at 0 while the model is trained."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from prunelit.errors import InputError
from prunelit.models.stores import check_here, each_weight


class Masks:
    """Keep masks of the pruned parameters, stored with one bit per weight.

    The parameters of a model may be sharded. Every rank then deals with its own part.

    Args:
        masks: bool tensors by the name of the parameter in the model; True keeps.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self._bits: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        for name, mask in (masks or {}).items():
            self.set(name, mask)

    def __len__(self) -> int:
        return len(self._bits)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __getitem__(self, name: str) -> Tensor:
        """Unpack the mask of one parameter, bool, on the CPU."""
        shape = self._shapes[name]
        flat = np.unpackbits(self._bits[name].numpy(), count=shape.numel(), bitorder="little")
        return torch.from_numpy(flat).bool().view(shape)

    def set(self, name: str, mask: Tensor) -> None:
        """Store the mask of one parameter."""
        bits = np.packbits(mask.cpu().numpy(), axis=None, bitorder="little")
        self._bits[name], self._shapes[name] = torch.from_numpy(bits), mask.shape

    def merge(self, later: "Masks") -> None:
        """Add the masks of a later round; weights that an earlier round removed stay removed."""
        for name in later:
            bits = later._bits[name]
            self._bits[name] = self._bits[name] & bits if name in self._bits else bits
            self._shapes[name] = later._shapes[name]

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set removed weights to 0."""
        for name, parameter in each_weight(model, self, edited=True):
            _local(parameter).mul_(self._part(name, parameter))

    def count_regrown(self, model: nn.Module) -> dict[str, int]:
        """Count the removed weights that are not 0, by name of the parameters that have some."""
        counts = {}
        for name, parameter in each_weight(model, self):
            regrown = (_local(parameter.detach()) != 0).logical_and_(~self._part(name, parameter))
            counts[name] = int(regrown.sum())
        return {name: count for name, count in counts.items() if count}

    def check(self, model: nn.Module) -> None:
        """Assert that all removed weights are exactly 0."""
        for name, count in self.count_regrown(model).items():
            raise AssertionError(f"{count} removed weights of {name} are not 0.")

    def hold(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> list[RemovableHandle]:
        """Keep removed weights at 0 through optimizer steps, with any momentum and weight decay.

        Gradients of removed weights are set to 0 before they are clipped, and the weights are set
        to 0 after each step. Masks of trained parameters are unpacked for this, one byte per
        weight. For sharded parameters, FSDP2 calls only hooks of the gradient that it has reduced.

        Args:
            model: the model that is trained.
            optimizers: the optimizers of its parameters.

        Returns:
            Handles; call `remove` on each to stop.

        Raises:
            InputError: if blocks wait in stores.
        """
        check_here(model, "Training")
        parameters = {name: model.get_parameter(name) for name in self}
        pairs = [
            (parameter, self._part(name, parameter))
            for name, parameter in parameters.items()
            if parameter.requires_grad
        ]

        def after_step(*_: Any) -> None:
            with torch.no_grad():
                for parameter, mask in pairs:
                    _local(parameter).mul_(mask)

        def summed(parameter: Tensor, mask: Tensor) -> None:
            assert parameter.grad is not None
            _local(parameter.grad).mul_(mask)

        handles = [
            parameter.register_post_accumulate_grad_hook(partial(summed, mask=mask))
            if isinstance(parameter, DTensor)
            else parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
            for parameter, mask in pairs
        ]
        return handles + [optimizer.register_step_post_hook(after_step) for optimizer in optimizers]

    def _part(self, name: str, parameter: Tensor) -> Tensor:
        """Unpack this rank's part of the mask of a parameter, on its device."""
        return own_part(self[name].to(parameter.device), parameter)

    def pack(self) -> dict[str, Tensor]:
        """Give the packed masks: bit i of byte j (least significant first) is weight 8 j + i.

        Returns:
            (ceil(numel / 8),) uint8 by parameter name, on the CPU.
        """
        return dict(self._bits)

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor], model: nn.Module) -> "Masks":
        """Build masks from the data of `pack`, with the shapes of the parameters of `model`.

        Raises:
            InputError: if the model has no parameter of a name, or one of another size.
        """
        masks = cls()
        for name, bits in packed.items():
            try:
                shape = model.get_parameter(name).shape
            except AttributeError as error:
                raise InputError(
                    f"Expected masks of this model but got one for {name!r}, which is not one of "
                    "its parameters."
                ) from error
            if bits.numel() != -(-shape.numel() // 8):
                raise InputError(
                    f"Expected a mask of {shape.numel()} bits for {name!r} but got "
                    f"{8 * bits.numel()}."
                )
            masks._bits[name], masks._shapes[name] = bits, shape
        return masks


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """Unpack one mask of `Masks.pack`, bool, on the device of its bits."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = (bits[:, None] >> places).bitwise_and_(1).flatten()
    return flat[: shape.numel()].view(shape).bool()


def own_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a tensor that this rank has of a parameter; all, if it is not sharded.

    Args:
        whole: of the shape of the parameter, on its device; equal on every rank.
        parameter: plain, or sharded by FSDP2.
    """
    if not isinstance(parameter, DTensor):
        return whole
    # Every rank has the whole tensor, so that nothing is sent.
    return distribute_tensor(
        whole, parameter.device_mesh, parameter.placements, src_data_rank=None
    ).to_local()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def count_zeros(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, int]:
    """Count the entries that are exactly 0, by parameter name.

    Args:
        model: any.
        names: of the parameters; None counts all.
    """
    weights = each_weight(model, names)
    return {name: value.numel() - int(value.count_nonzero()) for name, value in weights}


def build_masks(model: nn.Module, before: Mapping[str, int], after: Mapping[str, int]) -> Masks:
    """Build the masks of the parameters that have more zeros than before.

    If a whole row of a weight is removed, the entry of its bias is removed too.

    Args:
        model: the model after a round of pruning.
        before: its `count_zeros` before that round.
        after: its `count_zeros` now, of some parameters or of all.
    """
    masks = Masks()
    names = [name for name, zeros in after.items() if zeros > before[name]]
    for name, value in each_weight(model, names):
        masks.set(name, value.detach() != 0)
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if weight in masks and isinstance(getattr(module, "bias", None), nn.Parameter):
            alive = masks[weight].any(0 if isinstance(module, Conv1D) else -1)
            if not alive.all():
                masks.set(f"{name}.bias", alive)
    return masks
