"""Compare the pruned with the dense model in embedding, logit and probability space."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.arguments import checked
from prunelit.data.batches import Batch, as_batches, check_ids, longest
from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.deviation import check_not_nan, deviations
from prunelit.metrics.spaces.logit_gram import LogitGram
from prunelit.models.architecture import (
    check_length,
    check_model,
    check_unembedding,
    embedded_tokens,
    final_hidden,
    unembed,
)

# Tokens per matrix product with the unembedding: a large chunk makes the product fast. On a CPU the
# logits of more than a few tokens have at most this many entries, 64 MiB in float32.
_TOKENS, _FEW_TOKENS, _CPU_ENTRIES = 512, 128, 2**24


@torch.no_grad()
@checked
def compare(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    inputs: Tensor | Iterable[Tensor | Mapping[str, Tensor]],
    *,
    batch_size: int = 8,
    temperature: float = 1.0,
    subset: Tensor | None = None,
) -> dict[str, float]:
    """Measure how far the pruned model deviates from the dense one, on average over all tokens.

    Both models get the same tokens (teacher forcing). The embedding is the last hidden state after
    the final norm. Logits are computed for a few tokens at a time, which bounds the memory.

    Args:
        dense: the reference.
        pruned: the model under test, with the same vocabulary and hidden size.
        inputs: (S, L) token ids, or an iterable of (B, T) token ids or of mappings with `input_ids`
            and `attention_mask`. Padded tokens are not compared.
        batch_size: sequences per forward pass, if `inputs` is one tensor.
        temperature: of the softmax.
        subset: token ids; adds the `subspace_*` quantities on these columns of the logits.

    Returns:
        The mean over tokens of every quantity of `prunelit.metrics.deviations`, and `n`, the number
        of tokens. KL and Jensen-Shannon divergence are in nats.

    Raises:
        InputError: if vocabulary or hidden size of the models differ, or the input is empty.

    Example:
        >>> import torch
        >>> from prunelit import compare
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
        >>> config = LlamaConfig(vocab_size=16, num_hidden_layers=2, **sizes)
        >>> model = LlamaForCausalLM(config)
        >>> result = compare(model, model, torch.arange(12).view(2, 6))
        >>> result["kl_dense_pruned"], result["top1_agreement"], result["n"]
        (0.0, 1.0, 12)
    """
    for model in (dense, pruned):
        check_model(model)
    batches = as_batches(inputs, batch_size)
    for model in (dense, pruned):
        check_ids(batches, embedded_tokens(model))
    totals: dict[str, float] = {}
    n = 0
    with _evaluating(dense, pruned):
        check_length(dense.config, longest(batches), "a sequence")
        check_comparable(dense, pruned)
        for batch in batches:
            sums, counts = deviation_sums(
                dense, pruned, batch, temperature=temperature, subset=subset
            )
            for name, values in sums.items():
                totals[name] = totals.get(name, 0.0) + values.sum().item()
            n += int(counts.sum())
    return {**{name: total / n for name, total in totals.items()}, "n": n}


@contextmanager
def _evaluating(*models: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, which would make the comparison random."""
    training = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)


def deviation_sums(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    batch: Batch,
    *,
    temperature: float = 1.0,
    subset: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Sum the deviations over the tokens of each sequence, without padding.

    Args:
        dense: the reference.
        pruned: the model under test.
        batch: ids and mask, (B, T).
        temperature: of the softmax.
        subset: token ids; adds the `subspace_*` quantities.

    Returns:
        For each quantity (B,) float64 sums, and (B,) numbers of tokens.
    """
    batch = move_data_to_device(batch, dense.device)
    mask = batch["attention_mask"].bool()
    hidden = [final_hidden(model, **batch)[mask] for model in (dense, pruned)]
    values = token_deviations(dense, pruned, *hidden, temperature=temperature, subset=subset)
    return sum_rows(values, mask), mask.sum(1)


def sum_rows(values: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Sum the values of the tokens of each sequence, in the order of the tokens.

    Args:
        values: (N,) of each quantity, at the N places where the mask is True.
        mask: (B, T) bool.

    Returns:
        (B,) float64 of each quantity.
    """
    row = mask.nonzero()[:, 0]
    sums: dict[str, Tensor] = {}
    for name, value in values.items():
        zero = torch.zeros(len(mask), dtype=torch.float64, device=mask.device)
        sums[name] = zero.index_add_(0, row, value)
    return sums


def token_deviations(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    dense_hidden: Tensor,
    pruned_hidden: Tensor,
    *,
    temperature: float = 1.0,
    subset: Tensor | None = None,
    targets: Tensor | None = None,
    gram: LogitGram | None = None,
    also: Callable[[Tensor, Tensor, slice], Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Measure every deviation at N tokens, of embeddings only if both have the same width.

    Args:
        dense: the model of `dense_hidden`.
        pruned: the model of `pruned_hidden`.
        dense_hidden: (N, D) final embeddings, N of at least 1.
        pruned_hidden: (N, D'); D' may differ from D.
        temperature: of the softmax.
        subset: token ids; adds the `subspace_*` quantities.
        targets: (N,) token ids; adds `dense_log_probability` and `pruned_log_probability` of them.
        gram: of the unembedding of both models; gives the quantities of the logit space.
        also: computes further values, by name. It gets the logits of n tokens of both models,
            (n, V) each, and the positions of these tokens among the N.

    Returns:
        (N,) values of each quantity: those of `prunelit.metrics.deviations`, and those of `also`.

    Raises:
        InputError: if the output of a model is NaN.
    """
    parts: dict[str, list[Tensor]] = {}
    buffers = Buffers()
    # Autocast of the Trainer's precision is switched off: the logits are in float32.
    with torch.autocast(dense_hidden.device.type, enabled=False):
        vocabulary = dense.config.get_text_config(decoder=True).vocab_size
        size = tokens_per_chunk(dense_hidden.device, vocabulary)
        for start in range(0, len(dense_hidden), size):
            place = slice(start, start + size)
            h, h_pruned = dense_hidden[place], pruned_hidden[place]
            logits = unembed(dense, h), unembed(pruned, h_pruned)
            pair = (h, h_pruned) if h.shape[-1] == h_pruned.shape[-1] else (None, None)
            values = deviations(
                *pair,
                *logits,
                temperature=temperature,
                subset=subset,
                targets=None if targets is None else targets[place],
                gram=gram,
                buffers=buffers,
            )
            check_not_nan(values)
            if also is not None:
                values |= also(*logits, place)
            del logits  # before the next ones come
            for name, value in values.items():
                parts.setdefault(name, []).append(value)
    return {name: torch.cat(part) for name, part in parts.items()}


def tokens_per_chunk(device: torch.device, vocabulary: int) -> int:
    """Return the number of tokens whose logits are compared at one time.

    Args:
        device: of the logits.
        vocabulary: V.
    """
    if device.type != "cpu":
        return _TOKENS
    return min(_TOKENS, max(_FEW_TOKENS, _CPU_ENTRIES // vocabulary))


def check_comparable(dense: PreTrainedModel, pruned: PreTrainedModel) -> None:
    """Refuse two models that differ in vocabulary or hidden size.

    Raises:
        InputError: naming the size that differs.
    """
    for what in ("vocab_size", "hidden_size"):
        sizes = [
            getattr(model.config.get_text_config(decoder=True), what) for model in (dense, pruned)
        ]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"Expected dense and pruned model with the same {what} but got {sizes[0]} and "
                f"{sizes[1]}."
            )
    for model in (dense, pruned):
        check_unembedding(model)
