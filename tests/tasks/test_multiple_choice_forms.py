"""Letters, blanks, examples and groups against one request at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.tasks import ItemTable, ModelPair, MultipleChoice
from prunelit.tasks.prompting.few_shot import FewShot


@torch.no_grad()
def run(task: MultipleChoice, pair: ModelPair) -> tuple[MultipleChoice, ItemTable]:
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    return task, table


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("qwen3", seed=0), tokenizer)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def single(pair: ModelPair, context: str, continuation: str) -> float:
    """The log-likelihood of a continuation: one forward pass, all logits."""
    tokenizer = pair.tokenizer
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.no_grad():
        log_p = torch.log_softmax(pair.pruned(input_ids=ids).logits[0, :-1].double(), -1)
    cut = len(tokenizer(context)["input_ids"]) - 1
    return log_p.gather(1, ids[0, 1:, None])[cut:, 0].sum().item()


def log_likelihoods(task: MultipleChoice, pair: ModelPair) -> list[list[float]]:
    _, table = run(task, pair)
    rows = table["pruned/log_likelihood"].tolist()
    return [[score for score in row if score != -torch.inf] for row in rows]


def test_letters_after_examples_of_another_file(
    tmp_path: Path, material: Path, pair: ModelPair
) -> None:
    shots = [
        {"id": f"{i}", "context": f"{i}+{i}=", "choices": [str(i), str(2 * i)], "label": 1}
        for i in (1, 2, 3)
    ]
    task = MultipleChoice(
        str(material / "questions.jsonl"),
        scoring="letter",
        template="{context}\n{choices}\nAnswer:",
        description="Choose.\n\n",
        few_shot=FewShot(2, path=write(tmp_path / "shots.jsonl", shots)),
        batch_size=3,
    )
    found = log_likelihoods(task, pair)
    before = "Choose.\n\n1+1=\nA. 1\nB. 2\nAnswer: B\n\n2+2=\nA. 2\nB. 4\nAnswer: B\n\n"
    for row, scores in zip(rows_of(material / "questions.jsonl"), found, strict=True):
        letters = "ABCD"[: len(row["choices"])]
        listed = "".join(f"{a}. {c}\n" for a, c in zip(letters, row["choices"], strict=True))
        prompt = f"{before}{row['context']}\n{listed}Answer:"
        expected = [single(pair, prompt, f" {letter}") for letter in letters]
        assert scores == pytest.approx(expected, abs=2e-4)
    # The examples are the root of every question: read once for all batches.
    assert len(task.chunks(7)) == 3
    (root,) = {tuple(task.collate([index])["tree"].root.tolist()) for index in range(7)}
    assert pair.tokenizer.decode(root) == before


def test_examples_of_the_same_rows_are_never_the_question(material: Path, pair: ModelPair) -> None:
    path = str(material / "questions.jsonl")
    task = MultipleChoice(path, few_shot=FewShot(2))
    found = log_likelihoods(task, pair)
    rows = rows_of(Path(path))
    for index, scores in enumerate(found):
        others = [row for row in rows[:3] if row != rows[index]][:2]
        before = "".join(
            f"Question: {row['context']}\nAnswer: {row['choices'][row['label']]}\n\n"
            for row in others
        )
        prompt = f"{before}Question: {rows[index]['context']}\nAnswer:"
        expected = [single(pair, prompt, f" {choice}") for choice in rows[index]["choices"]]
        assert scores == pytest.approx(expected, abs=2e-4)


def test_choices_in_another_order_make_no_other_question(tmp_path: Path, pair: ModelPair) -> None:
    rows = [
        {"id": "0", "context": "One?", "choices": ["no", "yes"], "label": 1},
        {"id": "1", "context": "One?", "choices": ["yes", "no"], "label": 0},
        {"id": "2", "context": "One?", "choices": ["no", "yes", "so"], "label": 2},
    ]
    task = MultipleChoice(write(tmp_path / "rows.jsonl", rows), few_shot=FewShot(1))
    task.read()
    before = [text.partition("Answer:")[2].strip() for text in task._preambles]
    assert before == ["so", "so", "yes"]


def test_partial_scoring_scores_the_rest_of_the_sentence(tmp_path: Path, pair: ModelPair) -> None:
    rows = [
        {"id": "a", "context": "The _ is too small.", "choices": ["box", "cup"], "label": 0},
        {"id": "b", "context": "_ thanked Emma.", "choices": ["Lena", "Eve"], "label": 1},
    ]
    task = MultipleChoice(
        write(tmp_path / "r.jsonl", rows), scoring="partial", template="{context}"
    )
    assert log_likelihoods(task, pair) == [
        pytest.approx([single(pair, f"The {word}", " is too small.") for word in ("box", "cup")]),
        pytest.approx([single(pair, word, " thanked Emma.") for word in ("Lena", "Eve")]),
    ]
    metrics = {row.metric for row in task.report(run(task, pair)[1]).results}
    assert not metrics & {"acc_norm", "acc_token_norm"}  # the same as `acc`


def test_groups_have_rows_and_examples_of_their_own(tmp_path: Path, pair: ModelPair) -> None:
    rows = [
        {
            "id": f"{group}{i}",
            "context": f"{group}: {i}+1=",
            "choices": [str(i), str(i + 1)],
            "label": i % 2,
            "group": group,
        }
        for i in range(4)
        for group in ("easy_sums", "sums")
    ]
    task = MultipleChoice(
        write(tmp_path / "r.jsonl", rows),
        description="About {group}.\n\n",
        few_shot=FewShot(1, split="train[:2]"),
        split="train[2:]",
    )
    scores = log_likelihoods(task, pair)
    for row, found in zip(rows[2:], scores, strict=True):
        group = row["group"]
        before = f"About {group.replace('_', ' ')}.\n\nQuestion: {group}: 0+1=\nAnswer: 0\n\n"
        prompt = f"{before}Question: {row['context']}\nAnswer:"
        expected = [single(pair, prompt, f" {choice}") for choice in row["choices"]]
        assert found == pytest.approx(expected, abs=2e-4)
    _, table = run(task, pair)
    results = {(row.metric, row.model): row for row in task.report(table).results}
    for group in ("easy_sums", "sums"):
        members = [i for i, row in enumerate(rows[2:]) if row["group"] == group]
        own = results[f"acc/{group}", "pruned"]
        assert own.n == 3
        assert own.details["group"] == group
        assert own.value == pytest.approx(table["pruned/acc"][members].mean().item())
    # Questions of two groups, which begin differently, are never in one batch.
    assert [sorted(rows[2 + i]["group"] for i in chunk) for chunk in task.chunks(6)] == [
        ["easy_sums"] * 3,
        ["sums"] * 3,
    ]
