"""The task `Subspace` against one prompt at a time, tokenised by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.metrics import deviations
from prunelit.tasks import ModelPair
from prunelit.tasks.subspace import QUANTITIES, Subspace

MakeModel = Callable[..., PreTrainedModel]
Measure = Callable[..., Any]

# Those whose options are told apart by their first token.
GOOD = [0, 1, 3, 4]


def ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    found = tokenizer.convert_tokens_to_ids(list(tokens))
    assert 0 not in found
    return found


@pytest.fixture
def by_hand(
    words: PreTrainedTokenizerBase, option_rows: list[dict[str, Any]]
) -> list[tuple[list[int], list[int]]]:
    """Context and option tokens of the good rows; Ġ is a space."""
    cases = [
        (option_rows[0], [], ["ĠP", "ĠR", "Ġ"]),
        (option_rows[1], [], ["ĠR", "ĠP"]),
        # Nothing merges a space with a digit: all options begin with it, so it is read.
        (option_rows[3], ["Ġ"], ["4", "5", "7"]),
        (option_rows[4], [], ["ĠR", "ĠP"]),
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
    prepare_subspace: Callable[..., Subspace],
) -> None:
    task = prepare_subspace(questions(), words)
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
    words_pair: ModelPair,
    subspace: Measure,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    row = {"context": "Ox?", "choices": ["Paris", "Rome"], "label": 0}
    path = questions([{**row, "id": name} for name in "xy"])
    task = prepare_subspace(path, words, template=template)
    prompt = words(template.format(context="Ox?"))["input_ids"]
    assert task._items[0].options == ids(words, tokens)
    assert task._items[0].context == prompt[: len(prompt) - cut]
    rows, _, _ = subspace(path, words_pair, template=template)
    details = rows["acc", "dense"].details
    assert details["template"] == template
    assert details["rows_where_prompt_and_option_merge"] == 2 * cut
    assert details["rows_with_tokens_shared_by_all_options"] == 0


def test_one_option_alone_may_merge_with_the_prompt(
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    words_pair: ModelPair,
    subspace: Measure,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    row = {"context": "Ox?", "choices": ["4", "Paris"], "label": 0}
    path = questions([{**row, "id": name} for name in "xy"])
    task = prepare_subspace(path, words, template="{context} A: ")
    assert task._items[0].options == ids(words, ["Ġ", "ĠP"])
    rows, _, _ = subspace(path, words_pair, template="{context} A: ")
    assert rows["acc", "dense"].details["rows_where_prompt_and_option_merge"] == 2


def test_letters(
    questions: Callable[..., str],
    words: PreTrainedTokenizerBase,
    words_pair: ModelPair,
    subspace: Measure,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    path = questions()
    task = prepare_subspace(path, words, options="letters")
    prompt = "Question: Which is best?\nA. Paris\nB. Rome\nC. yes\nAnswer:"
    assert task._items[0].context == words(prompt)["input_ids"]
    assert task._items[0].options == ids(words, ["ĠA", "ĠB", "ĠC"])
    # The first characters of the choices do not matter; "Ġ" of " D" merges with nothing.
    assert task._items[2].options == ids(words, ["ĠA", "ĠB", "ĠC", "Ġ"])
    rows, _, _ = subspace(path, words_pair, options="letters")
    assert rows["acc", "dense"].n == 5
    assert rows["acc", "dense"].details["options"] == "letters"
    assert "{choices}" in rows["acc", "dense"].details["template"]


def test_bytes_as_tokens(
    material: Path,
    tokenizer: PreTrainedTokenizerBase,
    make_model: MakeModel,
    subspace: Measure,
    prepare_subspace: Callable[..., Subspace],
) -> None:
    """Every option begins with the byte of the space, which is read; 東 has three bytes."""
    path = str(material / "questions.jsonl")
    task = prepare_subspace(path, tokenizer)
    # White, red, blue and black share their first letter, and so do goldfish and gold.
    assert [item.number for item in task._items] == [0, 2, 4, 5, 6]
    options = [tokenizer.convert_ids_to_tokens(item.options) for item in task._items]
    assert options == [["P", "R"], ["M", "æ", "S"], ["4", "5"], ["c", "w", "t"], [*"mhsw"]]
    assert all(item.context[-1] == ids(tokenizer, "Ġ")[0] for item in task._items)
    rows, _, _ = subspace(path, ModelPair(make_model(), make_model(), tokenizer))
    assert rows["acc", "dense"].details["rows_with_tokens_shared_by_all_options"] == 5


@torch.no_grad()
def test_every_quantity_is_that_of_one_unpadded_prompt(
    family: str,
    make_model: MakeModel,
    words: PreTrainedTokenizerBase,
    questions: Callable[..., str],
    by_hand: list[tuple[list[int], list[int]]],
    subspace: Measure,
    option_rows: list[dict[str, Any]],
) -> None:
    dense, pruned = make_model(family, seed=0), make_model(family, seed=1)
    temperature = 0.7
    _, _, table = subspace(
        questions(), ModelPair(pruned, dense, words), batch_size=3, temperature=temperature, top_k=5
    )
    assert table.size == 4
    for place, (context, options) in enumerate(by_hand):
        label = option_rows[GOOD[place]]["label"]
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
