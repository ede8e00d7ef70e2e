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
from prunelit.tasks import ItemTable, ModelPair, MultipleChoice
from prunelit.tasks.prompting.few_shot import FewShot

pytestmark = pytest.mark.model
live = pytest.mark.skipif(
    not importlib.util.find_spec("lm_eval"), reason="extra lm-eval not installed"
)

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
    real: tuple[PreTrainedModel, PreTrainedTokenizerBase], task: MultipleChoice
) -> ItemTable:
    model, tokenizer = real
    task.read()
    table = ItemTable(task.prepare(tokenizer))
    for batch in task.batches(table.size, 0, 1):
        table.assign(batch["indices"], task.step(ModelPair(model, None, tokenizer), batch))
    return table


def assert_equal(task: MultipleChoice, table: ItemTable, expected: dict) -> None:
    assert [question.id for question in task._questions] == expected["ids"]
    for own, theirs in zip(
        table["pruned/log_likelihood"].numpy(), expected["log_likelihoods"], strict=True
    ):
        np.testing.assert_allclose(own[: len(theirs)], theirs, rtol=0, atol=1e-4)
        assert own[: len(theirs)].argmax() == np.argmax(theirs)
    assert table["pruned/acc"].tolist() == expected["acc"]
    if task.scoring == "continuation":
        # There `acc_norm` divides by characters, which are bytes in the recorded facts.
        norm = "acc_bytes" if "acc_bytes" in expected else "acc_norm"
        assert table["pruned/acc_norm"].tolist() == expected[norm]
    if "brier_score" in expected:
        assert table["pruned/brier"].mean().item() == pytest.approx(
            expected["brier_score"], abs=1e-5
        )


def letters(path: str, limit: int) -> MultipleChoice:
    template = "{context}\n{choices}\nAnswer:"
    return MultipleChoice(
        path, template=template, scoring="letter", few_shot=FewShot(5), limit=limit
    )


def recorded(name: str) -> dict:
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert expected["lm_eval"] == "0.4.13"
    return expected


def test_recorded_facts(real: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    task = MultipleChoice("prunelit:facts.jsonl")
    assert_equal(task, measure(real, task), recorded("facts"))


def test_recorded_letters_after_five_examples(
    real: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    task = letters("prunelit:facts.jsonl", 40)
    assert_equal(task, measure(real, task), recorded("letters"))


@live
@pytest.mark.parametrize("name", ["arc_easy_test", "arc_challenge_dev", "piqa_val"])
def test_live_questions(
    real: tuple[PreTrainedModel, PreTrainedTokenizerBase], shared: Path, name: str
) -> None:
    path = str(shared / "data" / "multiple_choice" / f"{name}.jsonl.gz")
    task = MultipleChoice(path, limit=40)
    expected = recorder().evaluate(path, limit=40)
    assert_equal(task, measure(real, task), expected)


@live
def test_live_sentences(
    real: tuple[PreTrainedModel, PreTrainedTokenizerBase], shared: Path
) -> None:
    path = str(shared / "data" / "multiple_choice" / "hellaswag_val_2000.jsonl.gz")
    task = MultipleChoice(path, template="{context}", limit=40)
    expected = recorder().evaluate(path, limit=40, **recorder().SENTENCE)
    assert_equal(task, measure(real, task), expected)


@live
def test_live_letters(real: tuple[PreTrainedModel, PreTrainedTokenizerBase], shared: Path) -> None:
    path = str(shared / "data" / "multiple_choice" / "arc_challenge_dev.jsonl.gz")
    task = letters(path, 12)
    expected = recorder().evaluate(path, limit=12, shots=5, **recorder().LETTER)
    assert_equal(task, measure(real, task), expected)
