"""Checks of a candidate: a model of any origin in the place of the pruned one."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from prunelit.core.datamodule import PruneData
from prunelit.core.weights import Weights
from prunelit.data.vocabularies import find_settings
from prunelit.errors import InputError
from prunelit.models.architecture import check_length
from prunelit.models.fewer_experts import config_counts
from prunelit.models.read_checks import check_vocabulary


def check_candidate(trainer: Trainer, data: PruneData, weights: Weights) -> None:
    """Refuse a candidate that this run, or a task of it, cannot compare; reads no weights.

    Args:
        trainer: of the run.
        data: prepared.
        weights: with a candidate.

    Raises:
        InputError: naming the option, or the tasks with both values.
    """
    candidate = weights.candidate
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
    check_compared(data, weights)
    _tell_differences(weights)


def check_compared(data: PruneData, weights: Weights) -> None:
    """Refuse a candidate that a task cannot compare, or that cannot read its texts.

    Args:
        data: prepared.
        weights: with a candidate.

    Raises:
        InputError: naming the tasks with both values.
    """
    candidate = weights.candidate
    assert candidate is not None
    for reason, names in find_refused(data, weights).items():
        raise InputError(f"The tasks {names} {reason}: leave these tasks out.")
    for name, task in data.tasks.items():
        what = f"the longest sequence of the task {name!r}, for {candidate.source!r},"
        check_length(candidate.config, task.reader("pruned").longest, what)
    if weights.other_vocabulary is None:
        tokenizer = weights.origin.tokenizer
        check_vocabulary(tokenizer, candidate.text_config.vocab_size, candidate.source)


def find_refused(data: PruneData, weights: Weights) -> dict[str, list[str]]:
    """Find the tasks that cannot compare the candidate with the dense model; reads no weights.

    Args:
        data: the tasks.
        weights: with a candidate.

    Returns:
        Names of tasks, by the reason in words.
    """
    dense, candidate = weights.origin, weights.candidate
    assert candidate is not None
    both = f"{dense.source!r} has", f"{candidate.source!r} has"
    found: dict[str, list[str]] = {}
    for name, task in data.tasks.items():
        if weights.other_vocabulary is not None and not task.own_tokenizers:
            reason = (
                f"compare both models on the same tokens but {both[1]} another vocabulary than "
                f"{dense.source!r} ({weights.other_vocabulary})"
            )
            found.setdefault(reason, []).append(name)
            continue
        for key in task.needs_equal:
            ours, theirs = (getattr(one.text_config, key) for one in (dense, candidate))
            known = key == "num_hidden_layers" and weights.removed_blocks
            if ours != theirs and not known:
                reason = (
                    f"need models with the same `{key}` but {both[0]} {ours!r} and {both[1]} "
                    f"{theirs!r}"
                )
                break
        else:
            if not (task.needs_experts and _experts_unknown(weights)):
                continue
            reason = (
                f"need to know which experts of {dense.source!r} are left in {candidate.source!r} "
                "but its `pruning.json` does not say it"
            )
        found.setdefault(reason, []).append(name)
    return found


def _experts_unknown(weights: Weights) -> bool:
    """Return True if the candidate has fewer experts, and nobody knows which."""
    assert weights.candidate is not None
    dense, pruned = (config_counts(one.config) for one in (weights.origin, weights.candidate))
    return dense != pruned and not weights.kept_experts


def leave_out(data: PruneData, weights: Weights) -> None:
    """Take tasks out of the default configuration that the candidate cannot be compared on.

    Args:
        data: the tasks.
        weights: with a candidate.
    """
    for reason, names in find_refused(data, weights).items():
        rank_zero_info(f"Left out of the default configuration: the tasks {names} {reason}.")
        for name in names:
            del data.tasks[name]


def _tell_differences(weights: Weights) -> None:
    """Say what differs and changes the tasks that run."""
    dense, candidate = weights.origin, weights.candidate
    assert candidate is not None
    if weights.other_vocabulary is not None:
        rank_zero_info(
            f"{candidate.source!r} has another vocabulary than {dense.source!r} "
            f"({weights.other_vocabulary}): each model reads the texts by its own tokenizer."
        )
    else:
        if settings := find_settings(dense.tokenizer, candidate.tokenizer):
            rank_zero_info(
                f"The tokenizer of {candidate.source!r} has the same tokens but another "
                f"{' and another '.join(settings)}: both models get the texts of {dense.source!r}."
            )
    widths = [one.text_config.hidden_size for one in (dense, candidate)]
    if widths[0] != widths[1]:
        rank_zero_info(
            f"The embeddings have {widths[0]} numbers in {dense.source!r} and {widths[1]} in "
            f"{candidate.source!r}: quantities of both embeddings, such as their cosine, are left "
            "out."
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
