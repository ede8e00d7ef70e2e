"""Multiple choice against one request at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.tasks import ItemTable, MultipleChoice, Pair
from prunelit.tasks.multiple_choice import split_tokens


def naive_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: str, choices: list[str]
) -> list[float]:
    """The log-likelihood of each choice: one forward pass each, all logits, no padding."""
    scores = []
    prompt = tokenizer(f"Question: {context}\nAnswer:")["input_ids"]
    for choice in choices:
        ids = torch.tensor([prompt + tokenizer(f" {choice}")["input_ids"]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
        every = log_p.gather(1, ids[0, 1:, None])[:, 0]
        scores.append(every[len(prompt) - 1 :].sum().item())
    return scores


@torch.no_grad()
def measure(path: Path, pair: Pair, batch_size: int) -> tuple[MultipleChoice, ItemTable]:
    task = MultipleChoice(str(path), batch_size=batch_size)
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    return task, table


@pytest.fixture
def pair(make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Pair:
    return Pair(make_model("llama", seed=1), make_model("qwen3", seed=0), tokenizer)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_log_likelihoods_are_those_of_single_requests(
    material: Path, pair: Pair, batch_size: int
) -> None:
    path = material / "questions.jsonl"
    _, table = measure(path, pair, batch_size)
    for name, model in pair.models().items():
        for row, measured in zip(rows_of(path), table[f"{name}/log_likelihood"], strict=True):
            naive = naive_scores(model, pair.tokenizer, row["context"], row["choices"])
            # Questions with fewer choices than the widest one are filled up with minus infinity.
            expected = naive + [-torch.inf] * (4 - len(naive))
            assert measured.tolist() == pytest.approx(expected, abs=2e-4)


def test_accuracies_and_byte_lengths(tmp_path: Path, pair: Pair) -> None:
    # A character of 東京 has three bytes, so that normalising by characters chooses differently.
    words = ["東京", "Málaga", "Oslo", "gold", "goldfish", "ñandú", "a"]
    rows = [
        {"id": f"{i}{j}", "context": f"{first}?", "choices": [first, second], "label": 0}
        for i, first in enumerate(words)
        for j, second in enumerate(words)
        if i != j
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, table = measure(path, pair, 8)
    chosen: dict[str, list[int]] = {"plain": [], "bytes": [], "characters": []}
    for row in rows:
        scores = naive_scores(pair.pruned, pair.tokenizer, row["context"], row["choices"])
        sizes = {
            "plain": [1, 1],
            "bytes": [len(choice.encode("utf-8")) for choice in row["choices"]],
            "characters": [len(choice) for choice in row["choices"]],
        }
        for kind, size in sizes.items():
            normed = [score / n for score, n in zip(scores, size, strict=True)]
            chosen[kind].append(normed.index(max(normed)))
    assert chosen["bytes"] != chosen["characters"]
    assert chosen["bytes"] != chosen["plain"]
    assert table["pruned/acc"].tolist() == [float(c == 0) for c in chosen["plain"]]
    assert table["pruned/acc_norm"].tolist() == [float(c == 0) for c in chosen["bytes"]]
    rows_out = {(r.metric, r.model): r for r in task.summarise(table)}
    assert rows_out["acc", "pruned"].value == pytest.approx(chosen["plain"].count(0) / len(rows))
    assert rows_out["acc_norm", "pruned"].details["chance"] == 0.5


def test_chance_is_the_mean_over_questions(material: Path, pair: Pair) -> None:
    task, table = measure(material / "questions.jsonl", pair, 4)
    row = task.summarise(table)[0]
    assert row.details["chance"] == pytest.approx((2 / 2 + 3 / 3 + 2 / 4) / 7)


def test_choices_that_begin_alike_share_a_forward_pass(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = MultipleChoice(str(material / "questions.jsonl"), split="train[3:5]")
    task.read()
    assert task.prepare(tokenizer) == 2
    # `gold` is read within `goldfish`; of the one-token answers 4 and 5 only the space is read.
    metal, digits = task.collate([0]), task.collate([1])
    assert metal["input_ids"].shape[0] == 2
    assert len(metal["spans"]) == 3
    assert digits["input_ids"].shape[0] == 1
    assert digits["spans"][0].equal(digits["spans"][1])


def test_spaces_at_the_end_of_the_context_belong_to_the_continuation(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    context, continuation = split_tokens(tokenizer, "Answer:  ", "no")
    assert tokenizer.decode(context) == "Answer:"
    assert tokenizer.decode(continuation) == "  no"


def test_a_template_without_the_context_is_refused_while_reading(material: Path) -> None:
    task = MultipleChoice(str(material / "questions.jsonl"), template="Answer:")
    with pytest.raises(InputError, match=r"Expected the field \{context\}"):
        task.read()


def test_a_choice_without_tokens_of_its_own_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "x", "context": "A?", "choices": ["b", "c"], "label": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    task = MultipleChoice(str(tmp_path / "rows.jsonl"))
    task.read()
    # A tokenizer that merges the choice into the last token of the prompt.
    monkeypatch.setattr("prunelit.tasks.multiple_choice.encode", lambda *_: [1, 2, 3])
    with pytest.raises(InputError, match="row 'x' adds no token to the prompt"):
        task.prepare(tokenizer)
