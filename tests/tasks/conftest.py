"""Tasks run without a trainer, for tests that fill several files a task."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunelit.report.results import Result
from prunelit.tasks import ItemTable, ModelPair, Task, Transitions
from prunelit.tasks.distribution import Distribution
from prunelit.tasks.item_table import Streamed
from prunelit.tasks.subspace import Subspace
from prunelit.tasks.trajectory import Trajectory

Batch = tuple[Tensor, Mapping[str, Tensor | Streamed]]

CONTEXTS = ["one", "a longer prompt", "two", "what now?", "x", "seven", "and so on"]

# Letters after a space, and the space itself where nothing merges with it.
OPTION_ROWS = [
    {"id": "a", "context": "Which is best?", "choices": ["Paris", "Rome", "yes"], "label": 1},
    {"id": "b", "context": "And now, a longer one?", "choices": ["Rye", "Pi"], "label": 0},
    {"id": "c", "context": "C?", "choices": ["Pe", "no", "Rust", "Pa"], "label": 0},  # collides
    {"id": "d", "context": "How many?", "choices": ["4", "5", "72"], "label": 2},
    {"id": "e", "context": "Ox", "choices": ["Rome", "Paris"], "label": 0},
]

# Among what each model writes for some prompt, greedily after a few steps.
ENDS = [*range(1, 40), 126]
# Noise on each model, so that some rollouts diverge, and not all at once.
AMOUNTS = {"llama": 0.2, "gemma2": 0.3, "gpt_neox": 0.3}


def measured(task: Task, pair: ModelPair, world: int) -> tuple[ItemTable, list[Batch]]:
    """The complete table, and of each batch the numbers of its items and what its step gave."""
    task.read()
    size = task.prepare(pair.tokenizer)
    assert pair.dense is not None
    task.check(pair.dense)
    tables = [ItemTable(size) for _ in range(world)]
    batches = []
    with torch.inference_mode():  # as in Lightning's validation
        for rank, table in enumerate(tables):
            for batch in task.batches(size, rank, world):
                if len(batch["indices"]):
                    batches.append((batch["indices"], task.step(pair, batch)))
                    table.assign(*batches[-1])
        first, *others = tables
        for other in others:
            mine = other._seen.nonzero()[:, 0]
            first.assign(mine, {name: other[name][mine] for name in other.columns()})
            for name, sketch in other.sketches.items():
                if name in first.sketches:
                    first.sketches[name].merge(sketch)
                else:
                    first.sketches[name] = sketch
    first.all_reduce_()
    return first, batches


@pytest.fixture
def measure() -> Callable[..., tuple[ItemTable, list[Batch]]]:
    """`measure(task, pair, world)`: the complete table, and what each batch gave."""
    return measured


@pytest.fixture
def contexts() -> list[str]:
    """The prompts of `trajectory`, of which `transitions` has the first five."""
    return CONTEXTS


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], str]:
    """`write_rows(rows)`: the path of a file of them."""

    def write(rows: Sequence[dict[str, Any]]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def trajectory(write_rows: Callable[..., str]) -> Callable[..., Any]:
    """`trajectory(pair, **arguments)`: the task, its table, and every streamed value by prompt."""

    def run(
        pair: ModelPair, world: int = 1, contexts: list[str] = CONTEXTS, **arguments: Any
    ) -> tuple[Trajectory, ItemTable, dict[str, Tensor]]:
        path = write_rows([{"context": text} for text in contexts])
        defaults = {"chat": False, "max_new_tokens": 6, "batch_size": 3}
        task = Trajectory(path, **{**defaults, **arguments})
        table, batches = measured(task, pair, world)
        streams: dict[str, Tensor] = {}
        for indices, found in batches:
            for name, value in found.items():
                if isinstance(value, Streamed):
                    empty = torch.zeros(table.size, task.max_new_tokens).double()
                    streams.setdefault(name, empty)[indices] = value.values[..., 0]
        return task, table, streams

    return run


@pytest.fixture
def transitions(write_rows: Callable[..., str]) -> Callable[..., Any]:
    """`transitions(pair, **arguments)`: the task, its table, and what each batch gave."""

    def run(
        pair: ModelPair, world: int = 1, **arguments: Any
    ) -> tuple[Transitions, ItemTable, list]:
        path = write_rows([{"context": text} for text in CONTEXTS[:5]])
        defaults = {"chat": False, "max_new_tokens": 6, "tokens": None, "batch_size": 3}
        task = Transitions(path, **{**defaults, **arguments})
        table, batches = measured(task, pair, world)
        return task, table, [found for _, found in batches]

    return run


@pytest.fixture
def distribution(material: Path) -> Callable[..., Any]:
    """`distribution(pair, **arguments)`: rows of the pair by metric, the task, and its table."""

    def run(
        pair: ModelPair, world: int = 1, **arguments: Any
    ) -> tuple[dict[str, Result], Distribution, ItemTable]:
        defaults = {"length": 12, "limit": 7, "batch_size": 2, "floor_windows": 3}
        task = Distribution(str(material / "text.jsonl"), **{**defaults, **arguments})
        table, _ = measured(task, pair, world)
        return {r.metric: r for r in task.report(table).results if r.model == "pair"}, task, table

    return run


@pytest.fixture
def subspace() -> Callable[..., Any]:
    """`subspace(path, pair, **arguments)`: rows by metric and model, the task, and its table."""

    def run(
        path: str, pair: ModelPair, world: int = 1, **arguments: Any
    ) -> tuple[dict[tuple[str, str], Result], Subspace, ItemTable]:
        task = Subspace(path, **{"batch_size": 2, **arguments})
        table, _ = measured(task, pair, world)
        return {(row.metric, row.model): row for row in task.report(table).results}, task, table

    return run


@pytest.fixture
def prepare_subspace() -> Callable[..., Subspace]:
    """`prepare_subspace(path, tokenizer, **arguments)`: the task before any model is run."""

    def prepare(path: str, tokenizer: PreTrainedTokenizerBase, **arguments: Any) -> Subspace:
        task = Subspace(path, **arguments)
        task.read()
        task.prepare(tokenizer)
        return task

    return prepare


@pytest.fixture
def option_rows() -> list[dict[str, Any]]:
    """Questions for `subspace`; the options of the third are not told apart."""
    return OPTION_ROWS


@pytest.fixture
def questions(write_rows: Callable[..., str]) -> Callable[..., str]:
    """`questions(rows)`: a path; without rows, that of `option_rows`."""
    return lambda rows=OPTION_ROWS: write_rows(rows)


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """Bytes, and " P", " R", " A" to " C" as single tokens, as in vocabularies of words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    merges = [("Ġ", letter) for letter in "PRABC"]
    vocabulary |= {"".join(pair): 257 + i for i, pair in enumerate(merges)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


@pytest.fixture
def words_pair(
    make_model: Callable[..., PreTrainedModel], words: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), words)


def disturbed(model: PreTrainedModel, amount: float) -> PreTrainedModel:
    """A copy with noise on its last block, in proportion to what the block adds."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if ".2." in name and parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(amount * parameter.std() * noise)
    return other


@pytest.fixture
def parting(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., ModelPair]:
    """`parting("llama")`: models whose rollouts part after some steps, if not ended before."""

    def make(name: str, amount: float | None = None) -> ModelPair:
        dense = make_model(name)
        dense.generation_config.eos_token_id = ENDS
        return ModelPair(disturbed(dense, amount or AMOUNTS[name]), dense, tokenizer)

    return make
