"""The task `Subspace`: its means, collisions, batches and ranks, and what it shows."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import InputError
from prunelit.data.tokens import SpecialTokens
from prunelit.tasks import ModelPair
from prunelit.tasks.subspace import QUANTITIES, Subspace

MakeModel = Callable[..., PreTrainedModel]
Measure = Callable[..., Any]


def test_rows_are_means_over_the_questions_that_have_a_subspace(
    questions: Callable[..., str], words_pair: ModelPair, subspace: Measure
) -> None:
    rows, _, table = subspace(questions(), words_pair)
    for name in (*QUANTITIES, "subspace_kl_dense_pruned", "subspace_probability_cosine"):
        row, values = rows[name, "pair"], table[name].numpy()
        assert row.n == 4
        assert row.value == pytest.approx(values.mean())
        assert row.standard_error == pytest.approx(values.std(ddof=1) / 2)
    for name in ("acc", "option_mass", "log_likelihood_right", "log_likelihood_wrong"):
        change = (table[f"pruned/{name}"] - table[f"dense/{name}"]).numpy()
        row = rows[name, "difference"]
        assert row.value == pytest.approx(change.mean())
        assert row.standard_error == pytest.approx(change.std(ddof=1) / 2)
    same = table["dense/prediction"] == table["pruned/prediction"]
    assert rows["subspace_top1_agreement", "pair"].value == same.double().mean()
    assert ("subspace_embedding_cosine", "pair") not in rows
    details = rows["acc", "dense"].details
    assert details["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert details["rows_with_tokens_shared_by_all_options"] == 1


def test_collisions_are_counted_and_left_out(
    questions: Callable[..., str],
    words_pair: ModelPair,
    subspace: Measure,
    option_rows: list[dict[str, Any]],
) -> None:
    rows, _, table = subspace(questions(), words_pair)
    row = rows["collisions", "pair"]
    assert (row.value, row.n) == (pytest.approx(1 / 5), 5)
    assert row.standard_error == pytest.approx(math.sqrt(0.2 * 0.8 / 4))
    assert (row.details["rows"], row.details["rows_with_collisions"]) == (5, 1)
    without, _, other = subspace(
        questions([row for row in option_rows if row["id"] != "c"]), words_pair
    )
    assert other["dense/prediction"].equal(table["dense/prediction"])
    assert without["acc", "dense"].value == rows["acc", "dense"].value
    assert without["collisions", "pair"].value == 0


@pytest.mark.parametrize("choices", [["Rye", "Rye"], ["Pa", "Paris"], ["no", "Pe", "Pa"]])
def test_what_collides(
    choices: list[str],
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    prepare_subspace: Callable[..., Subspace],
    option_rows: list[dict[str, Any]],
) -> None:
    bad = {"id": "z", "context": "Z?", "choices": choices, "label": 0}
    task = prepare_subspace(questions([option_rows[0], bad]), words)
    assert [item.number for item in task._items] == [0]
    with pytest.raises(InputError, match=r"in every row of .* two options have the same one"):
        prepare_subspace(questions([bad]), words)


def test_a_model_does_not_differ_from_its_copy(
    family: str,
    make_model: MakeModel,
    words: PreTrainedTokenizerBase,
    questions: Callable[..., str],
    subspace: Measure,
) -> None:
    dense = make_model(family)
    rows, _, _ = subspace(questions(), ModelPair(copy.deepcopy(dense), dense, words))
    for (name, model), row in rows.items():
        if model == "difference":
            assert row.value == row.standard_error == 0, name
        elif model == "pair" and name != "collisions":
            same = 1 if "cosine" in name or "agreement" in name else 0
            assert row.value == pytest.approx(same, abs=1e-6), name


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_does_not_matter(
    batch_size: int, questions: Callable[..., str], words_pair: ModelPair, subspace: Measure
) -> None:
    expected, _, _ = subspace(questions(), words_pair)
    rows, _, _ = subspace(questions(), words_pair, batch_size=batch_size)
    assert {key: row.value for key, row in rows.items()} == pytest.approx(
        {key: row.value for key, row in expected.items()}, rel=1e-4, abs=1e-5
    )


def test_two_ranks_give_what_one_gives(
    questions: Callable[..., str], words_pair: ModelPair, subspace: Measure
) -> None:
    _, _, expected = subspace(questions(), words_pair)
    _, _, table = subspace(questions(), words_pair, world=2)
    assert table.columns() == expected.columns()
    for name in table.columns():
        torch.testing.assert_close(table[name], expected[name], rtol=0, atol=0, equal_nan=True)


def test_shown_rows_as_texts_and_pictures(
    questions: Callable[..., str],
    words_pair: ModelPair,
    subspace: Measure,
    option_rows: list[dict[str, Any]],
) -> None:
    rows, task, table = subspace(questions(), words_pair, show=[3, 0], top_k=3)
    first, second = list(task.report(table).texts)
    assert first["prompt"] == "Question: How many?\nAnswer: "
    assert first["options"] == "4\n5\n72 (right)"
    assert second["dense"] == option_rows[0]["choices"][table["dense/prediction"][0]]
    assert second["pruned"] == option_rows[0]["choices"][table["pruned/prediction"][0]]
    assert len(second["top tokens pruned"].splitlines()) == 3
    pictures = dict(task.report(table).pictures)
    assert [*pictures] == [
        "subspace_spaces",
        "subspace_options",
        "subspace_theory",
        "subspace_item_3",
        "subspace_item_0",
    ]
    spaces = pictures["subspace_spaces"].numbers
    place = list(zip(spaces["quantity"], spaces["tokens"], strict=True)).index(
        ("kl_dense_pruned", "options")
    )
    assert spaces["mean"][place] == rows["subspace_kl_dense_pruned", "pair"].value
    assert (
        spaces["standard_error"][place] == rows["subspace_kl_dense_pruned", "pair"].standard_error
    )
    item = pictures["subspace_item_0"].numbers
    values = [v for v, part in zip(item["value"], item["part"], strict=True) if part != "top"]
    expected = torch.cat([table[f"{m}/option_log_likelihood"][0] for m in ("dense", "pruned")])
    assert values == expected.tolist()
    tops = [v for v, part in zip(item["value"], item["part"], strict=True) if part == "top"]
    assert tops[:3] == table["dense/top_probability"][0].tolist()


@pytest.mark.parametrize(
    ("show", "numbers"), [(0, []), (2, [0, 1]), (3, [0, 1, 3]), (99, [0, 1, 3, 4])]
)
def test_a_number_shows_the_first_rows_that_have_a_subspace(
    show: int,
    numbers: list[int],
    questions: Callable[..., str],
    words_pair: ModelPair,
    subspace: Measure,
) -> None:
    _, task, table = subspace(questions(), words_pair, show=show)
    names = [name for name, _ in task.report(table).pictures if "item" in name]
    assert names == [f"subspace_item_{number}" for number in numbers]
    assert len(list(task.report(table).texts)) == len(numbers)


def test_more_top_tokens_than_the_vocabulary_has_are_all_of_it(
    questions: Callable[..., str], words_pair: ModelPair, subspace: Measure
) -> None:
    _, _, table = subspace(questions(), words_pair, top_k=1000)
    total = table["pruned/top_probability"].sum(1)
    assert table["pruned/top_id"].shape == (4, 300)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": "words"}, "Expected `options` in"),
        ({"top_k": 0}, "`top_k` of at least 1 but got 0"),
        ({"show": -1}, "no negative number in `show` but got -1"),
        ({"show": [0, -2]}, "no negative number in `show`"),
        ({"temperature": 0.0}, "`temperature` above 0 but got 0.0"),
        ({"show": [5]}, "row numbers below 5 in `show` but got"),
        ({"show": [2]}, "different first tokens but got \\[2\\]"),
        ({"template": "Answer:"}, "Expected the field {context}"),
        ({"options": "letters", "template": "{context}"}, "Expected the field {choices}"),
    ],
)
def test_bad_arguments(
    arguments: dict[str, Any],
    message: str,
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_subspace(questions(), words, **arguments)


def test_more_choices_than_letters(
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    row = {"id": "x", "context": "?", "choices": [str(i) for i in range(27)], "label": 0}
    with pytest.raises(InputError, match=r"at most 26 choices per row but a row of .* has 27"):
        prepare_subspace(questions([row]), words, options="letters")


@pytest.mark.parametrize("lead", [[], [7]])
def test_a_prompt_that_no_token_of_is_kept(
    lead: list[int],
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    # A tokenizer that merges the prompt with what follows.
    module = "prunelit.tasks.subspace"
    monkeypatch.setattr(f"{module}.special_tokens", lambda _: SpecialTokens(lead, []))
    monkeypatch.setattr(f"{module}.encode_text", lambda _, text: [*lead, len(text)])
    with pytest.raises(
        InputError, match=r"in row 0 \(counted from 0, id 'a'\) of .* the first token differs"
    ):
        prepare_subspace(questions(), words)


def test_it_needs_the_reference() -> None:
    assert Subspace.needs_reference
