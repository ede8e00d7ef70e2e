"""Generated answers for a data set, from models that write exactly the text of a test."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import InputError
from prunelit.report.results import Result
from prunelit.tasks import Generation, ItemTable, ModelPair
from prunelit.tasks.formats import gsm8k, humaneval
from prunelit.tasks.judges import ExactMatch, Execution, Judge
from prunelit.tasks.judges.answers import first_line, last_number
from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.questions import Example, Question


def writer(tokenizer: PreTrainedTokenizerBase, begin: str, text: str) -> PreTrainedModel:
    """A model that writes `text` after a prompt that ends in `begin`, then ends the text.

    Each token follows from the last one alone, so that none may come twice.
    """
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=272,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    ids = tokenizer(begin + text)["input_ids"]
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(257, 272))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for last, following in zip(ids, [*ids[1:], 0], strict=True):
            model.lm_head.weight[following, last] = 1
    return model


@torch.no_grad()
def measure(task: Generation, pair: ModelPair) -> tuple[dict[tuple[str, str], float], ItemTable]:
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    rows: list[Result] = task.report(table).results
    assert all(row.n == size for row in rows)
    return {(row.metric, row.model): row.value for row in rows}, table


@pytest.fixture
def sums(tmp_path: Path) -> str:
    """Two problems, the second one of which is 42."""
    path = tmp_path / "sums.jsonl"
    rows = [
        {"question": "One and one?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        {"question": "Six times seven?", "answer": "6 * 7 = 42\n#### 42"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def by_number(**more: Any) -> dict[str, Any]:
    judge = ExactMatch({"strict": first_line, "flexible": last_number})
    plain = {"template": "{context}\nA:", "chat": False, "format": gsm8k, "judge": judge}
    return {**plain, "max_new_tokens": 12, "batch_size": 2, **more}


def test_every_metric_and_row_of_two_known_texts(
    sums: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = ModelPair(writer(tokenizer, ":", "4so2"), writer(tokenizer, ":", "42\nQ 7"), tokenizer)
    task = Generation(sums, **by_number(stop=["\nQ"]))
    values, table = measure(task, pair)
    expected = {
        "strict": (1 / 2, 0),
        "flexible": (1 / 2, 1 / 2),
        "repetition": (0, 0),
        "distinct_1": (1, 1),
        "distinct_2": (1, 1),
        "end_of_text": (1, 1),
        "length": (4, 5),  # "42\nQ" and "4so2<end>"
    }
    assert values == pytest.approx(
        {(metric, "dense"): dense for metric, (dense, _) in expected.items()}
        | {(metric, "pruned"): pruned for metric, (_, pruned) in expected.items()}
        | {(m, "difference"): pruned - dense for m, (dense, pruned) in expected.items()}
        | {("first_divergence", "pair"): 1, ("diverged", "pair"): 1, ("retained", "pair"): 0}
    )
    text = {"prompt": "Six times seven?", "target": "42", "dense": "42", "pruned": "4so2"}
    assert list(task.report(table).texts)[1] == text
    rows = list(task.report(table).items)
    assert [(row["item"], row["model"]) for row in rows] == [
        (0, "dense"),
        (0, "pruned"),
        (1, "dense"),
        (1, "pruned"),
    ]
    assert rows[1] == {
        "item": 0,
        "sample": 0,
        "model": "pruned",
        "prompt": "One and one?\nA:",
        "target": "2",
        "output": "4so2",
        "extracted_strict": "4so2",
        "extracted_flexible": "2",
        "right_strict": False,
        "right_flexible": True,
        "repetition": 0,
        "distinct_1": 1,
        "distinct_2": 1,
        "end_of_text": True,
        "length": 5,
        "first_divergence": 1,
        "diverged": True,
    }


def test_without_a_reference_only_the_pruned_text_is_there(
    sums: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = Generation(sums, **by_number())
    values, table = measure(task, ModelPair(writer(tokenizer, ":", "42"), None, tokenizer))
    assert {model for _, model in values} == {"pruned"}
    assert "first_divergence" not in {metric for metric, _ in values}
    assert list(next(iter(task.report(table).texts))) == ["prompt", "target", "pruned"]
    assert [row["model"] for row in task.report(table).items] == ["pruned", "pruned"]
    assert "diverged" not in next(iter(task.report(table).items))


def prompts(task: Generation, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    task.read()
    task.prepare(tokenizer)
    batch = task.collate(range(2))
    return [
        tokenizer.decode(ids[mask == 1])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_worked_examples_stand_before_the_question(
    sums: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    worked = tmp_path / "worked.jsonl"
    worked.write_text(
        '{"question": "a?", "answer": "first\\n#### 1"}\n{"question": "b?", "answer": "#### 2"}\n'
    )
    few_shot = FewShot(2, path=str(worked))
    plain = Generation(sums, **by_number(few_shot=few_shot))
    assert prompts(plain, tokenizer)[1] == (
        "a?\nA: first\n#### 1\n\nb?\nA: #### 2\n\nSix times seven?\nA:"
    )
    chat = Generation(sums, **by_number(few_shot=few_shot, chat=True, template="{context}"))
    assert prompts(chat, tokenizer)[1] == (
        "<user>a?\n<assistant>first\n#### 1\n<user>b?\n<assistant>#### 2\n"
        "<user>Six times seven?\n<assistant>"
    )
    details = plain.details()
    assert details["few_shot"]["count"] == 2
    assert details["few_shot_sha256"] == chat.details()["few_shot_sha256"]
    alone = Generation(sums, **by_number())
    prompts(alone, tokenizer)
    assert "few_shot_sha256" not in alone.details()


def test_a_question_among_the_worked_examples_gets_another(
    sums: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    first, second, *_ = prompts(Generation(sums, **by_number()), tokenizer)
    shown = prompts(Generation(sums, **by_number(few_shot=FewShot(1))), tokenizer)
    assert shown[0].endswith(first)
    assert shown[0].startswith(second)
    assert shown[1].endswith(second)
    assert shown[1].startswith(first)


def test_the_longest_sequence_counts_the_budget(
    sums: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = Generation(sums, **by_number())
    texts = prompts(task, tokenizer)
    assert task.longest == max(map(len, texts)) + 12


def test_what_was_written_keeps_its_indentation(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "programs.jsonl"
    row = {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f): assert f() == 1"}
    path.write_text(json.dumps(row | {"canonical_solution": "\treturn 1"}) + "\n")
    model = writer(tokenizer, "\n", "\tret 1")
    plain = {"format": humaneval, "chat": False, "max_new_tokens": 9}
    task = Generation(str(path), judge=Execution(), **plain)
    values, table = measure(task, ModelPair(model, None, tokenizer))
    # Execution is off: the program is written down and not judged.
    assert {metric for metric, _ in values} == {
        "repetition",
        "distinct_1",
        "distinct_2",
        "end_of_text",
        "length",
    }
    (row,) = task.report(table).items
    assert row["output"] == row["extracted_passed"] == "\tret 1"
    assert "right_passed" not in row


class Doubtful(Judge):
    """Doubts every second text that it reads."""

    metrics = ("passed",)
    doubts = ("rain", "snow")

    def __init__(self) -> None:
        self._read = 0

    def answers(self, text: str) -> dict[str, str | None]:
        return {"passed": text}

    def right(self, example: Example | Question, text: str) -> dict[str, bool]:
        self._read += 1
        return {"passed": False, "snow": True} if self._read % 2 else {"passed": True}


def test_wrong_texts_that_may_be_right_are_counted_and_named(
    sums: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    options = {**by_number(), "judge": Doubtful(), "samples": 2, "temperature": 1.0}
    task = Generation(sums, **options, pass_at=[1])
    values, table = measure(task, ModelPair(writer(tokenizer, "\n", "3"), None, tokenizer))
    report = task.report(table)
    rows = [*report.items]
    assert [row["doubt"] for row in rows] == ["snow", None] * (len(rows) // 2)
    assert [row["right_passed"] for row in rows] == [False, True] * (len(rows) // 2)
    counted = {row.metric: row.details.get("doubts") for row in report.results}
    assert counted["passed"] == counted["pass@1"] == len(rows) // 2
    assert counted["length"] is None
    assert values["passed", "pruned"] == 0.5


def test_what_changes_the_values_changes_the_recipe(
    sums: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    worked = tmp_path / "worked.jsonl"
    worked.write_text('{"question": "a?", "answer": "#### 1"}\n')
    changes: list[dict[str, Any]] = [
        {},
        {"template": "{context}\nB:"},
        {"chat": True},
        {"few_shot": FewShot(1, path=str(worked))},
        {"stop": ["x"]},
        {"max_new_tokens": 13},
        {"temperature": 0.5},
        {"temperature": 0.5, "seed": 1},
        {"temperature": 0.5, "samples": 2},
        {"batch_size": 3},
        {"limit": 1},
        {"judge": ExactMatch()},
        {"judge": Execution()},
    ]
    recipes = []
    for change in changes:
        task = Generation(sums, **by_number(**change))
        task.read()
        task.prepare(tokenizer)
        recipe = task.recipe()
        assert json.loads(json.dumps(recipe)) == recipe
        recipes.append(json.dumps(recipe))
    tokenizer.chat_template = tokenizer.chat_template.replace("<assistant>", "<model>")
    task = Generation(sums, **by_number(chat=True))
    task.read()
    task.prepare(tokenizer)
    recipes.append(json.dumps(task.recipe()))
    assert len(set(recipes)) == len(recipes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "`samples` of at least 1"),
        ({"temperature": -1.0}, "`temperature` and `seed` of at least 0"),
        ({"samples": 2}, "a `temperature` above 0 with 2 samples"),
        ({"pass_at": [2]}, r"every `pass_at` in \[1, 1\] but got \[2\]"),
        ({"pass_at": [0]}, r"every `pass_at` in \[1, 1\]"),
        ({"stop": ["a", ""]}, "`stop` to hold non-empty strings"),
        ({"max_new_tokens": 0}, "`max_new_tokens` of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Generation("rows.jsonl", **options)


def test_a_template_without_the_question_is_refused(sums: str) -> None:
    with pytest.raises(InputError, match=r"Expected the field \{context\}"):
        Generation(sums, **by_number(template="A:")).read()
