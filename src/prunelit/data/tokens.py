"""Turn text into tokens: calibration sequences, evaluation windows and padded batches."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError


def pack(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequences: int,
    length: int,
    seed: int,
) -> Tensor:
    """Shuffle documents, join them and cut them into calibration sequences.

    Documents are joined by the end-of-text token, as in pre-training.

    Args:
        documents: raw text.
        tokenizer: of the model.
        sequences: S.
        length: L, tokens per sequence.
        seed: of the order of the documents.

    Returns:
        (S, L) int64 token ids, without padding.

    Raises:
        InputError: if there is not enough text; it says how many tokens there are.
    """
    if sequences < 1 or length < 1:
        raise InputError(
            f"Expected `sequences` and `length` of at least 1 but got {sequences} and {length}."
        )
    end = tokenizer.eos_token_id
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    needed = sequences * length
    ids: list[int] = []
    for index in order.tolist():
        if len(ids) >= needed:
            break
        ids.extend(encode(tokenizer, documents[int(index)]))
        if isinstance(end, int):
            ids.append(end)
    if len(ids) < needed:
        raise InputError(
            f"Expected at least {needed} tokens for {sequences} sequences of {length} but the "
            f"{len(documents)} documents hold only {len(ids)}: give more text, or fewer or shorter "
            "sequences."
        )
    return torch.tensor(ids[:needed]).view(sequences, length)


def windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int | None,
    separator: str = "\n\n",
) -> Tensor:
    """Cut the joined documents into windows that do not overlap; drop a partial last one.

    Args:
        documents: raw text, kept in order.
        tokenizer: of the model.
        length: L, tokens per window, at least 2.
        limit: number of windows to keep; None keeps all.
        separator: between documents.

    Returns:
        (N, L) int64 token ids.

    Raises:
        InputError: if the text is shorter than one window; it says how many tokens there are.
    """
    if length < 2:
        raise InputError(f"Expected `length` of at least 2 but got {length}.")
    if limit is not None and limit < 1:
        raise InputError(f"Expected `limit` of at least 1 but got {limit}.")
    ids = torch.tensor(encode(tokenizer, separator.join(documents)), dtype=torch.int64)
    count = len(ids) // length
    if count == 0:
        raise InputError(
            f"Expected at least one window of {length} tokens but the {len(documents)} documents "
            f"hold only {len(ids)}."
        )
    return ids[: count * length].view(count, length)[:limit]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids without special tokens, and without a warning about long texts."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text, after the tokenizer's own BOS token.

    The BOS token is not added twice if the text starts with it.
    """
    lead, ids = leading_tokens(tokenizer), encode(tokenizer, text)
    return ids if ids[: len(lead)] == lead else lead + ids


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before every text, such as a BOS token."""
    bare = encode(tokenizer, "a")
    full: list[int] = list(tokenizer("a", verbose=False)["input_ids"])  # type: ignore[arg-type]
    starts = (i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[: next(starts, 0)]


def decode(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, special: bool = False
) -> str:
    """Return the text of token ids with its spaces unchanged.

    Args:
        tokenizer: of the model.
        tokens: ids.
        special: keep the text of special tokens.
    """
    options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(list(tokens), **options)
    assert isinstance(text, str)
    return text


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, which `load_tokenizer` has set."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, *, left: bool = False
) -> dict[str, Tensor]:
    """Pad sequences of unequal length to one batch.

    Pad on the right for scoring: positions are then those of the unpadded sequence in every model
    family. Pad on the left for generation.

    Args:
        sequences: token ids.
        pad_id: fills the rest of a row.
        left: pad on the left.

    Returns:
        `input_ids` and `attention_mask`, both (B, T) int64.

    Example:
        >>> from prunelit.data.tokens import pad
        >>> pad([[5, 6], [7]], pad_id=0, left=True)["input_ids"].tolist()
        [[5, 6], [0, 7]]
    """
    rows = [torch.tensor(sequence, dtype=torch.int64) for sequence in sequences]
    join = partial(pad_sequence, batch_first=True, padding_side="left" if left else "right")
    return {
        "input_ids": join(rows, padding_value=pad_id),
        "attention_mask": join([torch.ones_like(row) for row in rows]),
    }
