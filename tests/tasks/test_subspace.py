"""The task `Subspace` against one prompt at a time, tokenised by hand."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunelit import InputError
from prunelit.metrics import deviations
from prunelit.report.rows import Row
from prunelit.tasks import ItemTable, Pair
from prunelit.tasks.subspace import QUANTITIES, Subspace

MakeModel = Callable[..., PreTrainedModel]

# Letters after a space, and the space itself where nothing merges with it.
ROWS = [
    {"id": "a", "context": "Which is best?", "choices": ["Paris", "Rome", "yes"], "label": 1},
    {"id": "b", "context": "And now, a longer one?", "choices": ["Rye", "Pi"], "label": 0},
    {"id": "c", "context": "C?", "choices": ["Pe", "no", "Rust", "Pa"], "label": 0},  # collides
    {"id": "d", "context": "How many?", "choices": ["4", "5", "72"], "label": 2},
    {"id": "e", "context": "Ox", "choices": ["Rome", "Paris"], "label": 0},
]
GOOD = [0, 1, 3, 4]


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """Bytes, and " P", " R", " A" to " C" as single tokens, as in vocabularies of words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    merges = [("Ġ", letter) for letter in "PRABC"]
    vocabulary |= {"".join(pair): 257 + i for i, pair in enumerate(merges)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., str]:
    """`questions(rows)`: a path."""

    def write(rows: Sequence[dict[str, Any]] = ROWS) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def pair(make_model: MakeModel, words: PreTrainedTokenizerBase) -> Pair:
    return Pair(make_model("llama", seed=1), make_model("llama", seed=0), words)


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, **arguments: Any) -> Subspace:
    task = Subspace(path, **arguments)
    task.read()
    task.prepare(tokenizer)
    return task


@torch.no_grad()
def measure(
    path: str, pair: Pair, world: int = 1, **arguments: Any
) -> tuple[dict[tuple[str, str], Row], Subspace, ItemTable]:
    task = Subspace(path, **{"batch_size": 2, **arguments})
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for rank in range(world):
        for batch in task.batches(size, rank, world):
            if len(batch["indices"]):
                table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    rows = task.summarise(table)
    return {(row.metric, row.model): row for row in rows}, task, table


def ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    found = tokenizer.convert_tokens_to_ids(list(tokens))
    assert 0 not in found
    return found


