"""Embed texts: take the hidden states of a layer and pool them to one vector per text."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import block_output, decoder_blocks, final_hidden
from prunelit.models.finite import all_finite

Pooling = Literal["mean", "last", "weighted_mean"]
POOLINGS = ("mean", "last", "weighted_mean")


class _Reached(Exception):
    """Carry a hidden state out of a forward pass and end the pass."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def embed(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    pooling: Pooling,
    skip: int = 0,
    blocks: int | None = None,
) -> Tensor:
    """Embed texts.

    Args:
        model: a causal LM, in evaluation mode.
        input_ids: (B, T), padded on either side, at least one token per text.
        attention_mask: (B, T), 0 at padding.
        pooling: see `pool`.
        skip: see `pool`.
        blocks: take the residual stream after this number of blocks, without the final norm; later
            blocks are not run. None takes the input of the unembedding.

    Returns:
        (B, D) float32.

    Raises:
        InputError: if an embedding is not finite.
    """
    if blocks is None:
        hidden = final_hidden(model, input_ids, attention_mask)
    else:
        hidden = residual_after(model, input_ids, attention_mask, blocks)
    result = pool(hidden.float(), attention_mask, pooling, skip)
    if not all_finite(result):
        raise InputError(f"{type(model).__name__} gives embeddings that are not finite.")
    return result


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling, skip: int = 0) -> Tensor:
    """Pool the vectors of the tokens of each text; padding is ignored.

    Args:
        hidden: (B, T, D).
        attention_mask: (B, T), 0 at padding.
        pooling: `mean` over tokens, the `last` token, or `weighted_mean` with weight i for the i-th
            token, because later tokens of a causal model have read more of the text (Muennighoff
            2022, arXiv:2202.08904, eq. 3).
        skip: number of first tokens that are left out of a mean; the last token always counts. In
            many models the first token is an attention sink (Xiao et al. 2023, arXiv:2309.17453)
            with a norm far larger than that of the other tokens.

    Returns:
        (B, D).
    """
    place = attention_mask.long().cumsum(1)
    count = place[:, -1:]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), place.argmax(1)]
    entering = attention_mask.bool() & (place > (count - 1).clamp(max=skip))
    weights = (entering * (1 if pooling == "mean" else place)).unsqueeze(-1)
    # Infinite values at padding would give NaN in a product with 0.
    masked = hidden.masked_fill(weights == 0, 0)
    return (masked * weights).sum(1) / weights.sum(1)


def residual_after(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, blocks: int
) -> Tensor:
    """Compute the residual stream after the first `blocks` blocks; later blocks are not run.

    Args:
        model: a causal LM.
        input_ids: (B, T).
        attention_mask: (B, T), 0 at padding.
        blocks: from 0, the input of block 0, to the number of blocks.

    Returns:
        (B, T, D), in the model's dtype.
    """
    own = decoder_blocks(model)[1]

    def take_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    def take_output(_module: Any, _args: Any, output: Any) -> None:
        raise _Reached(block_output(output))

    if blocks < len(own):
        handle = own[blocks].register_forward_pre_hook(take_input, with_kwargs=True)
    else:
        handle = own[-1].register_forward_hook(take_output)
    try:
        final_hidden(model, input_ids, attention_mask)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise AssertionError(f"{type(model).__name__} did not run its block {blocks}")


def blocks_before(layer: int | None, removed: Sequence[int]) -> int | None:
    """Number of blocks of a pruned model that correspond to the first `layer` dense blocks.

    Args:
        layer: number of blocks of the dense model, as `blocks` of `embed`.
        removed: indices, in the dense model, of blocks that were removed.
    """
    if layer is None:
        return None
    return sum(index not in removed for index in range(layer))


def check_pooling(pooling: str, skip: int) -> None:
    """Refuse an unknown pooling.

    Raises:
        InputError: naming the poolings, or because `skip` has no effect on the last token.
    """
    if pooling not in POOLINGS:
        raise InputError(f"Expected `pooling` to be one of {list(POOLINGS)} but got {pooling!r}.")
    if skip < 0 or (skip and pooling == "last"):
        raise InputError(
            f"Expected `skip` 0, or more with a mean of tokens, but got {skip} with {pooling!r}."
        )


def check_layer(model: PreTrainedModel, layer: int | None) -> None:
    """Refuse a layer that the model does not have.

    Args:
        model: the dense one.
        layer: as `blocks` of `embed`.

    Raises:
        InputError: giving the number of blocks.
    """
    count = len(decoder_blocks(model)[1])
    if layer is not None and not 0 <= layer <= count:
        raise InputError(f"Expected `layer` in [0, {count}], the model's blocks, but got {layer}.")
