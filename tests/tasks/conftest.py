"""What the tests of a task on rollouts share."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.tasks import ItemTable, Pair
from prunelit.tasks.items import Streamed
from prunelit.tasks.trajectory import Trajectory

CONTEXTS = ["one", "a longer prompt", "two", "what now?", "x", "seven", "and so on"]

# Among what each model writes for some prompt, greedily after a few steps.
ENDS = [*range(1, 40), 126]
# How far to disturb each, so that some rollouts part, not all at once.
AMOUNTS = {"llama": 0.2, "gemma2": 0.3, "gpt_neox": 0.3}


@pytest.fixture
def contexts() -> list[str]:
    """The prompts of `trajectory`."""
    return CONTEXTS


@pytest.fixture
def trajectory(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Any]:
    """`trajectory(pair, **arguments)`: the task, its table, and every streamed value by prompt."""

    def run(
        pair: Pair, world: int = 1, contexts: list[str] = CONTEXTS, **arguments: Any
    ) -> tuple[Trajectory, ItemTable, dict[str, Tensor]]:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"context": text}) + "\n" for text in contexts))
        defaults = {"chat": False, "max_new_tokens": 6, "batch_size": 3}
        task = Trajectory(str(path), **{**defaults, **arguments})
        task.read()
        size = task.prepare(tokenizer)
        tables, streams = [], {}
        for rank in range(world):
            table = ItemTable(size)
            for batch in task.batches(size, rank, world):
                if not len(batch["indices"]):
                    continue
                found = task.step(pair, batch)
                table.assign(batch["indices"], found)
                for name, value in found.items():
                    if isinstance(value, Streamed):
                        streams.setdefault(name, torch.zeros(size, task.max_new_tokens).double())
                        streams[name][batch["indices"]] = value.values[..., 0]
            tables.append(table)
        for other in tables[1:]:
            for name, sketch in other.sketches.items():
                tables[0].sketches[name].merge(sketch)
            mine = other._seen.nonzero()[:, 0]
            columns = {name: other[name][mine] for name in other.columns()}
            tables[0].assign(mine, columns)
        tables[0].all_reduce_()
        return task, tables[0], streams

    return run


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
) -> Callable[..., Pair]:
    """`parting("llama")`: models whose rollouts part after some steps, if not ended before."""

    def make(name: str, amount: float | None = None) -> Pair:
        dense = make_model(name)
        dense.generation_config.eos_token_id = ENDS
        return Pair(disturbed(dense, amount or AMOUNTS[name]), dense, tokenizer)

    return make
