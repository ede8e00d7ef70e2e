"""The data of a run, without a Trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.tasks import MultipleChoice, Perplexity


@pytest.fixture
def data(material: Path) -> PruneData:
    text = str(material / "text.jsonl")
    return PruneData(
        CalibrationText(text, split="train[:9]", sequences=5, length=16, batch_size=2, seed=3),
        [
            Perplexity(text, split="train[9:]", length=20),
            MultipleChoice(str(material / "questions.jsonl")),
        ],
    )


def test_tasks_are_known_by_name_and_size(
    data: PruneData, tokenizer: PreTrainedTokenizerBase
) -> None:
    data.prepare(tokenizer)
    assert list(data.tasks) == ["perplexity", "multiple_choice"]
    assert data.sizes == {"perplexity": 9, "multiple_choice": 7}


def test_preparing_again_changes_nothing(
    data: PruneData, material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data.prepare(tokenizer)
    before, sizes = data.calibration_tokens, dict(data.sizes)
    data.prepare(tokenizer)
    assert data.calibration_tokens is before
    assert data.sizes == sizes


def test_reading_needs_no_tokenizer_and_refuses_bad_rows(material: Path) -> None:
    text = str(material / "text.jsonl")
    PruneData(CalibrationText(text), [Perplexity(text)]).read()
    with pytest.raises(InputError, match=r"has no column 'choices', 'context', 'label'"):
        PruneData(None, [MultipleChoice(text)]).read()
    with pytest.raises(InputError, match=r"has no column 'body'"):
        PruneData(CalibrationText(text, column="body")).read()


def test_without_calibration_there_are_no_batches(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = PruneData(None, [Perplexity(str(material / "text.jsonl"), length=20)])
    data.prepare(tokenizer)
    assert data.calibration_batches() is None


def test_two_tasks_of_one_name_are_refused(material: Path) -> None:
    path = str(material / "text.jsonl")
    with pytest.raises(InputError, match=r"distinct names but got \['perplexity', 'perplexity'\]"):
        PruneData(None, [Perplexity(path), Perplexity(path, length=30)])
    assert list(PruneData(None, [Perplexity(path), Perplexity(path, name="long")]).tasks) == [
        *("perplexity", "long")
    ]


def test_an_empty_list_of_tasks_is_refused() -> None:
    with pytest.raises(InputError, match=r"at least one task in `data\.tasks` but got none: give"):
        PruneData(None, [])
    assert PruneData().tasks == {}


def test_ranks_that_compute_a_model_together_have_the_same_batches(
    data: PruneData, tokenizer: PreTrainedTokenizerBase
) -> None:
    data.prepare(tokenizer)
    found = []
    for rank in range(4):
        module = SimpleNamespace(together=2, in_flight=None)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=4, lightning_module=module
        )
        every: Any = data.val_dataloader()
        found.append({name: [b["indices"].tolist() for b in every[name]] for name in data.tasks})
    expected = [
        {
            name: [batch["indices"].tolist() for batch in task.batches(data.sizes[name], group, 2)]
            for name, task in data.tasks.items()
        }
        for group in (0, 1)
    ]
    assert found == [expected[0], expected[0], expected[1], expected[1]]
    assert expected[0] != expected[1]
