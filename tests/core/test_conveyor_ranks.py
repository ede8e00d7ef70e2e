"""Ranks that share the blocks of both models measure their own batches, as many as they have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.tasks import (
    Deviation,
    Generation,
    ModelPair,
    MultipleChoice,
    Retrieval,
    Task,
    Transitions,
)
from prunelit.trainer import PruneTrainer

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[1] / "material" / "flights.py"
Start = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def tasks(material: Path) -> list[Task]:
    """Of three, four, two and one batches; texts end at different steps."""
    text, questions = str(material / "text.jsonl"), str(material / "questions.jsonl")
    return [
        Deviation(text, length=12, limit=3, batch_size=1),
        Generation(questions, batch_size=2, max_new_tokens=8, stop=["a", "e", "i", "("]),
        MultipleChoice(questions, batch_size=3),
        Retrieval(questions, batch_size=99),
        Transitions(questions, batch_size=99, max_new_tokens=3),
    ]


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@pytest.fixture
def start(
    pair: ModelPair,
    tasks: list[Task],
    tmp_path: Path,
    run_ranks: Callable[..., None],
) -> Start:
    """`start(world, flight)` returns what each rank found."""
    torch.save((pair, tasks), tmp_path / "run.pt")

    def run(world: int, flight: int, fails: bool = False) -> list[dict[str, Any]]:
        run_ranks(SCRIPT, world, FOLDER=str(tmp_path), FLIGHT=flight, FAILS=fails)
        files = [tmp_path / f"{world}-{rank}.json" for rank in range(world)]
        return [json.loads(file.read_text()) for file in files]

    return run


@pytest.mark.parametrize(
    ("world", "flight"),
    [
        (2, 2),
        pytest.param(3, 1, marks=pytest.mark.full),
        pytest.param(3, 99, marks=pytest.mark.full),
    ],
)
def test_all_values_are_those_of_one_process(
    world: int, flight: int, pair: ModelPair, tasks: list[Task], tmp_path: Path, start: Start
) -> None:
    found = start(world, flight)
    data = PruneData(None, tasks)
    data.prepare(pair.tokenizer)
    trainer = PruneTrainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with torch.inference_mode():
        evaluation = Evaluation(trainer, pair, data)
        for name, task in data.tasks.items():
            task.check(pair.pruned)
            for batch in task.batches(data.sizes[name], 0, 1):
                evaluation.measure(name, batch)
        evaluation.summarise(keep_going=False)
    for rank in found:
        assert rank["results"] == [repr(row) for row in evaluation.results]
        assert rank["brought"] == found[0]["brought"]
    assert {sum(rank["transitions"]) for rank in found} == {0, data.sizes["transitions"]}


def test_an_error_of_one_rank_ends_all(start: Start) -> None:
    first, second, third = start(3, 99, fails=True)
    assert second["error"] == ["KeyError", "'input_ids'"]
    for rank in (first, third):
        assert rank["error"][0] == "DistError"
        assert "another process could not go on" in rank["error"][1]
