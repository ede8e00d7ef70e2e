"""Documents to token windows: packed calibration sequences and evaluation windows."""

from collections.abc import Sequence

import torch
from torch import Tensor
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
    """Calibration sequences: documents in an order drawn by `seed`, end to end, cut to `length`.

    Documents are joined by the end-of-text token, as in pre-training.

    Args:
        documents: raw text.
        tokenizer: of the model.
        sequences: S.
        length: L, tokens a sequence.
        seed: of the order of the documents.

    Returns:
        (S, L) int64 token ids, no padding.

    Raises:
        InputError: if there is too little text, saying how much there was.
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
    """Non-overlapping windows of the joined documents; a partial last one is dropped.

    Args:
        documents: raw text, kept in order.
        tokenizer: of the model.
        length: L, tokens a window, at least 2.
        limit: keep only the first so many windows.
        separator: between documents.

    Returns:
        (N, L) int64 token ids.

    Raises:
        InputError: if there is not one whole window, saying how much there was.
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
    """Token ids without special tokens and without a warning about the model's length."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # type: ignore[arg-type]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text by itself, as models are used to read one.

    What the tokenizer puts before every text comes first, once.
    """
    lead, ids = leading_tokens(tokenizer), encode(tokenizer, text)
    return ids if ids[: len(lead)] == lead else lead + ids


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text, such as a beginning-of-text token."""
    bare = encode(tokenizer, "a")
    full: list[int] = list(tokenizer("a", verbose=False)["input_ids"])  # type: ignore[arg-type]
    starts = (i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[: next(starts, 0)]


def decode(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, special: bool = False
) -> str:
    """The text of token ids, spaces as they are; special tokens leave none unless asked for."""
    options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    text = tokenizer.decode(list(tokens), **options)
    assert isinstance(text, str)
    return text


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the padding token, which `load_tokenizer` sees to."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, *, left: bool = False
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both (B, T), of sequences of unequal length.

    Scoring pads on the right, where positions are those of the unpadded sequence in every family;
    generation pads on the left.
    """
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if left else slice(len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
