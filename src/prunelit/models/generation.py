"""Greedy rollouts."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Rollouts:
    """What a model wrote.

    Args:
        tokens: (B, max_new_tokens) ids; -1 after the end.
        ended: (B,) bool, whether it wrote an end-of-text token (the last one kept) in time.
    """

    tokens: Tensor
    ended: Tensor


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a text: the generation configuration's and the tokenizer's."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    ids = own if isinstance(own, list) else [own]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
) -> Rollouts:
    """Greedy decoding with a KV cache, each row until its end-of-text token.

    Only what greedy decoding is defined by counts: sampling settings and penalties that come with a
    model are not applied.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        input_ids: (B, T), left-padded.
        attention_mask: (B, T).
        max_new_tokens: budget a row.
    """
    stops = stop_tokens(model, tokenizer)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    # `generate` fills what a configuration leaves open from the model's own one.
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        written = model.generate(  # type: ignore[operator]
            input_ids=input_ids, attention_mask=attention_mask, generation_config=greedy
        )
    finally:
        model.generation_config = own
    assert isinstance(written, Tensor)
    new = written[:, input_ids.shape[1] :]
    tokens = new.new_full((len(new), max_new_tokens), -1)
    tokens[:, : new.shape[1]] = new
    is_stop = torch.isin(tokens, torch.tensor(stops, dtype=tokens.dtype, device=tokens.device))
    after_end = is_stop.cumsum(1) - is_stop.long() > 0
    return Rollouts(tokens.masked_fill(after_end, -1), is_stop.any(1))
