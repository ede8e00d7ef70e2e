"""Compute the residual stream of a block before and after each sublayer, in any family."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunelit.errors import InputError, first_line
from prunelit.models.absent import find_returns, make_absent, zeroed
from prunelit.models.parts import KINDS, Sublayer, sublayers
from prunelit.models.without_sublayers import Absent

Step = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Structure:
    """Sublayers of a block that add to the residual stream one by one.

    Args:
        sublayers: by kind; a block may have one alone.
        returns: values that `Absent` returns in the place of a module, by its name in the block.
        parallel: mixer and MLP read the same input.
    """

    sublayers: Mapping[str, Sublayer]
    returns: Mapping[str, str]
    parallel: bool

    def absent(self, block: nn.Module, *kinds: str) -> dict[str, Absent]:
        """Make the modules that take the place of sublayers of a block.

        Args:
            block: of this structure; some of its sublayers may be left out already.
            kinds: of the sublayers; those that the block does not have are ignored.
        """
        return {
            part: module
            for kind in kinds
            if kind in self.sublayers
            for part, module in make_absent(block, self.sublayers[kind], self.returns).items()
        }


@contextmanager
def without_sublayers(block: nn.Module, *kinds: str, structure: Structure) -> Iterator[None]:
    """Replace sublayers of a block by modules that add nothing, within the context.

    Args:
        block: a decoder block.
        kinds: `mixer`, `mlp` or both.
        structure: of a block of the same place in the same family.
    """
    own: dict[str, nn.Module] = {}
    for name, module in structure.absent(block, *kinds).items():
        own[name] = block.get_submodule(name)
        setattr(block, name, module)
    try:
        yield
    finally:
        for name, module in own.items():
            setattr(block, name, module)


def residual_steps(
    block: nn.Module,
    run: Callable[..., Tensor],
    hidden: Tensor,
    output: Tensor,
    kinds: Iterable[str],
    structure: Structure | None = None,
) -> tuple[dict[str, Step], Structure | None]:
    """Compute the input and output of each part, including the residual.

    The block is run again without one of its parts; norms and scales are not modelled. So the
    result is also right if a norm follows a sublayer (Gemma 2). If mixer and MLP read the same
    input (GPT-NeoX, Phi), both steps start at the input of the block.

    Args:
        block: a decoder block.
        run: runs it on one batch; an argument takes the place of its input.
        hidden: (B, T, D), its input in that batch.
        output: (B, T, D), its output in that batch.
        kinds: parts to compute: `mixer`, `mlp`, `block`. The step of a part that the block does not
            have changes nothing.
        structure: the second result for an earlier batch; None finds it.

    Returns:
        The steps, and the structure; None if `block` alone was asked for.

    Raises:
        InputError: if the block is not the sum of its sublayers.
    """
    kinds = set(kinds)
    steps = {"block": (hidden, output)}
    if kinds == {"block"}:
        return steps, None
    structure = structure or find_structure(block, run, hidden)
    if "mixer" in kinds or not structure.parallel:
        with without_sublayers(block, "mlp", structure=structure):
            mixed = run()
        steps["mixer"] = (hidden, mixed)
        steps["mlp"] = (mixed, output)
    if "mlp" in kinds and structure.parallel:
        with without_sublayers(block, "mixer", structure=structure):
            steps["mlp"] = (hidden, run())
    return {name: steps[name] for name in kinds}, structure


@torch.no_grad()
def find_structure(block: nn.Module, run: Callable[..., Tensor], hidden: Tensor) -> Structure:
    """Find the sublayers of a block, and prove that it is the sum of them.

    With zeros in all their weights, the block must return its input. One after the other, or side
    by side, they must give its output.

    Args:
        block: a decoder block with all its sublayers.
        run: runs it on one batch; an argument takes the place of its input.
        hidden: (B, T, D), its input in that batch.

    Raises:
        InputError: if that is not so.
    """
    family = type(block).__name__
    if hidden.ndim != 3:
        raise _refuse(f"the stream through {family} has several rows for each token")
    found = sublayers(block)
    parts = tuple(part for sublayer in found.values() for part in sublayer.parts)
    with zeroed(block, parts), find_returns(block, parts) as returns:
        silent = run()
    if not _close(silent, hidden):
        raise _refuse(f"{family} changes its input if its sublayers add nothing")
    if missing := [part for part in parts if part not in returns]:
        raise _refuse(f"{family} uses the weights of {missing[0]!r} without a call of it")
    structure = Structure(found, returns, parallel=_is_parallel(block, run, found))
    alone = {}
    for kind in found:
        others = [other for other in KINDS if other != kind]
        with without_sublayers(block, *others, structure=structure):
            try:
                alone[kind] = run()
            except (TypeError, ValueError, AttributeError, LookupError) as error:
                raise _refuse(
                    f"{family} needs its other sublayers ({first_line(error).rstrip('.')})"
                ) from error
    output = run()
    if len(found) == 1:
        (together,) = alone.values()
    elif structure.parallel:
        together = alone["mixer"] + alone["mlp"] - hidden
    else:
        with without_sublayers(block, "mixer", structure=structure):
            together = run(alone["mixer"])
    if not _close(together, output):
        raise _refuse(f"the sublayers of {family}, run one by one, do not give its output")
    return structure


def _is_parallel(block: nn.Module, run: Callable[..., Tensor], found: Mapping[str, Any]) -> bool:
    """Return True if the MLP of a block reads the same input without its mixer."""
    if len(found) < 2:
        return False
    seen: list[Tensor] = []

    def keep_input(_module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)))

    first = block.get_submodule(found["mlp"].parts[0])
    handle = first.register_forward_pre_hook(keep_input, with_kwargs=True)
    try:
        run()
        with zeroed(block, found["mixer"].parts):
            run()
    finally:
        handle.remove()
    return torch.equal(*seen)


def _close(one: Tensor, other: Tensor) -> bool:
    scale = other.float().abs().max().clamp(min=1.0)
    same = one.shape == other.shape
    return same and bool((one - other).float().abs().max() <= _tolerance(one) * scale)


def _tolerance(hidden: Tensor) -> float:
    return 1e-4 if hidden.dtype.itemsize >= 4 else 2e-2


def _refuse(why: str) -> InputError:
    return InputError(
        f"Expected blocks that add a mixer and an MLP to their stream, but {why}: the sublayers of "
        "this family cannot be dropped or measured one by one. Drop blocks or prune weights."
    )
