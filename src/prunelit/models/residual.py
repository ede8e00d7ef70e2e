"""Compute the residual stream of a block before and after each sublayer, in any family."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelit.errors import InputError
from prunelit.models.architecture import Sublayer, sublayers
from prunelit.models.surgery import zero_modules

Step = tuple[Tensor, Tensor]


@contextmanager
def without_sublayers(
    block: nn.Module, *kinds: str, parts: dict[str, Sublayer] | None = None
) -> Iterator[None]:
    """Replace sublayers of a block by modules that add nothing, within the context.

    Args:
        block: a decoder block.
        kinds: `attention`, `mlp` or both.
        parts: `sublayers` of a block of the same family. Give it if the block may lack a sublayer.
    """
    parts = parts or sublayers(block)
    own: dict[str, nn.Module] = {}
    for kind in kinds:
        for name, module in zero_modules(block, kind, parts[kind].parts).items():
            own[name] = block.get_submodule(name)
            setattr(block, name, module)
    try:
        yield
    finally:
        for name, module in own.items():
            setattr(block, name, module)


def residual_steps(
    block: nn.Module,
    run: Callable[[], Tensor],
    hidden: Tensor,
    output: Tensor,
    kinds: Iterable[str],
    parallel: bool | None = None,
) -> tuple[dict[str, Step], bool]:
    """Compute the input and output of each part, including the residual.

    The block is run again without one of its parts; norms and scales are not modelled. So the
    result is also right if a norm follows a sublayer (Gemma 2). If attention and MLP read the same
    input (GPT-NeoX, Phi), both steps start at the input of the block.

    Args:
        block: a decoder block.
        run: runs it on one batch.
        hidden: (B, T, D), its input in that batch.
        output: (B, T, D), its output in that batch.
        kinds: parts to compute: `attention`, `mlp`, `block`.
        parallel: the second result for an earlier batch; None checks the block first.

    Returns:
        The steps, and True if attention and MLP read the same input.

    Raises:
        InputError: if the block without its sublayers changes its input.
    """
    kinds = set(kinds)
    if parallel is None:
        parallel = check_residual(block, run, hidden)
    steps = {"block": (hidden, output)}
    if "attention" in kinds or ("mlp" in kinds and not parallel):
        with without_sublayers(block, "mlp"):
            after_attention = run()
        steps["attention"] = (hidden, after_attention)
        steps["mlp"] = (after_attention, output)
    if "mlp" in kinds and parallel:
        with without_sublayers(block, "attention"):
            steps["mlp"] = (hidden, run())
    return {name: steps[name] for name in kinds}, parallel


def check_residual(block: nn.Module, run: Callable[[], Tensor], hidden: Tensor) -> bool:
    """Refuse a block that changes its input without its sublayers.

    Args:
        block: a decoder block.
        run: runs it on one batch.
        hidden: (B, T, D), its input in that batch.

    Returns:
        True if attention and MLP read the same input.

    Raises:
        InputError: if the block without its sublayers changes its input.
    """
    with without_sublayers(block, "attention", "mlp"):
        output = run()
    scale = hidden.float().abs().max().clamp(min=1.0)
    if not (output - hidden).float().abs().max() <= 1e-4 * scale:
        raise InputError(
            f"Expected {type(block).__name__} without its sublayers to return its input but it "
            "changes it: the sublayers of this family cannot be measured one by one."
        )
    seen: list[Tensor] = []

    def keep_input(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = block.get_submodule(sublayers(block)["mlp"].inputs[0]).register_forward_pre_hook(
        keep_input
    )
    try:
        run()
        with without_sublayers(block, "attention"):
            run()
    finally:
        handle.remove()
    return torch.equal(*seen)
