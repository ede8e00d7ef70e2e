"""One vector a text: which layer it is read from and how tokens are pooled, in any family."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.finite import all_finite

Pooling = Literal["mean", "last", "weighted_mean"]
POOLINGS = ("mean", "last", "weighted_mean")


class _Reached(Exception):
    """Carries a hidden state out of a forward pass that need not go on."""

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
    """Embeddings of texts.

    Args:
        model: a causal LM, in evaluation mode.
        input_ids: (B, T), padded on either side, at least one token a text.
        attention_mask: (B, T), 0 at padding.
        pooling: see `pool`.
        skip: see `pool`.
        blocks: read the residual stream after so many blocks, without the final norm, and run no
            further; None reads what the unembedding reads.

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
    """One vector a text from those of its tokens; padding enters nothing.

    Args:
        hidden: (B, T, D).
        attention_mask: (B, T), 0 at padding.
        pooling: `mean` over tokens; `last` token; or `weighted_mean`, where the i-th token weighs
            i, since in a causal model it alone has read the i - 1 before it (Muennighoff 2022,
            arXiv:2202.08904, eq. 3).
        skip: tokens at the beginning that enter no mean; the last token always does. In many models
            the first one is an attention sink (Xiao et al. 2023, arXiv:2309.17453) whose norm
            drowns all others.

    Returns:
        (B, D).
    """
    place = attention_mask.long().cumsum(1)
    count = place[:, -1:]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), place.argmax(1)]
    entering = attention_mask.bool() & (place > (count - 1).clamp(max=skip))
    weights = (entering * (1 if pooling == "mean" else place)).unsqueeze(-1)
    # A product would spread what is not finite at padding: 0 times infinity is no number.
    masked = hidden.masked_fill(weights == 0, 0)
    return (masked * weights).sum(1) / weights.sum(1)


def residual_after(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, blocks: int
) -> Tensor:
    """The residual stream after the first `blocks` blocks; no later one is run.

    Args:
        model: a causal LM.
        input_ids: (B, T).
        attention_mask: (B, T), 0 at padding.
        blocks: from 0, the token embeddings as block 0 reads them, to all of them.

    Returns:
        (B, T, D), in the model's dtype.
    """
    own = decoder_blocks(model)[1]

    def entering(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    def leaving(_module: Any, _args: Any, output: Any) -> None:
        raise _Reached(output if isinstance(output, Tensor) else output[0])

    if blocks < len(own):
        handle = own[blocks].register_forward_pre_hook(entering, with_kwargs=True)
    else:
        handle = own[-1].register_forward_hook(leaving)
    try:
        final_hidden(model, input_ids, attention_mask)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise AssertionError(f"{type(model).__name__} did not run its block {blocks}")


def blocks_before(layer: int | None, removed: Sequence[int]) -> int | None:
    """How many blocks of a pruned model a text passes where it passes `layer` of the dense one.

    Args:
        layer: as `blocks` of `embed`, of the dense model.
        removed: indices in the dense model of the blocks that are gone.
    """
    if layer is None:
        return None
    return sum(index not in removed for index in range(layer))


def check_pooling(pooling: str, skip: int) -> None:
    """Refuse an unknown pooling.

    Raises:
        InputError: naming those that there are, or that `skip` means nothing.
    """
    if pooling not in POOLINGS:
        raise InputError(f"Expected `pooling` to be one of {list(POOLINGS)} but got {pooling!r}.")
    if skip < 0 or (skip and pooling == "last"):
        raise InputError(
            f"Expected `skip` 0, or more with a mean over tokens, but got {skip} with {pooling!r}."
        )


def check_layer(model: PreTrainedModel, layer: int | None) -> None:
    """Refuse a layer that the model does not have.

    Args:
        model: the dense one.
        layer: as `blocks` of `embed`.

    Raises:
        InputError: giving the number of its blocks.
    """
    count = len(decoder_blocks(model)[1])
    if layer is not None and not 0 <= layer <= count:
        raise InputError(f"Expected `layer` in [0, {count}], the model's blocks, but got {layer}.")
