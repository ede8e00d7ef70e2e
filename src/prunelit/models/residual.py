"""The residual stream of a block before and after each of its sublayers, in any family."""

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
    """Within it the block computes without these sublayers, at no cost.

    Args:
        block: a decoder block.
        kinds: of `attention` and `mlp`.
        parts: `sublayers` of a block of the same family, for one that may lack a sublayer already.
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
    wanted: Iterable[str],
    parallel: bool | None = None,
) -> tuple[dict[str, Step], bool]:
    """What goes into and comes out of each part, residual included.

    No norm or scale is modelled: parts are left out and the block is run again. So it holds where
    norms follow a sublayer (Gemma 2), and where attention and MLP read the same input (GPT-NeoX,
    Phi): there both steps begin at the block's input.

    Args:
        block: a decoder block.
        run: runs it on one batch.
        hidden: (B, T, D), its input in that batch.
        output: (B, T, D), its output in that batch.
        wanted: of `attention`, `mlp` and `block`.
        parallel: what an earlier batch of this block returned; None checks the block first.

    Returns:
        The steps, and whether attention and MLP read the same input.

    Raises:
        InputError: if the block does not pass its input on when its sublayers are silent, so that
            dropping them is no identity.
    """
    wanted = set(wanted)
    if parallel is None:
        parallel = check_residual(block, run, hidden)
    steps = {"block": (hidden, output)}
    if "attention" in wanted or ("mlp" in wanted and not parallel):
        with without_sublayers(block, "mlp"):
            after_attention = run()
        steps["attention"] = (hidden, after_attention)
        steps["mlp"] = (after_attention, output)
    if "mlp" in wanted and parallel:
        with without_sublayers(block, "attention"):
            steps["mlp"] = (hidden, run())
    return {name: steps[name] for name in wanted}, parallel


def check_residual(block: nn.Module, run: Callable[[], Tensor], hidden: Tensor) -> bool:
    """Refuse a block whose sublayers cannot be left out.

    Args:
        block: a decoder block.
        run: runs it on one batch.
        hidden: (B, T, D), its input in that batch.

    Returns:
        Whether attention and MLP read the same input.

    Raises:
        InputError: if the block does not pass its input on without its sublayers.
    """
    with without_sublayers(block, "attention", "mlp"):
        output = run()
    scale = hidden.float().abs().max().clamp(min=1.0)
    if not (output - hidden).float().abs().max() <= 1e-4 * scale:
        raise InputError(
            f"A {type(block).__name__} changes its input even when its sublayers put out nothing, "
            "so leaving them out is not what it would do without them."
        )
    seen: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = block.get_submodule(sublayers(block)["mlp"].inputs[0]).register_forward_pre_hook(note)
    try:
        run()
        with without_sublayers(block, "attention"):
            run()
    finally:
        handle.remove()
    return torch.equal(*seen)
