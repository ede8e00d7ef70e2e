"""Classification against a plain fit in NumPy, and the rows that it trains and tests on."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.report.results import Result
from prunelit.report.task_report import TaskReport
from prunelit.tasks import Classification, ItemTable, ModelPair

TEMPLATE = 'The text "{text}" is'
TOPICS = {"billing": ["pay", "gold", "milk"], "login": ["door", "key", "tall"], "other": ["ice"]}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(0)
    found = []
    for number in range(36):
        label = ["billing", "billing", "login", "other"][number % 4]
        words = [*rng.choice(TOPICS[label], size=rng.integers(1, 4)).tolist(), f"w{number}"]
        found.append({"text": " ".join(words), "label": label})
    return found


@pytest.fixture
def path(tmp_path: Path, rows: Rows) -> str:
    return write(tmp_path / "rows.jsonl", rows)


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@torch.no_grad()
def run(
    path: str, pair: ModelPair, world: int = 1, **arguments: Any
) -> tuple[TaskReport, Classification]:
    task = Classification(path, **{"template": TEMPLATE, "batch_size": 5, **arguments})
    task.read()
    table = ItemTable(task.prepare(pair.tokenizer))
    for rank in range(world):
        for batch in task.batches(table.size, rank, world):
            if len(batch["indices"]):
                table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    return task.report(table), task


def by_name(report: TaskReport) -> dict[tuple[str, str], Result]:
    return {(row.metric, row.model): row for row in report.results}


def alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    ids = torch.tensor([tokenizer(TEMPLATE.format(text=text))["input_ids"]])
    with torch.no_grad():
        return model.base_model(input_ids=ids).last_hidden_state[0, -1].double().numpy()


def plain_fit(x: np.ndarray, y: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Softmax regression with 1/2 |W|^2, the intercepts free: the labels that it gives."""
    mean, std = x.mean(0), x.std(0)
    x, tested = (x - mean) / std, (tested - mean) / std
    count, size = int(y.max()) + 1, x.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: count * size].reshape(count, size), flat[count * size :]
        logits = x @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        value = -np.log(p[np.arange(len(y)), y]).sum() + (weight**2).sum() / 2
        slope = p - np.eye(count)[y]
        return value, np.concatenate([(slope.T @ x + weight).ravel(), slope.sum(0)])

    flat = minimize(loss, np.zeros(count * (size + 1)), jac=True, method="L-BFGS-B").x
    weight, bias = flat[: count * size].reshape(count, size), flat[count * size :]
    return (tested @ weight.T + bias).argmax(1)


def test_it_is_a_linear_classifier_on_the_embeddings_of_the_same_model(
    tmp_path: Path, pair: ModelPair, rows: Rows
) -> None:
    train, test = rows[:20], rows[20:]
    files = [write(tmp_path / f"{name}.jsonl", own) for name, own in (("a", test), ("b", train))]
    report, _ = run(files[0], pair, train=files[1])
    found, classes = by_name(report), sorted(TOPICS)
    y = np.array([classes.index(row["label"]) for row in train])
    gold = np.array([classes.index(row["label"]) for row in test])
    right: dict[str, np.ndarray] = {}
    for name, model in pair.models().items():
        vectors = [
            np.stack([alone(model, pair.tokenizer, row["text"]) for row in own])
            for own in (train, test)
        ]
        given = plain_fit(vectors[0], y, vectors[1])
        right[name] = given == gold
        assert found["acc", name].value == pytest.approx(right[name].mean())
        per_class = [right[name][gold == number].mean() for number in range(3)]
        for number, label in enumerate(classes):
            assert found[f"acc/{label}", name].value == pytest.approx(per_class[number])
            share = (given == number).mean()
            assert found[f"chosen/{label}", name].value == pytest.approx(share)
        assert found["balanced_acc", name].value == pytest.approx(np.mean(per_class))
    assert right["dense"].mean() > 0.5  # the embeddings tell the topics apart
    most = Counter(gold.tolist()).most_common(1)[0]
    kept = found["retained", "pair"].details
    assert kept["use"] == "classification"
    assert kept["chance"] == pytest.approx(most[1] / len(gold))
    assert kept["dense"] == pytest.approx(right["dense"].mean())
    assert found["balanced_acc", "dense"].details["chance"] == pytest.approx(1 / 3)
    assert report.scores is not None
    assert report.scores.floor.tolist() == (gold == most[0]).astype(float).tolist()
    flips = (right["dense"] & ~right["pruned"]).mean()
    assert found["flips_to_wrong", "pair"].value == pytest.approx(flips)
    items = list(report.items)
    assert [row["right_acc"] for row in items if row["model"] == "pruned"] == [*right["pruned"]]
    assert items[0]["prompt"] == test[0]["text"]
    assert 1 / 3 <= items[0]["probability"] <= 1


