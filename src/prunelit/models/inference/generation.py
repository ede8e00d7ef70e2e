"""Generate rollouts: greedy, or sampled with random numbers that two models share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from prunelit.errors import InputError, check_positive
from prunelit.models.inference.prefix_cache import SharedPrefix
from prunelit.models.inference.stop_strings import StopStrings


@dataclass
class Rollouts:
    """Texts that a model generated.

    Args:
        tokens: (B, max_new_tokens) ids, -1 after the end. The end-of-text token is kept.
        ended: (B,) bool, True if an end-of-text token or a stop string ended the text.
    """

    tokens: Tensor
    ended: Tensor


@dataclass(frozen=True)
class Sampling:
    """Sample the token with the highest z / T + g, where g is Gumbel noise.

    This draws from softmax(z / T) (Maddison et al. 2014, arXiv:1411.0030). The noise depends only
    on seed, prompt and step. Two models share it, so equal logits give equal tokens. It is the same
    in any batch, on any rank and on any device.

    Args:
        seed: seed of the noise, at least 0.
        prompts: (B,), numbers of the prompts in the batch, at least 0.
        temperature: T of the softmax.

    Raises:
        InputError: if the seed is negative or the temperature is not positive.
    """

    seed: int
    prompts: Sequence[int]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"Expected `seed` of at least 0 but got {self.seed}.")
        check_positive("temperature", self.temperature)


class GumbelNoise(LogitsProcessor):
    """Add Gumbel noise to the logits, so that greedy decoding samples; for one call of `generate`.

    Args:
        sampling: settings of the batch.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._temperature = sampling.temperature
        self._generators = []
        for prompt in sampling.prompts:
            # Maps neighbouring seeds and prompts to unrelated states of the generator.
            state = np.random.SeedSequence((sampling.seed, prompt)).generate_state(1, np.uint64)
            self._generators.append(torch.Generator().manual_seed(int(state[0])))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return the logits (B, V) of this step with noise."""
        # In float32 the largest noise of a large vocabulary would have few distinct values.
        uniform = torch.stack(
            [
                torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64)
                for generator in self._generators
            ]
        )
        noise = -(-uniform.log()).log()
        return scores / self._temperature + noise.to(scores)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a text, of the generation configuration and the tokenizer."""
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
    sampling: Sampling | None = None,
    stops: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    prefix: Sequence[int] = (),
    shared_prefix: SharedPrefix | None = None,
) -> Rollouts:
    """Generate texts with a KV cache, each until its end-of-text token or a stop string.

    The model's own generation settings, such as sampling and penalties, are not applied.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        input_ids: (B, T), left-padded.
        attention_mask: (B, T).
        max_new_tokens: most tokens per row.
        sampling: settings of sampling; None decodes greedily.
        stops: ids that end a text; None takes `stop_tokens`.
        stop_strings: strings that also end a text; the token that completes one is kept.
        prefix: ids at the start of all rows, shorter than each row.
        shared_prefix: keeps the keys and values of the prefix, and the result of the check, between
            calls.
    """
    stops = list(stop_tokens(model, tokenizer) if stops is None else stops)
    processors = LogitsProcessorList([] if sampling is None else [GumbelNoise(sampling)])
    strings = StopStrings(tokenizer, stop_strings, input_ids.shape[1]) if stop_strings else None
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    cache = (
        (shared_prefix or SharedPrefix()).make_cache(model, prefix, attention_mask)
        if prefix
        else None
    )
    begun = {} if cache is None else {"past_key_values": cache}
    # `generate` takes settings that are missing here from the model's own configuration.
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        written = model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=greedy,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([] if strings is None else [strings]),
            **begun,
        )
    finally:
        model.generation_config = own
    assert isinstance(written, Tensor)
    new = written[:, input_ids.shape[1] :]
    tokens = new.new_full((len(new), max_new_tokens), -1)
    tokens[:, : new.shape[1]] = new
    is_stop = torch.isin(tokens, torch.tensor(stops, dtype=tokens.dtype, device=tokens.device))
    if strings is not None:
        is_stop |= strings.ends(max_new_tokens).to(is_stop.device)
    after_end = is_stop.cumsum(1) - is_stop.long() > 0
    return Rollouts(tokens.masked_fill(after_end, -1), is_stop.any(1))
