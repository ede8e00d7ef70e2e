"""What prunelit can do with one model family: each method, its export, and what follows from it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import (
    check_unembedding,
    decoder_blocks,
    probe_ids,
    takes_positions,
)
from prunelit.pruners import (
    BlockDrop,
    ExpertDrop,
    ExpertMerge,
    Heads,
    Hidden,
    Magnitude,
    Neuron,
    Pruner,
    SparseGPT,
    SublayerDrop,
    Wanda,
)
from prunelit.sparsity import Unstructured

from .tiny import VOCABULARY, tiny_model


class _SecondBlock(BlockDrop):
    """Drop the second block, so that those behind it get another place."""

    def _choose(self, scores: dict[int, float], before: set[int]) -> list[int]:
        return [1]


# By the name of a column of the table.
METHODS: dict[str, list[Callable[[], Pruner]]] = {
    "weights": [
        lambda: Wanda(Unstructured(0.5)),
        lambda: SparseGPT(Unstructured(0.5)),
        lambda: Magnitude(Unstructured(0.5)),
    ],
    "experts": [lambda: ExpertDrop(0.25)],
    "expert outputs": [
        lambda: ExpertMerge(0.25),
        lambda: ExpertDrop(0.25, criterion="reconstruction"),
    ],
    "neurons": [lambda: Neuron(0.25)],
    "heads": [lambda: Heads(0.5)],
    "channels": [lambda: Hidden(0.25)],
    "mixers": [lambda: SublayerDrop(1, "mixer")],
    "MLPs": [lambda: SublayerDrop(1, "mlp")],
    "blocks": [lambda: _SecondBlock(1)],
}
# Refusals of a method for a model that has no such part.
_LACKS = ("choose another `target`", "no MLP", "Expected a mixture with fused experts")
# Parts of these columns keep a cache.
_CACHED = ("mixers", "blocks")
_NEW_TOKENS = 3


@dataclass
class Family:
    """What was measured of one family.

    Args:
        model_type: its name in transformers.
        refused: why it cannot be used at all; None if it can.
        built: a tiny model could be built.
        notes: what holds for the dense model too.
        outcomes: for each column of the table why its methods are refused; None if they work.
        faults: what is wrong; there must be none.
    """

    model_type: str
    refused: str | None = None
    built: bool = True
    notes: list[str] = field(default_factory=list)
    outcomes: dict[str, str | None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def row(self) -> dict[str, str]:
        """Give the cells of this family in the table, by column."""
        cells = dict.fromkeys(METHODS, "no" if self.built else "not tried")
        reasons: dict[str, list[str]] = {}
        if self.refused is not None:
            reasons[self.refused] = []
        for column, reason in self.outcomes.items():
            lacks = reason is not None and any(words in reason for words in _LACKS)
            cells[column] = "yes" if reason is None else "none" if lacks else "no"
            if reason is not None and not lacks:
                reasons.setdefault(reason, []).append(column)
        told = [", ".join(columns) + ": " * bool(columns) + why for why, columns in reasons.items()]
        return {"model type": self.model_type, **cells, "why not": " ".join(told + self.notes)}


def measure(model_type: str, *, quick: bool) -> Family:
    """Walk one family.

    Args:
        model_type: name in transformers.
        quick: try one weight method, not three, and read the folder again only where parts that
            keep a cache were taken out; `save_pretrained` itself compares every folder.
    """
    family = Family(model_type)
    try:
        model = tiny_model(model_type)
    except Exception as error:  # noqa: BLE001
        family.built = False
        family.refused = f"No tiny model can be built here: {_line(error)}"
        return family
    try:
        decoder_blocks(model)
        check_unembedding(model)
    except InputError as error:
        family.refused = _line(error)
        return family
    except Exception as error:  # noqa: BLE001
        family.faults.append(f"dense: {type(error).__name__}: {_line(error)}")
        return family
    if not _is_blind_to_padding(model):
        family.faults.append("dense: padding on the left changes the logits")
        return family
    cached = _generates_alike(model)
    if not cached:
        family.notes.append("Generation with a cache differs in the dense model too.")
    for column, methods in METHODS.items():
        family.outcomes[column] = None
        again = not quick or column in _CACHED
        for build in methods[:1] if quick else methods:
            try:
                family.outcomes[column] = _try_method(
                    copy.deepcopy(model), build(), again=again, cached=cached
                )
            except Exception as error:  # noqa: BLE001
                family.outcomes[column] = "fault"
                name = type(build()).__name__
                family.faults.append(f"{column}, {name}: {type(error).__name__}: {_line(error)}")
            if family.outcomes[column] is not None:
                break
    return family


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


@torch.no_grad()
def _try_method(model: PreTrainedModel, pruner: Pruner, *, again: bool, cached: bool) -> str | None:
    """Prune, write, read, and compare what was read with what is in memory.

    Args:
        model: dense; it is pruned.
        pruner: the method.
        again: read the folder again, and try padding and generation.
        cached: generation with a cache must give what it gives without one.

    Returns:
        Why the method is refused, before any weight changes; None if it works.
    """
    ids = probe_ids(model, 2, 10)
    dense = _logits(model, ids)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration = torch.randint(
        100, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1)
    )
    try:
        report = prune(model, pruner, calibration, batch_size=2, progress=False)
    except InputError as error:
        now = model.state_dict()
        assert before.keys() == now.keys(), "a refused model was changed"
        assert all(value.equal(now[name]) for name, value in before.items()), "a weight was changed"
        return _line(error)
    pruned = _logits(model, ids)
    assert pruned.isfinite().all(), "logits are not finite"
    assert not pruned.allclose(dense, atol=1e-4), "the logits did not change"
    with TemporaryDirectory() as folder:
        path = Path(folder, "pruned")
        try:
            save_pretrained(model, _tokenizer(), path, report)
        except InputError as error:
            assert not path.exists(), "a refused folder was written"
            return _line(error)
        if again:
            read, _ = load_pretrained(str(path))
            torch.testing.assert_close(_logits(read, ids), pruned, rtol=1e-5, atol=1e-5)
            assert _is_blind_to_padding(read), "padding on the left changes the logits"
            assert _generates_alike(read) or not cached, "generation with a cache differs"
    return None


def _tokenizer() -> PreTrainedTokenizerBase:
    words = models.WordLevel({"<pad>": 0, "<begin>": 1, "<end>": 2, "a": 3}, unk_token="a")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words),
        eos_token="<end>",
        pad_token="<pad>",
        padding_side="left",
    )


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Run a model on tokens without padding, (B, T, V)."""
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _generates_alike(model: PreTrainedModel) -> bool:
    """Return True if generation gives the same tokens with a cache and without one."""
    ids = probe_ids(model, 2, 10)
    cached, uncached = (_generate(model, ids, cache) for cache in (True, False))
    return cached.equal(uncached)


def _generate(model: PreTrainedModel, ids: Tensor, cache: bool) -> Tensor:
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        use_cache=cache,
        eos_token_id=None,
        pad_token_id=0,
    )


@torch.no_grad()
def _is_blind_to_padding(model: PreTrainedModel) -> bool:
    """Compare tokens behind padding with the same tokens alone."""
    ids = probe_ids(model, 2, 10)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {}
    if takes_positions(model):
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
    alone = _logits(model, ids[:1, 3:])[0]
    return padded[0, 3:].allclose(alone, rtol=1e-4, atol=1e-4)