def test_one_file_is_divided_with_the_same_share_of_each_label(
    path: str, pair: ModelPair, rows: Rows
) -> None:
    report, task = run(path, pair)
    tested = {row.number for row in task._test}
    assert tested.isdisjoint(row.number for row in task._train)
    for part in (task._test, task._train):
        counts = Counter(row.label for row in part)
        assert counts["billing"] == 9
        assert counts["login"] in (4, 5)
        assert counts["other"] in (4, 5)
    again, _ = run(path, pair, world=3)
    assert again.results == report.results
    _, other = run(path, pair, seed=1)
    assert {row.number for row in other._test} != tested


def test_a_draw_of_each_label(path: str, pair: ModelPair) -> None:
    _, task = run(path, pair, train_split="train[:60%]", split="test[60%:]", samples_per_label=2)
    assert Counter(row.label for row in task._train) == dict.fromkeys(TOPICS, 2)
    assert {row.number for row in task._test} == set(range(14))  # counted in its split


def test_balanced_accuracy_as_the_main_score(path: str, pair: ModelPair) -> None:
    report, _ = run(path, pair, primary="balanced_acc")
    found = by_name(report)
    kept = found["retained", "pair"].details
    assert kept["score"] == "balanced_acc"
    for name in ("dense", "pruned"):
        assert kept[name] == pytest.approx(found["balanced_acc", name].value)
    assert kept["chance"] == pytest.approx(1 / 3)
    assert report.scores is not None
    assert report.scores.weights is not None
    assert "right_balanced_acc" in next(iter(report.items))


def test_labels_are_texts_or_whole_numbers(tmp_path: Path, pair: ModelPair, rows: Rows) -> None:
    names = sorted(TOPICS)
    numbered = [{**row, "label": names.index(row["label"])} for row in rows]
    report, _ = run(write(tmp_path / "numbers.jsonl", numbered), pair)
    table = tmp_path / "rows.csv"
    lines = [f"{row['text']},{row['label']}" for row in numbered]
    table.write_text("\n".join(["message,intent", *lines]))
    from_csv, _ = run(str(table), pair, text="message", label="intent")
    values = [[row.value for row in one.results] for one in (report, from_csv)]
    assert values[0] == pytest.approx(values[1], nan_ok=True)
    for wrong in (None, 1.5, ["a"], " "):
        file = write(tmp_path / "wrong.jsonl", [*rows[:3], {"text": "a", "label": wrong}])
        with pytest.raises(InputError, match=r"Row 3 .*`label` must be a text or a whole number"):
            Classification(file).read()


def test_test_rows_that_were_trained_on(tmp_path: Path, path: str, rows: Rows) -> None:
    with pytest.raises(InputError, match=r"36 of 36 test texts .*`split: train\[50%:\]`"):
        Classification(path, split="test", train_split="train").read()
    some = write(
        tmp_path / "some.jsonl", [{**rows[0], "text": f" {rows[0]['text']}\n"}, *rows[30:]]
    )
    train = write(tmp_path / "train.jsonl", rows[:20])
    with pytest.warns(UserWarning, match=r"1 of 7 test texts .* the first is row 0"):
        Classification(some, train=train).read()


def test_labels_without_enough_rows(tmp_path: Path, rows: Rows) -> None:
    single = write(tmp_path / "single.jsonl", [*rows[:8], {"text": "a b", "label": "rare"}])
    with pytest.raises(InputError, match=r"Row 8 .*only row with the label 'rare'"):
        Classification(single).read()
    with pytest.raises(InputError, match=r"cannot be divided with `test_share` 0\.1"):
        Classification(write(tmp_path / "few.jsonl", rows[:8]), test_share=0.1).read()
    one = write(tmp_path / "one.jsonl", [{"text": str(n), "label": "a"} for n in range(9)])
    with pytest.raises(InputError, match=r"at least two labels .*but got the labels \['a'\]"):
        Classification(one).read()
    train = write(tmp_path / "train.jsonl", rows[:8])
    with pytest.warns(UserWarning, match="1 of 9 test rows .* no training row has.*'rare'"):
        Classification(single, train=write(tmp_path / "t.jsonl", rows[9:20])).read()
    for wrong in ({"primary": "f1"}, {"test_share": 1.0}, {"samples_per_label": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Classification(train, **wrong)


def test_a_fit_that_is_not_finished_is_told(path: str, pair: ModelPair) -> None:
    with pytest.warns(UserWarning, match="still changing after 1 steps: raise `max_iter`"):
        run(path, ModelPair(pair.pruned, None, pair.tokenizer), max_iter=1)
