"""Checks of a candidate: a model of any origin in the place of the pruned one."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from prunelit.core.datamodule import PruneData
from prunelit.core.weights import Origin, Weights
from prunelit.data.vocabularies import find_settings, tell_vocabulary
from prunelit.errors import InputError
from prunelit.models.architecture import check_length
from prunelit.models.loading import check_vocabulary


def check_candidate(trainer: Trainer, data: PruneData, weights: Weights) -> None:
    """Refuse a candidate that this run, or a task of it, cannot compare; reads no weights.

    Args:
        trainer: of the run.
        data: prepared.
        weights: with a candidate.

    Raises:
        InputError: naming the option, or the tasks with both values.
    """
    dense, candidate = weights.origin, weights.candidate
    assert candidate is not None
    if trainer.state.fn == "fit" or trainer.max_epochs != 0:
        raise InputError(
            f"Expected no training and no `fit` with the candidate {candidate.source!r}, which is "
            "measured as it is: run `prunelit compare` with `trainer.max_epochs` 0."
        )
    if not weights.reference:
        raise InputError(
            "A candidate is compared with the dense model: set `model.reference: true`."
        )
    if other := tell_vocabulary(dense.tokenizer, candidate.tokenizer):
        raise InputError(
            f"Expected a candidate with the tokens of {dense.source!r} but {candidate.source!r} "
            f"has others ({other}): both models must read the same ids, so take a candidate of "
            "the same vocabulary."
        )
    check_vocabulary(dense.tokenizer, candidate.text_config.vocab_size, candidate.source)
    _check_sizes(data, weights, dense, candidate)
    for name, task in data.tasks.items():
        what = f"the longest sequence of the task {name!r}, for {candidate.source!r},"
        check_length(candidate.config, task.longest, what)
    if settings := find_settings(dense.tokenizer, candidate.tokenizer):
        rank_zero_info(
            f"The tokenizer of {candidate.source!r} has the same tokens but another "
            f"{' and another '.join(settings)}: both models get the texts of {dense.source!r}."
        )


def _check_sizes(data: PruneData, weights: Weights, dense: Origin, candidate: Origin) -> None:
    """Refuse tasks that need two models of equal sizes."""
    ours, theirs = dense.text_config, candidate.text_config
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        values = getattr(ours, key), getattr(theirs, key)
        if values[0] == values[1] or (key == "num_hidden_layers" and weights.removed_blocks):
            continue
        if needing := [name for name, task in data.tasks.items() if key in task.needs_equal]:
            raise InputError(
                f"The tasks {needing} need models with the same `{key}` but {dense.source!r} has "
                f"{values[0]!r} and {candidate.source!r} has {values[1]!r}: leave these tasks out."
            )
    if ours.hidden_size != theirs.hidden_size:
        rank_zero_info(
            f"The embeddings have {ours.hidden_size} numbers in {dense.source!r} and "
            f"{theirs.hidden_size} in {candidate.source!r}: quantities of both "
            "embeddings, such as their cosine, are left out."
        )


def tell_models(identities: Mapping[str, Any]) -> str:
    """Say which two models a run compares.

    Args:
        identities: see `prunelit.core.weights.Weights.identities`.
    """
    dense, candidate = identities["dense"], identities["candidate"]
    both = [
        f"{one['source']!r} ({one['dtype']}"
        + (f", {one['quantized']}" if one["quantized"] else "")
        + f", content {one['content'][:8]})"
        for one in (dense, candidate)
    ]
    same = dense["content"] == candidate["content"] and dense["dtype"] == candidate["dtype"]
    return (
        f"Comparing the candidate {both[1]} with the dense model {both[0]}; tables and figures "
        f"call the candidate 'pruned'.{' Both have the same content.' if same else ''}"
    )
