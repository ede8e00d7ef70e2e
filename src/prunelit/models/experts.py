"""Fused experts of a mixture, seen as one linear map for each expert and tensor."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelit.errors import InputError
from prunelit.models.forwards import replaced_forwards
from prunelit.models.stores import share_store

# Gets the number of an expert, the tokens (M,) that reach it among those of the batch, the shares
# (M,) of its outputs for them, and these outputs (M, D).
See = Callable[[int, Tensor, Tensor, Tensor], None]

# Names of the first tensor: gate and up projection in one, or an up projection without a gate.
_FIRST, _LAST = ("gate_up_proj", "up_proj"), "down_proj"


class ExpertMap(nn.Module):
    """Linear map of one expert: a view of its slice of a tensor that holds the maps of all experts.

    Two views of one slice are equal. The weights stay those of the experts, wherever they are.

    Args:
        experts: the module that holds the tensor.
        tensor: name of the tensor inside `experts`.
        index: number of the expert.
    """

    def __init__(self, experts: nn.Module, tensor: str, index: int) -> None:
        super().__init__()
        self.tensor, self.index = tensor, index
        self._experts = (experts,)  # in a tuple, since a module would be a submodule
        share_store(self, experts)

    @property
    def experts(self) -> nn.Module:
        """The module that holds the weights of all experts."""
        return self._experts[0]

    @property
    def weight(self) -> Tensor:
        """(O, I); changes in place reach the model."""
        part = self.experts.get_parameter(self.tensor)[self.index]
        return part.T if is_transposed(self.experts) else part

    @property
    def bias(self) -> Tensor | None:
        """(O,), or None."""
        bias = getattr(self.experts, f"{self.tensor}_bias", None)
        return None if bias is None else bias[self.index]

    def forward(self, x: Tensor, reached: Tensor) -> Tensor:
        """Compute the map.

        Args:
            x: (M, I), the inputs of the tokens that reach this expert; M may be 0.
            reached: (N,) bool, which tokens of the batch they are, for those who watch.

        Returns:
            (M, O).
        """
        return F.linear(x, self.weight, self.bias)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExpertMap) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[int, str, int]:
        return id(self.experts), self.tensor, self.index


def fused_tensors(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that fuse the maps of all experts; none if the module is something else.

    They have three dimensions, the first of which counts the experts: `gate_up_proj` or `up_proj`,
    then `down_proj`.
    """
    own = {name for name, value in module.named_parameters(recurse=False) if value.ndim == 3}
    return next(((first, _LAST) for first in _FIRST if own == {first, _LAST}), ())


def find_experts(block: nn.Module) -> dict[str, nn.Module]:
    """Find the modules of a block that hold fused experts, by their names inside the block."""
    return {name: module for name, module in block.named_modules() if fused_tensors(module)}


def expert_maps(name: str, module: nn.Module) -> dict[str, ExpertMap]:
    """View a module that holds fused experts as linear maps.

    Args:
        name: of the module.
        module: any; one without fused experts has no maps.

    Returns:
        By the name of the tensor and the number of the expert, as `mlp.experts.down_proj.3`.
    """
    return {
        f"{name}.{tensor}.{index}": ExpertMap(module, tensor, index)
        for tensor in fused_tensors(module)
        for index in range(count_experts(module))
    }


def expert_output(experts: nn.Module, index: int, x: Tensor) -> Tensor:
    """Compute the output of one expert, without the share that the router gives it.

    Args:
        experts: the module that holds fused experts.
        index: number of the expert.
        x: (M, D).

    Returns:
        (M, D).
    """
    reached = torch.ones(len(x), dtype=torch.bool, device=x.device)
    return _run_one(experts, {}, index, x, reached)


