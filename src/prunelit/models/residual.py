"""The residual stream of a block before and after each of its sublayers, in any family."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelit.errors import InputError
from prunelit.models.architecture import sublayers

Step = tuple[Tensor, Tensor]


@contextmanager
def silenced(block: nn.Module, *outputs: str) -> Iterator[None]:
    """Within it the linear maps `outputs` put out zeros."""

    def silence(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    handles = [block.get_submodule(name).register_forward_hook(silence) for name in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def residual_steps(
    block: nn.Module,
    run: Callable[[], Tensor],
    hidden: Tensor,
    output: Tensor,
    wanted: Iterable[str],
    parallel: bool | None = None,
) -> tuple[dict[str, Step], bool]:
    """What goes into and comes out of each part, residual included.

    No norm or scale is modelled: parts are silenced and the block is run again. So it holds where
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
    parts = sublayers(block)
    attention, mlp = parts["attention"], parts["mlp"]
    if parallel is None:
        with silenced(block, attention.output, mlp.output):
            _check_identity(block, run(), hidden)
        parallel = _is_parallel(block, mlp.inputs[0], attention.output, run)
    steps = {"block": (hidden, output)}
    if "attention" in wanted or ("mlp" in wanted and not parallel):
        with silenced(block, mlp.output):
            after_attention = run()
        steps["attention"] = (hidden, after_attention)
        steps["mlp"] = (after_attention, output)
    if "mlp" in wanted and parallel:
        with silenced(block, attention.output):
            steps["mlp"] = (hidden, run())
    return {name: steps[name] for name in wanted}, parallel


def _check_identity(block: nn.Module, output: Tensor, hidden: Tensor) -> None:
    scale = hidden.float().abs().max().clamp(min=1.0)
    if not (output - hidden).float().abs().max() <= 1e-4 * scale:
        raise InputError(
            f"A {type(block).__name__} changes its input even when its sublayers put out nothing, "
            "so leaving them out is not what it would do without them."
        )


def _is_parallel(
    block: nn.Module, mlp_input: str, attention_output: str, run: Callable[[], Tensor]
) -> bool:
    """Whether the MLP reads the same with and without the attention before it."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = block.get_submodule(mlp_input).register_forward_pre_hook(note)
    try:
        run()
        with silenced(block, attention_output):
            run()
    finally:
        handle.remove()
    return torch.equal(*seen)
