"""Multiple choice against one request at a time."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.metrics.flips import mcnemar
from prunelit.tasks import ItemTable, ModelPair, MultipleChoice
from prunelit.tasks.prompting.few_shot import FewShot


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


def measure(path: Path, pair: ModelPair, batch_size: int) -> tuple[MultipleChoice, ItemTable]:
    return run(MultipleChoice(str(path), batch_size=batch_size), pair)


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


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_log_likelihoods_are_those_of_single_requests(
    material: Path, pair: ModelPair, batch_size: int
) -> None:
    path = material / "questions.jsonl"
    _, table = measure(path, pair, batch_size)
    for name, model in pair.models().items():
        for row, measured in zip(rows_of(path), table[f"{name}/log_likelihood"], strict=True):
            naive = naive_scores(model, pair.tokenizer, row["context"], row["choices"])
            # Questions with fewer choices than the widest one are filled up with minus infinity.
            expected = naive + [-torch.inf] * (4 - len(naive))
            assert measured.tolist() == pytest.approx(expected, abs=2e-4)


def test_accuracies_and_byte_lengths(tmp_path: Path, pair: ModelPair) -> None:
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
    rows_out = {(r.metric, r.model): r for r in task.report(table).results}
    assert rows_out["acc", "pruned"].value == pytest.approx(chosen["plain"].count(0) / len(rows))
    assert rows_out["acc_norm", "pruned"].details["chance"] == 0.5


def test_chance_is_the_mean_over_questions(material: Path, pair: ModelPair) -> None:
    task, table = measure(material / "questions.jsonl", pair, 4)
    row = task.report(table).results[0]
    assert row.details["chance"] == pytest.approx((2 / 2 + 3 / 3 + 2 / 4) / 7)


def test_what_choices_have_in_common_is_read_once(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = MultipleChoice(str(material / "questions.jsonl"), split="train[3:5]")
    task.read()
    assert task.prepare(tokenizer) == 2
    # `gold` is read within `goldfish`; of the one-token answers 4 and 5 only the space is read.
    metal, digits = task.collate([0])["tree"], task.collate([1])["tree"]
    (stem,), (leaves,) = metal.stems, metal.leaves
    assert tokenizer.decode(stem.input_ids[0]) == "Question: Which is a metal?\nAnswer: "
    read = [ids[:n] for ids, n in zip(leaves.input_ids, leaves.lengths, strict=True)]
    assert sorted(map(tokenizer.decode, read)) == ["goldfis", "wate"]
    assert digits.leaves == []
    assert tokenizer.decode(digits.stems[0].input_ids[0]) == "Question: 2 + 3 =\nAnswer: "


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


@pytest.mark.parametrize("unconditional", ["Answer:", ""])
def test_pmi_takes_the_highest_gain(material: Path, pair: ModelPair, unconditional: str) -> None:
    path = material / "questions.jsonl"
    task = MultipleChoice(str(path), unconditional=unconditional, primary="acc_pmi")
    _, table = run(task, pair)
    start = unconditional or "<end>"  # the tokenizer's only special token
    changed = 0
    for index, row in enumerate(rows_of(path)):
        free = [single(pair, start, f" {choice}") for choice in row["choices"]]
        measured = table["pruned/unconditional"][index, : len(free)]
        assert measured.tolist() == pytest.approx(free, abs=2e-4)
        given = naive_scores(pair.pruned, pair.tokenizer, row["context"], row["choices"])
        gain = [a - b for a, b in zip(given, free, strict=True)]
        changed += gain.index(max(gain)) != given.index(max(given))
        assert table["pruned/acc_pmi"][index] == (gain.index(max(gain)) == row["label"])
    assert changed
    found = {row.metric for row in task.report(table).results}
    assert found >= {"acc_pmi", "agreement", "mcnemar_p"}


def test_token_normalisation_divides_by_the_tokens_scored(tmp_path: Path, pair: ModelPair) -> None:
    # Bytes are the tokens of this tokenizer, so that the delimiter is what makes the difference.
    words = ["a", "bcdefg", "hi", "jklmnopqrst", "uv", "wxyz!?"]
    rows = [
        {"id": f"{i}{j}", "context": f"{first}?", "choices": [first, second], "label": 0}
        for i, first in enumerate(words)
        for j, second in enumerate(words)
        if i != j
    ]
    _, table = run(MultipleChoice(write(tmp_path / "r.jsonl", rows), delimiter="    "), pair)
    norms = {"acc_norm": 0, "acc_token_norm": 4}
    expected: dict[str, list[float]] = {metric: [] for metric in norms}
    for index, row in enumerate(rows):
        scores = table["pruned/log_likelihood"][index].tolist()
        for metric, more in norms.items():
            normed = [s / (len(c) + more) for s, c in zip(scores, row["choices"], strict=True)]
            expected[metric].append(float(normed[0] >= normed[1]))
    assert expected["acc_norm"] != expected["acc_token_norm"]
    for metric, values in expected.items():
        assert table[f"pruned/{metric}"].tolist() == values


def test_dense_and_pruned_are_paired(material: Path, pair: ModelPair) -> None:
    task, table = measure(material / "questions.jsonl", pair, 4)
    rows = {(row.metric, row.model): row for row in task.report(table).results}
    label = torch.tensor([row["label"] for row in rows_of(material / "questions.jsonl")])
    dense, pruned = (table[f"{name}/log_likelihood"].argmax(1) for name in ("dense", "pruned"))
    wrong = int(((dense == label) & (pruned != label)).sum())
    right = int(((dense != label) & (pruned == label)).sum())
    assert rows["agreement", "pair"].value == pytest.approx(
        (dense == pruned).double().mean().item()
    )
    assert rows["flips_to_wrong", "pair"].value == pytest.approx(wrong / 7)
    assert rows["flips_to_right", "pair"].value == pytest.approx(right / 7)
    test = rows["mcnemar_p", "pair"]
    assert test.value == pytest.approx(mcnemar(wrong, right))
    assert math.isnan(test.standard_error)
    assert test.details["flips_to_wrong"] == wrong
    assert wrong + right
    accuracy = rows["acc", "difference"].value
    assert accuracy == pytest.approx((right - wrong) / 7)


def test_probabilities_of_the_choices_are_judged(material: Path, pair: ModelPair) -> None:
    task, table = measure(material / "questions.jsonl", pair, 4)
    rows = {(row.metric, row.model): row for row in task.report(table).results}
    label = torch.tensor([row["label"] for row in rows_of(material / "questions.jsonl")])
    p = table["dense/log_likelihood"].softmax(1)
    right = torch.nn.functional.one_hot(label, 4)
    assert rows["brier", "dense"].value == pytest.approx(((p - right) ** 2).sum(1).mean().item())
    expected = multiclass_calibration_error(p, label, num_classes=4, n_bins=15, norm="l1")
    assert rows["calibration_error", "dense"].value == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_batches_do_not_depend_on_the_number_of_ranks(
    material: Path, pair: ModelPair, world: int
) -> None:
    task = MultipleChoice(str(material / "questions.jsonl"), batch_size=2)
    task.read()
    size = task.prepare(pair.tokenizer)
    ranks = [[b["indices"].tolist() for b in task.batches(size, r, world)] for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    dealt = [batch for batches in ranks for batch in batches if batch]
    assert sorted(dealt) == sorted(task.chunks(size))
    assert sorted(index for batch in dealt for index in batch) == list(range(7))


def test_a_pass_over_the_items_shares_what_was_read_and_the_next_reads_anew(
    material: Path, pair: ModelPair
) -> None:
    task = MultipleChoice(str(material / "questions.jsonl"), few_shot=FewShot(2), batch_size=2)
    _, before = run(task, pair)
    with torch.no_grad():  # the pruned model is pruned further between two validations
        pair.pruned.get_parameter("model.layers.0.mlp.down_proj.weight").zero_()
    _, after = run(task, pair)
    _, fresh = run(MultipleChoice(task.path, few_shot=FewShot(2), batch_size=2), pair)
    assert after["pruned/log_likelihood"].equal(fresh["pruned/log_likelihood"])
    assert not after["pruned/log_likelihood"].equal(before["pruned/log_likelihood"])
    assert after["dense/log_likelihood"].equal(before["dense/log_likelihood"])
    batches = [batch["shared_prefix"] for batch in task.batches(7, 0, 1)]
    assert len(set(map(id, batches))) == 1


def test_the_longest_sequence_counts_examples(material: Path, pair: ModelPair) -> None:
    task = MultipleChoice(str(material / "questions.jsonl"), few_shot=FewShot(3))
    task.read()
    task.prepare(pair.tokenizer)
    tokens = pair.tokenizer
    every = [
        len(tokens(before + prompt + rest)["input_ids"]) - 1
        for before, own in zip(task._preambles, task._texts, strict=True)
        for prompt, rest in own
    ]
    assert task.longest == max(every)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"primary": "acc_pmi"}, "Expected `primary` to be one of"),
        ({"template": "Answer:"}, r"Expected the field \{context\}"),
        ({"scoring": "letter"}, r"Expected the field \{choices\}"),
        (
            {"scoring": "letter", "template": "{context}{choices}", "primary": "acc_norm"},
            "Expected `primary` to be one of",
        ),
        (
            {"scoring": "partial", "template": "{context}", "unconditional": ""},
            "Expected no `unconditional`",
        ),
        ({"few_shot": FewShot(7)}, "Expected 7 examples besides the question 'capital'"),
        ({"description": "About {group}."}, "Expected rows with a `group`"),
    ],
)
def test_what_does_not_fit_together_is_refused_while_reading(
    material: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        MultipleChoice(str(material / "questions.jsonl"), **options).read()


def test_a_choice_without_tokens_of_its_own_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "x", "context": "A?", "choices": ["b", "c"], "label": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    task = MultipleChoice(str(tmp_path / "rows.jsonl"))
    task.read()
    # A tokenizer that merges the choice into the last token of the prompt.
    monkeypatch.setattr(
        "prunelit.tasks.prompting.choices.encode_all", lambda _, texts: [[1, 2, 3] for _ in texts]
    )
    with pytest.raises(InputError, match="row 'x' adds no token to the prompt"):
        task.prepare(tokenizer)


def test_a_text_that_occurs_twice_counts_once(tmp_path: Path, pair: ModelPair) -> None:
    rows = [
        {"id": str(n), "context": "Capital?", "choices": ["b", "a", "c", "a"], "label": label}
        for n, label in enumerate([1, 3])
    ]
    for scoring, template in (("continuation", "{context}"), ("letter", "{context}{choices}")):
        path = write(tmp_path / f"{scoring}.jsonl", rows)
        task, table = run(MultipleChoice(path, template=template, scoring=scoring), pair)
        for metric in (*task._accuracies(), "brier"):
            first, second = table[f"pruned/{metric}"].tolist()
            assert first == second
        assert table["pruned/log_likelihood"][0, 3] == -math.inf


def test_fixed_answers_have_the_most_frequent_as_floor(tmp_path: Path, pair: ModelPair) -> None:
    labels = [0] * 8 + [1] * 3 + [2]
    rows = [
        {"id": str(n), "context": f"Text {n}?", "choices": ["no", "yes", "so"], "label": label}
        for n, label in enumerate(labels)
    ]
    task, table = run(MultipleChoice(write(tmp_path / "r.jsonl", rows), primary="acc_norm"), pair)
    always = torch.tensor([[0.0, -90.0, -90.0]] * 12, dtype=torch.float64)
    table._columns["pruned/log_likelihood"] = always
    table._columns["dense/log_likelihood"] = always.clone().fill_diagonal_(-99)
    table._columns["pruned/acc_norm"] = torch.tensor([float(label == 0) for label in labels])
    with pytest.warns(UserWarning, match="The pruned model chooses 'no' for each of the 12"):
        results = task.report(table).results
    found = {(row.metric, row.model): row for row in results}
    pruned = found["acc_norm", "pruned"]
    assert pruned.details["chance"] == pytest.approx(8 / 12) == pytest.approx(pruned.value)
    assert found["balanced_acc_norm", "pruned"].value == pytest.approx(1 / 3)
    assert found["chosen/no", "pruned"].value == 1
    assert [found[f"acc_norm/{c}", "pruned"].value for c in ("no", "yes", "so")] == [1, 0, 0]
    assert found["acc_norm/yes", "pruned"].n == 3
    scores = {metric: row.details["score"] for (metric, _), row in found.items()}
    assert {scores[name] for name in ("agreement", "mcnemar_p", "retained")} == {"acc_norm"}
    assert {scores[name] for name in ("acc", "brier", "calibration_error")} == {"acc"}


def test_balanced_accuracy_as_the_main_score(tmp_path: Path, pair: ModelPair) -> None:
    labels = [0] * 8 + [1] * 4
    rows = [
        {"id": str(n), "context": f"Text {n}?", "choices": ["no", "yes", "so"], "label": label}
        for n, label in enumerate(labels)
    ]
    path = write(tmp_path / "r.jsonl", rows)
    task, table = run(MultipleChoice(path, primary="balanced_acc_norm"), pair)
    answers = -torch.eye(3, dtype=torch.float64)[[0, 1, 2] * 4]
    for name in ("dense", "pruned"):
        table._columns[f"{name}/log_likelihood"] = answers
    report = task.report(table)
    found = {(row.metric, row.model): row for row in report.results}
    kept = found["retained", "pair"].details
    assert kept["primary"] == kept["score"] == "balanced_acc_norm"
    assert kept["chance"] == 1 / 2  # no question has the third answer
    for name in ("dense", "pruned"):
        assert kept[name] == pytest.approx(found["balanced_acc_norm", name].value)
    assert report.scores is not None
    assert report.scores.weights is not None
    assert report.scores.weights.tolist() == [0.75] * 8 + [1.5] * 4
    assert found["agreement", "pair"].details["score"] == "acc_norm"
    rows[0]["choices"] = ["no", "yes", "or"]
    with pytest.raises(InputError, match=r"equal choices .*'balanced_acc': give 'acc'"):
        MultipleChoice(write(tmp_path / "o.jsonl", rows), primary="balanced_acc").read()


def test_items_have_the_answer_of_each_model(material: Path, pair: ModelPair) -> None:
    task, table = measure(material / "questions.jsonl", pair, 4)
    report = task.report(table)
    items = list(report.items)
    questions = rows_of(material / "questions.jsonl")
    assert [(row["item"], row["model"]) for row in items] == [
        (number, model) for number in range(len(questions)) for model in ("dense", "pruned")
    ]
    for row in items:
        question = questions[row["item"]]
        own = naive_scores(
            pair.models()[row["model"]], pair.tokenizer, question["context"], question["choices"]
        )
        assert row["prompt"] == question["context"]
        assert row["answer"] == question["choices"][own.index(max(own))]
        assert row["log_likelihood"] == pytest.approx(max(own), abs=2e-4)
        assert row["right_acc"] == (row["answer"] == row["target"])
    for model in ("dense", "pruned"):
        right = [row["right_acc_norm"] for row in items if row["model"] == model]
        (mean,) = [
            one.value for one in report.results if (one.metric, one.model) == ("acc_norm", model)
        ]
        assert sum(right) / len(right) == pytest.approx(mean)
