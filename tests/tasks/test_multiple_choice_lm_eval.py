"""Log-likelihoods and predictions equal those of lm-evaluation-harness 0.4.13."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit
from prunelit.tasks import ItemTable, MultipleChoice, Pair

pytestmark = pytest.mark.model

GOLDEN = Path(__file__).parents[1] / "golden" / "lm_eval"


def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return prunelit.load_pretrained(recorder().MODEL, dtype="float32")


@torch.no_grad()
def measure(
    real: tuple[PreTrainedModel, PreTrainedTokenizerBase], path: str, limit: int | None
) -> tuple[MultipleChoice, ItemTable]:
    model, tokenizer = real
    task = MultipleChoice(path, limit=limit)
    task.read()
    table = ItemTable(task.prepare(tokenizer))
    for batch in task.batches(table.size, 0, 1):
        table.assign(batch["indices"], task.step(Pair(model, None, tokenizer), batch))
    return task, table


def assert_equal(task: MultipleChoice, table: ItemTable, expected: dict) -> None:
    assert [question.id for question in task._questions] == expected["ids"]
    for own, theirs in zip(
        table["pruned/log_likelihood"].numpy(), expected["log_likelihoods"], strict=True
    ):
        np.testing.assert_allclose(own[: len(theirs)], theirs, rtol=0, atol=1e-4)
        assert own[: len(theirs)].argmax() == np.argmax(theirs)
    assert table["pruned/acc"].tolist() == expected["acc"]
    assert table["pruned/acc_norm"].tolist() == expected["acc_norm"]


def test_recorded_facts(real: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    expected = json.loads((GOLDEN / "facts.json").read_text(encoding="utf-8"))
    assert expected["lm_eval"] == "0.4.13"
    assert_equal(*measure(real, "prunelit:facts.jsonl", None), expected)


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="extra lm-eval not installed")
def test_live_arc_easy(real: tuple[PreTrainedModel, PreTrainedTokenizerBase], shared: Path) -> None:
    path = str(shared / "data" / "multiple_choice" / "arc_easy_test.jsonl.gz")
    expected = recorder().evaluate(path, limit=100)
    assert_equal(*measure(real, path, 100), expected)
