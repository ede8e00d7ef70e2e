"""Checks of a model that was read: weights, special tokens, attention, tokenizer."""

from collections.abc import Collection, Mapping
from itertools import chain
from traceback import walk_tb
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.data.tokens import limit_ids, pad_token
from prunelit.errors import InputError, first_line
from prunelit.models.fingerprint import stored_parts
from prunelit.models.finite import all_finite
from prunelit.models.stores import each_weight


def check_weights(model: PreTrainedModel, source: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        InputError: naming the first such tensor.
    """
    names = {name for name, _ in model.named_parameters()}
    others = [(name, value) for name, value in model.state_dict().items() if name not in names]
    for name, tensor in chain(each_weight(model), others):
        parts = [part.detach() for part in stored_parts(tensor) if part.is_floating_point()]
        if not all(map(all_finite, parts)):
            raise InputError(f"The weight {name!r} of {source!r} holds NaN or infinite values.")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedded: int, source: str) -> None:
    """Refuse a tokenizer that belongs to another model.

    Some tokenizers have added tokens after the last embedding, which no text of the model uses.
    They are allowed, but a text that has one is refused.

    Args:
        tokenizer: its padding token is replaced if the model does not embed it.
        embedded: number of tokens that the model embeds.
        source: of both, for the error.

    Raises:
        InputError: giving both numbers.
    """
    beyond = {number for number in tokenizer.get_vocab().values() if number >= embedded}
    if beyond - set(tokenizer.added_tokens_decoder):
        raise InputError(
            f"Expected token ids below {embedded}, the tokens that the model embeds, but the "
            f"tokenizer of {source!r} has ids up to {max(beyond)}: use the model's own tokenizer."
        )
    if beyond:
        limit_ids(tokenizer, embedded)
        if pad_token(tokenizer) >= embedded:  # any embedded token will do, since it is masked
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)


def check_complete(model: PreTrainedModel, info: Any, source: str) -> None:
    """Refuse a checkpoint that lacks weights, which transformers would make at random."""
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"The checkpoint {source!r} lacks {len(missing)} weights of {type(model).__name__}, "
            f"the first is {missing[0]!r}."
        )


def check_types(cast: Mapping[str, str], model: PreTrainedModel, source: str) -> None:
    """Refuse integers in the place of weights, see `find_cast`.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, kind in sorted(cast.items()):
        raise InputError(
            f"The checkpoint {source!r} holds {len(cast)} weights of {type(model).__name__} that "
            f"are no floating-point numbers, the first is {name!r} in {kind}, not {model.dtype}: "
            "save them as numbers, or add their `quantization_config` to config.json."
        )


def tell_surplus(names: Collection[str], model: PreTrainedModel, source: str) -> None:
    """Say which tensors of a checkpoint the model leaves out."""
    names = [name for name in names if not name.endswith(".masked_bias")]  # of old GPT models
    if names:
        first = ", ".join(map(repr, sorted(names)[:3]))
        rank_zero_info(
            f"{type(model).__name__} leaves out {len(names)} tensors of the checkpoint {source!r}, "
            f"the first are {first}. If they belong to this model, correct its config.json."
        )


def check_ends(model: PreTrainedModel, source: str) -> None:
    """Refuse special tokens of generation that are no token ids.

    Raises:
        InputError: naming the key.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, name, None)
        for number in value if isinstance(value, list) else [value]:
            if not (number is None or (type(number) is int and number >= 0)):
                raise InputError(
                    f"Expected `{name}` as a token id, or a list of them, in the config.json or "
                    f"generation_config.json of {source!r} but got {value!r:.40}."
                )


@torch.no_grad()
def check_attention(model: PreTrainedModel, embedded: int, name: str) -> None:
    """Refuse an attention that this machine cannot compute; a compiler may be missing.

    Raises:
        InputError: naming it.
    """
    ids = torch.arange(8, device=model.device)[None] % embedded
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except Exception as error:
        raise no_attention(name, error) from error
    if not all_finite(logits):
        raise no_attention(name, None)


def concerns_attention(error: Exception) -> bool:
    """Return True if a library refused an attention implementation, not a file."""
    return any("attn" in frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__))


def no_attention(name: str, error: Exception | None) -> InputError:
    """Return the error of an attention that this machine cannot compute."""
    reason = "" if error is None else first_line(error).partition(". ")[0].rstrip(".")
    cause = f"fails: {reason:.160}" if reason else "gives NaN"
    return InputError(
        f"The attention {name!r}, given as `attn_implementation`, cannot be used on this machine; "
        f"it {cause}. Choose another one, such as 'sdpa' or 'eager', or leave it out."
    )