def routed_inputs(experts: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    """Return what fused experts read, in order.

    Args:
        experts: the module.
        args: of its forward pass.
        kwargs: of its forward pass.

    Returns:
        Hidden states; in most families also the experts of each token and their shares.
    """
    bound = inspect.signature(type(experts).forward).bind(experts, *args, **kwargs)
    return bound.args[1:]


def find_routers(block: nn.Module) -> set[str]:
    """Find the modules that choose experts, and all modules inside them, by their names.

    A router stands beside the experts. One of its matrices has a row for each expert, and perhaps
    further rows, and none has a row for each channel of their output, as that of a shared expert.
    """
    found: set[str] = set()
    for name, experts in find_experts(block).items():
        parent, dot, _ = name.rpartition(".")
        count, width = count_experts(experts), _width(experts)
        for child, module in block.get_submodule(parent).named_children():
            if find_experts(module):
                continue
            rows = [value.shape[0] for value in module.parameters() if value.ndim == 2]
            if any(count <= size <= 2 * count for size in rows) and width not in rows:
                inside = (part for part, _ in module.named_modules(prefix=f"{parent}{dot}{child}"))
                found.update(inside)
    return found


@contextmanager
def called_one_by_one(
    maps: Iterable[ExpertMap],
    seen: Mapping[nn.Module, See] | None = None,
    *,
    checked: bool = False,
) -> Iterator[None]:
    """Let experts run one after the other, so that their inputs and outputs can be seen.

    Every map of the same experts is called once in each forward pass, also for no tokens.

    Args:
        maps: are called, so that their hooks run; other maps of the same experts are computed
            without a hook.
        seen: by the module that holds fused experts, a function that gets each of its experts.
        checked: also let the experts compute in their own way, and compare.

    Raises:
        InputError: in a forward pass, if the experts do not compute what their maps do.
    """
    seen = seen or {}
    owners: dict[nn.Module, dict[tuple[str, int], ExpertMap]] = {experts: {} for experts in seen}
    for one in maps:
        owners.setdefault(one.experts, {})[one.tensor, one.index] = one
    functions = {
        experts: partial(
            _forward, experts, known, seen.get(experts), experts.forward if checked else None
        )
        for experts, known in owners.items()
    }
    with replaced_forwards(functions):
        yield


def _forward(
    experts: nn.Module,
    known: dict[tuple[str, int], ExpertMap],
    see: See | None,
    own: Callable[..., Tensor] | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Forward pass of experts, map by map."""
    output = _run(experts, known, see, *routed_inputs(experts, args, kwargs))
    if own is not None:
        expected = own(*args, **kwargs)
        tolerance = 1e-4 if output.dtype.itemsize >= 4 else 3e-2
        worst = (output - expected).float().abs().max()
        if not worst <= tolerance * expected.float().abs().max().clamp(min=1.0):
            raise InputError(
                f"{type(experts).__name__} computes something else than its maps, one expert after "
                f"the other (difference {worst:.3g}): exclude the tensors of its experts by name."
            )
    return output


def _run(
    experts: nn.Module,
    known: dict[tuple[str, int], ExpertMap],
    see: See | None,
    hidden: Tensor,
    chosen: Tensor | None = None,
    shares: Tensor | None = None,
) -> Tensor:
    """Compute the sum of the outputs of the experts of each token.

    Args:
        experts: the module.
        known: the maps that are called.
        see: gets each expert that tokens reach.
        hidden: (N, D). If nothing is chosen, (E * N, D): all tokens for each expert, those that do
            not reach it as zeros.
        chosen: (N, K), the experts of each token.
        shares: (N, K), the weights of their outputs.
    """
    count = count_experts(experts)
    output = torch.zeros_like(hidden)
    for index in range(count):
        if chosen is None or shares is None:
            own, into = (x.view(count, -1, x.shape[-1])[index] for x in (hidden, output))
            reached = own.any(-1)
            result = into[reached] = _run_one(experts, known, index, own[reached], reached)
            if see is not None and len(result):  # their shares are in what they read
                (tokens,) = torch.where(reached)
                see(index, tokens, result.new_ones(len(result)), result)
        else:
            mine = chosen == index
            tokens, place = torch.where(mine)
            result = _run_one(experts, known, index, hidden[tokens], mine.any(-1))
            if see is not None and len(tokens):
                see(index, tokens, shares[tokens, place], result)
            result = result * shares[tokens, place, None]
            output.index_add_(0, tokens, result.to(output.dtype))
    return output


def _run_one(
    experts: nn.Module,
    known: dict[tuple[str, int], ExpertMap],
    index: int,
    x: Tensor,
    reached: Tensor,
) -> Tensor:
    """Compute the output of one expert for its tokens, see `ExpertMap.forward`."""
    first, last = fused_tensors(experts)
    up, down = (
        known.get((tensor, index)) or ExpertMap(experts, tensor, index) for tensor in (first, last)
    )
    output = down(_activate(experts, first, up(x, reached)), reached)
    if getattr(experts, "has_post_expert_norm", False):
        output = experts.post_expert_norm(output)  # type: ignore[operator]
    return output


def _activate(experts: Any, first: str, x: Tensor) -> Tensor:
    """Compute the inputs of the last maps from the outputs of the first ones."""
    if first == _FIRST[1]:
        return experts.act_fn(x)
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(x)
    gate, up = x.chunk(2, dim=-1)
    return experts.act_fn(gate) * up


def count_experts(experts: nn.Module) -> int:
    """Count the experts of a module that fuses them."""
    return experts.get_parameter(_LAST).shape[0]


def _width(experts: nn.Module) -> int:
    """Channels of the output."""
    return experts.get_parameter(_LAST).shape[2 if is_transposed(experts) else 1]


@torch.no_grad()
def has_pairs(experts: nn.Module) -> bool:
    """Return True if the gate and the up projection of a neuron are neighbours in the first tensor.

    In most families the gates are its first half. It is tried on numbers: the second row belongs to
    the first neuron or to the second one.

    Args:
        experts: the module that holds gates and up projections in one tensor.
    """
    first, _ = fused_tensors(experts)
    x = torch.ones(2, ExpertMap(experts, first, 0).weight.shape[0])
    x[1, 1] = 0.5
    one, other = _activate(experts, first, x)
    return bool(one[0] != other[0])


def is_transposed(experts: nn.Module) -> bool:
    """Return True if the tensors are (E, I, O) instead of (E, O, I)."""
    stated = getattr(experts, "is_transposed", None)
    if stated is not None:
        return bool(stated)
    first, last = (experts.get_parameter(name).shape for name in fused_tensors(experts))
    return first[1] == last[2]
