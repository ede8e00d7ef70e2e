"""Convert input to batches: dicts with `input_ids` and `attention_mask`, both (B, T)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelit.errors import InputError, check_whole

Batch = dict[str, Tensor]


def as_batches(inputs: Tensor | Iterable[Tensor | Mapping[str, Tensor]], size: int) -> list[Batch]:
    """Convert a token tensor, or an iterable of batches, to batches of one form.

    Args:
        inputs: (S, L) token ids, which are cut into batches of `size` sequences; or an iterable of
            batches. A batch is (B, T) token ids, or a mapping with `input_ids` and, if there is
            padding, `attention_mask`. Other keys are refused, since nothing reads them.
        size: sequences per batch.

    Raises:
        InputError: if there is no token, or a batch has another form.

    Example:
        >>> import torch
        >>> from prunelit.data.batches import as_batches
        >>> batches = as_batches(torch.arange(12).view(3, 4), size=2)
        >>> [tuple(batch["input_ids"].shape) for batch in batches]
        [(2, 4), (1, 4)]
    """
    check_whole("batch_size", size, 1)
    if isinstance(inputs, str) or not isinstance(inputs, Iterable):
        raise InputError(
            f"Expected token ids as a tensor, or an iterable of batches, but got {inputs!r}."
        )
    pieces: Iterable[Tensor | Mapping[str, Tensor]] = inputs
    if isinstance(inputs, Tensor):
        _check_stored(inputs)
        pieces = inputs.split(size) if inputs.numel() else inputs
    batches = [_as_batch(piece) for piece in pieces]
    if not sum(int(batch["attention_mask"].sum()) for batch in batches):
        raise InputError("Expected at least one token but the input holds none.")
    return batches


def choose_tokens(batches: list[Batch], count: int | None, *, followed: bool) -> list[Tensor]:
    """Choose tokens that are spread evenly over all batches; padding is left out.

    Args:
        batches: of `as_batches`.
        count: how many; None, and more than there are, chooses all.
        followed: leave out tokens that no token follows.

    Returns:
        (B, T) bool for each batch, True for chosen tokens.

    Example:
        >>> import torch
        >>> from prunelit.data.batches import as_batches, choose_tokens
        >>> batches = as_batches(torch.arange(12).view(2, 6), size=1)
        >>> [chosen.int().tolist() for chosen in choose_tokens(batches, 4, followed=False)]
        [[[0, 0, 1, 0, 0, 1]], [[0, 0, 1, 0, 0, 1]]]
    """
    masks = [batch["attention_mask"].bool() for batch in batches]
    if followed:
        masks = [mask & F.pad(mask[:, 1:], (0, 1)) for mask in masks]
    total = sum(int(mask.sum()) for mask in masks)
    if count is None or count >= total:
        return masks
    chosen, before = [], 0
    for mask in masks:
        ends = (before + mask.flatten().cumsum(0)).view_as(mask)  # tokens up to this one
        before += int(mask.sum())
        chosen.append(mask & (ends * count // total > (ends - 1) * count // total))
    return chosen


def hold_out(batches: list[Batch], share: float) -> tuple[list[Batch], list[Batch]]:
    """Hold out the last sequences; those without a token are left out.

    Args:
        batches: of `as_batches`.
        share: of the sequences, in [0, 1); at least one is held out unless it is 0.

    Returns:
        The other batches, and those that are held out: all of both if the share is 0.

    Raises:
        InputError: if no sequence would be left.

    Example:
        >>> import torch
        >>> from prunelit.data.batches import as_batches, hold_out
        >>> rest, held = hold_out(as_batches(torch.arange(12).view(6, 2), size=4), 0.25)
        >>> [len(batch["input_ids"]) for batch in rest], [len(batch["input_ids"]) for batch in held]
        ([4], [2])
    """
    if not share:
        return batches, batches
    real = [batch["attention_mask"].any(1) for batch in batches]
    kept = count_kept(sum(int(own.sum()) for own in real), share)
    found: tuple[list[Batch], list[Batch]] = ([], [])
    before = 0
    for batch, own in zip(batches, real, strict=True):
        number = before + own.cumsum(0)  # of each sequence, from 1
        before += int(own.sum())
        for part, chosen in zip(
            found, (own & (number <= kept), own & (number > kept)), strict=True
        ):
            if chosen.any():
                part.append({key: value[chosen] for key, value in batch.items()})
    return found


def count_kept(total: int, share: float) -> int:
    """Count the sequences that stay of `total` when a share of them is held out.

    Raises:
        InputError: if none would be left.
    """
    if not share:
        return total
    kept = total - max(1, round(share * total))
    if kept < 1:
        raise InputError(
            f"Expected a calibration sequence beside those that `held_out: {share:.12g}` takes of "
            f"{total} but there is none: give more sequences, or set `held_out` to less."
        )
    return kept


def one_by_one(batches: list[Batch]) -> list[Batch]:
    """Cut batches into single sequences; those without a token are left out.

    Args:
        batches: of `as_batches`.
    """
    return [
        {key: value[i : i + 1] for key, value in batch.items()}
        for batch in batches
        for i, mask in enumerate(batch["attention_mask"])
        if mask.any()
    ]


def check_ids(batches: list[Batch], rows: int) -> None:
    """Refuse token ids that the model does not embed.

    Args:
        batches: of `as_batches`.
        rows: number of tokens that the model embeds.

    Raises:
        InputError: naming the id.
    """
    for number, batch in enumerate(batches):
        ids = batch["input_ids"]
        if wrong := ids[(ids < 0) | (ids >= rows)].tolist():
            raise InputError(
                f"Expected token ids from 0 to {rows - 1}, the tokens that the model embeds, but "
                f"batch {number} has {wrong[0]}: use the model's own tokenizer."
            )


def longest(batches: list[Batch]) -> int:
    """Return T of the widest batch."""
    return max(batch["input_ids"].shape[1] for batch in batches)


def _as_batch(piece: Tensor | Mapping[str, Tensor]) -> Batch:
    if not isinstance(piece, Tensor | Mapping):
        raise InputError(
            "Expected batches that are token tensors or mappings with `input_ids` but got a "
            f"{type(piece).__name__}. Put a single batch in a list."
        )
    batch = {"input_ids": piece} if isinstance(piece, Tensor) else dict(piece)
    if not all(isinstance(value, Tensor) for value in batch.values()):
        raise InputError(
            f"Expected a batch of tensors but got {[type(v).__name__ for v in batch.values()]}."
        )
    unknown = sorted(set(batch) - {"input_ids", "attention_mask"})
    if unknown or "input_ids" not in batch:
        raise InputError(
            f"Expected a batch with `input_ids` and `attention_mask` but got {sorted(batch)}."
        )
    for value in batch.values():
        _check_stored(value)
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim != 2 or ids.shape != mask.shape or not whole:
        raise InputError(
            "Expected integer `input_ids` of shape (B, T) with `attention_mask` of the same shape "
            f"but got {tuple(ids.shape)} ({ids.dtype}) and {tuple(mask.shape)}."
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            "Expected an `attention_mask` of 1 for tokens and 0 for padding but it has other "
            "values: give the mask that the tokenizer returns."
        )
    # A model embeds ids of 32 or 64 bits; in 8 bits, an id cannot be compared with the vocabulary.
    return {"input_ids": ids.long(), "attention_mask": mask.real.long()}


def _check_stored(tensor: Tensor) -> None:
    """Refuse a tensor whose values are not stored one by one."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"of the layout {tensor.layout}"
        raise InputError(f"Expected a dense tensor of token ids but got one {kind}: convert it.")