@pytest.fixture
def by_hand(words: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Context and option tokens of the good rows; Ġ is a space."""
    cases = [
        (ROWS[0], [], ["ĠP", "ĠR", "Ġ"]),
        (ROWS[1], [], ["ĠR", "ĠP"]),
        # Nothing merges a space with a digit: all options begin with it, so it is read.
        (ROWS[3], ["Ġ"], ["4", "5", "7"]),
        (ROWS[4], [], ["ĠR", "ĠP"]),
    ]
    prompts = [words(f"Question: {row['context']}\nAnswer:")["input_ids"] for row, _, _ in cases]
    return [
        (prompt + ids(words, read), ids(words, options))
        for prompt, (_, read, options) in zip(prompts, cases, strict=True)
    ]


def test_option_tokens_are_those_that_follow_the_prompt(
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    by_hand: list[tuple[list[int], list[int]]],
) -> None:
    task = prepared(questions(), words)
    assert [item.number for item in task._items] == GOOD
    assert [(item.context, item.options) for item in task._items] == by_hand
    assert task.longest == max(len(context) for context, _ in by_hand)


@pytest.mark.parametrize(
    ("template", "cut", "tokens"),
    [
        ("Q: {context} A:", 0, ["ĠP", "ĠR"]),
        ("Q: {context}\n", 0, ["P", "R"]),
        # The space at the end of the prompt becomes the beginning of the option's token.
        ("Q: {context} A: ", 1, ["ĠP", "ĠR"]),
    ],
)
def test_the_space_before_an_option_is_that_of_the_template(
    template: str,
    cut: int,
    tokens: list[str],
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    pair: Pair,
) -> None:
    row = {"id": "x", "context": "Ox?", "choices": ["Paris", "Rome"], "label": 0}
    path = questions([row, row])
    task = prepared(path, words, template=template)
    prompt = words(template.format(context="Ox?"))["input_ids"]
    assert task._items[0].options == ids(words, tokens)
    assert task._items[0].context == prompt[: len(prompt) - cut]
    rows, _, _ = measure(path, pair, template=template)
    details = rows["acc", "dense"].details
    assert details["template"] == template
    assert details["rows_where_prompt_and_option_merge"] == 2 * cut
    assert details["rows_with_tokens_shared_by_all_options"] == 0


def test_one_option_alone_may_merge_with_the_prompt(
    questions: Callable[..., str], words: PreTrainedTokenizerBase, pair: Pair
) -> None:
    row = {"id": "x", "context": "Ox?", "choices": ["4", "Paris"], "label": 0}
    path = questions([row, row])
    task = prepared(path, words, template="{context} A: ")
    assert task._items[0].options == ids(words, ["Ġ", "ĠP"])
    rows, _, _ = measure(path, pair, template="{context} A: ")
    assert rows["acc", "dense"].details["rows_where_prompt_and_option_merge"] == 2


def test_letters(questions: Callable[..., str], words: PreTrainedTokenizerBase, pair: Pair) -> None:
    path = questions()
    task = prepared(path, words, options="letters")
    prompt = "Question: Which is best?\nA. Paris\nB. Rome\nC. yes\nAnswer:"
    assert task._items[0].context == words(prompt)["input_ids"]
    assert task._items[0].options == ids(words, ["ĠA", "ĠB", "ĠC"])
    # What the choices begin with does not matter; "Ġ" of " D" merges with nothing.
    assert task._items[2].options == ids(words, ["ĠA", "ĠB", "ĠC", "Ġ"])
    rows, _, _ = measure(path, pair, options="letters")
    assert rows["acc", "dense"].n == 5
    assert rows["acc", "dense"].details["options"] == "letters"
    assert "{choices}" in rows["acc", "dense"].details["template"]


def test_bytes_as_tokens(
    material: Path, tokenizer: PreTrainedTokenizerBase, make_model: MakeModel
) -> None:
    """Every option begins with the byte of the space, which is read; 東 has three bytes."""
    path = str(material / "questions.jsonl")
    task = prepared(path, tokenizer)
    # White, red, blue and black share their first letter, and so do goldfish and gold.
    assert [item.number for item in task._items] == [0, 2, 4, 5, 6]
    options = [tokenizer.convert_ids_to_tokens(item.options) for item in task._items]
    assert options == [["P", "R"], ["M", "æ", "S"], ["4", "5"], ["c", "w", "t"], [*"mhsw"]]
    assert all(item.context[-1] == ids(tokenizer, "Ġ")[0] for item in task._items)
    rows, _, _ = measure(path, Pair(make_model(), make_model(), tokenizer))
    assert rows["acc", "dense"].details["rows_with_tokens_shared_by_all_options"] == 5


@torch.no_grad()
def test_every_quantity_is_that_of_one_unpadded_prompt(
    family: str,
    make_model: MakeModel,
    words: PreTrainedTokenizerBase,
    questions: Callable[..., str],
    by_hand: list[tuple[list[int], list[int]]],
) -> None:
    dense, pruned = make_model(family, seed=0), make_model(family, seed=1)
    temperature = 0.7
    _, _, table = measure(
        questions(), Pair(pruned, dense, words), batch_size=3, temperature=temperature, top_k=5
    )
    assert table.size == 4
    for place, (context, options) in enumerate(by_hand):
        label = ROWS[GOOD[place]]["label"]
        outputs = [
            model(input_ids=torch.tensor([context]), output_hidden_states=True)
            for model in (dense, pruned)
        ]
        z, w = (output.logits[0, -1].double().numpy() for output in outputs)
        hidden = [model.base_model(torch.tensor([context]))[0][0, -1] for model in (dense, pruned)]
        full = deviations(*hidden, *(torch.tensor(x) for x in (z, w)), temperature=temperature)
        for name in QUANTITIES:
            found, expected = float(table[name][place]), float(full[name])
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), name
        p, q = softmax(z[options] / temperature), softmax(w[options] / temperature)
        inside = {
            "logit_cosine": z[options]
            @ w[options]
            / np.linalg.norm(z[options])
            / np.linalg.norm(w[options]),
            "logit_std": (w - z)[options].std(),
            "probability_cosine": p @ q / np.linalg.norm(p) / np.linalg.norm(q),
            "kl_dense_pruned": (p * np.log(p / q)).sum(),
            "kl_pruned_dense": (q * np.log(q / p)).sum(),
            "top1_agreement": float(p.argmax() == q.argmax()),
        }
        for name, expected in inside.items():
            found = float(table[f"subspace_{name}"][place])
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), name
        for model, logits in (("dense", z), ("pruned", w)):
            log_p = log_softmax(logits / temperature)
            own = log_p[options]
            scores = table[f"{model}/option_log_likelihood"][place]
            np.testing.assert_allclose(scores[: len(own)], own, atol=1e-4)
            assert scores[len(own) :].isnan().all()
            assert table[f"{model}/prediction"][place] == own.argmax()
            assert table[f"{model}/acc"][place] == float(own.argmax() == label)
            mass = float(table[f"{model}/option_mass"][place])
            assert mass == pytest.approx(np.exp(own).sum(), rel=1e-3)
            assert table[f"{model}/top_id"][place].tolist() == np.argsort(-log_p)[:5].tolist()
            np.testing.assert_allclose(
                table[f"{model}/top_probability"][place], np.sort(np.exp(log_p))[:-6:-1], rtol=1e-3
            )


def test_rows_are_means_over_the_questions_that_have_a_subspace(
    questions: Callable[..., str], pair: Pair
) -> None:
    rows, _, table = measure(questions(), pair)
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


def test_collisions_are_counted_and_left_out(questions: Callable[..., str], pair: Pair) -> None:
    rows, _, table = measure(questions(), pair)
    row = rows["collisions", "pair"]
    assert (row.value, row.n) == (pytest.approx(1 / 5), 5)
    assert row.standard_error == pytest.approx(math.sqrt(0.2 * 0.8 / 4))
    assert (row.details["rows"], row.details["rows_with_collisions"]) == (5, 1)
    without, _, other = measure(questions([ROWS[place] for place in GOOD]), pair)
    assert other["dense/prediction"].equal(table["dense/prediction"])
    assert without["acc", "dense"].value == rows["acc", "dense"].value
    assert without["collisions", "pair"].value == 0


@pytest.mark.parametrize("choices", [["Rye", "Rye"], ["Pa", "Paris"], ["no", "Pe", "Pa"]])
def test_what_collides(
    choices: list[str], questions: Callable[..., str], words: PreTrainedTokenizerBase
) -> None:
    bad = {"id": "z", "context": "Z?", "choices": choices, "label": 0}
    task = prepared(questions([ROWS[0], bad]), words)
    assert [item.number for item in task._items] == [0]
    with pytest.raises(InputError, match="two share it in every row"):
        prepared(questions([bad]), words)


def test_a_model_does_not_differ_from_its_copy(
    family: str,
    make_model: MakeModel,
    words: PreTrainedTokenizerBase,
    questions: Callable[..., str],
) -> None:
    dense = make_model(family)
    rows, _, _ = measure(questions(), Pair(copy.deepcopy(dense), dense, words))
    for (name, model), row in rows.items():
        if model == "difference":
            assert row.value == row.standard_error == 0, name
        elif model == "pair" and name != "collisions":
            same = 1 if "cosine" in name or "agreement" in name else 0
            assert row.value == pytest.approx(same, abs=1e-6), name


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_does_not_matter(
    batch_size: int, questions: Callable[..., str], pair: Pair
) -> None:
    expected, _, _ = measure(questions(), pair)
    rows, _, _ = measure(questions(), pair, batch_size=batch_size)
    assert {key: row.value for key, row in rows.items()} == pytest.approx(
        {key: row.value for key, row in expected.items()}, rel=1e-4, abs=1e-5
    )


def test_two_ranks_give_what_one_gives(questions: Callable[..., str], pair: Pair) -> None:
    _, _, expected = measure(questions(), pair)
    _, _, table = measure(questions(), pair, world=2)
    assert table.columns() == expected.columns()
    for name in table.columns():
        torch.testing.assert_close(table[name], expected[name], rtol=0, atol=0, equal_nan=True)


def test_shown_rows_as_texts_and_pictures(questions: Callable[..., str], pair: Pair) -> None:
    rows, task, table = measure(questions(), pair, show=[3, 0], top_k=3)
    first, second = task.texts(table)
    assert first["prompt"] == "Question: How many?\nAnswer: "
    assert first["options"] == "4\n5\n72 (right)"
    assert second["dense"] == ROWS[0]["choices"][table["dense/prediction"][0]]
    assert second["pruned"] == ROWS[0]["choices"][table["pruned/prediction"][0]]
    assert len(second["top tokens pruned"].splitlines()) == 3
    pictures = task.pictures(table)
    assert [*pictures] == [
        "subspace_spaces",
        "subspace_options",
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


@pytest.mark.parametrize(("show", "numbers"), [(0, []), (2, [0, 1]), (3, [0, 1, 3]), (99, GOOD)])
def test_a_number_shows_the_first_rows_that_have_a_subspace(
    show: int, numbers: list[int], questions: Callable[..., str], pair: Pair
) -> None:
    _, task, table = measure(questions(), pair, show=show)
    names = [name for name in task.pictures(table) if "item" in name]
    assert names == [f"subspace_item_{number}" for number in numbers]
    assert len(task.texts(table)) == len(numbers)


def test_more_top_tokens_than_the_vocabulary_has_are_all_of_it(
    questions: Callable[..., str], pair: Pair
) -> None:
    _, _, table = measure(questions(), pair, top_k=1000)
    total = table["pruned/top_probability"].sum(1)
    assert table["pruned/top_id"].shape == (4, 300)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": "words"}, "Expected `options` in"),
        ({"top_k": 0}, "`top_k` of at least 1 but got 0"),
        ({"show": -1}, "`show` to hold no negative number but got -1"),
        ({"show": [0, -2]}, "`show` to hold no negative number"),
        ({"temperature": 0.0}, "`temperature` above 0 but got 0.0"),
        ({"show": [5]}, "`show` to hold numbers below 5 but got"),
        ({"show": [2]}, "told apart by their first token but got \\[2\\]"),
        ({"template": "Answer:"}, "Expected the field {context}"),
        ({"options": "letters", "template": "{context}"}, "Expected the field {choices}"),
    ],
)
def test_bad_arguments(
    arguments: dict[str, Any],
    message: str,
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(InputError, match=message):
        prepared(questions(), words, **arguments)


def test_more_choices_than_letters(
    questions: Callable[..., str], words: PreTrainedTokenizerBase
) -> None:
    row = {"id": "x", "context": "?", "choices": [str(i) for i in range(27)], "label": 0}
    with pytest.raises(InputError, match=r"at most 26 choices a row but one of .* has 27"):
        prepared(questions([row]), words, options="letters")


def test_a_prompt_that_no_token_of_is_kept(
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A tokenizer that merges the prompt with what follows.
    monkeypatch.setattr("prunelit.tasks.subspace.encode", lambda _, text: [len(text)])
    with pytest.raises(InputError, match=r"in row 0 \(id 'a'\) none of its tokens does"):
        prepared(questions(), words)


def test_it_needs_the_reference() -> None:
    assert Subspace.needs_reference
