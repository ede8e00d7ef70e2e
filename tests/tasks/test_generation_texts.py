"""`Generation` with its defaults, from models that write exactly the text of a test."""

import json
import math
from collections.abc import Callable
from pathlib import Path

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
from prunelit.tasks.prompting.few_shot import FewShot


def writer(tokenizer: PreTrainedTokenizerBase, text: str) -> PreTrainedModel:
    """A model whose next token follows from the last one alone.

    After `>`, the end of the chat prompt, it writes `text`, of which no character comes twice but
    a last one that closes a loop; without a loop it ends the text.
    """
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=272,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    (begin, *ids) = tokenizer(">" + text)["input_ids"]
    follows = dict(zip([begin, *ids], [*ids, 0], strict=True))
    if len(set(ids)) < len(ids):
        follows = dict(reversed(list(zip([begin, *ids[:-1]], ids, strict=True))))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(257, 272))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for last, following in follows.items():
            model.lm_head.weight[following, last] = 1
    return model


@torch.no_grad()
def measure(
    material: Path, pair: ModelPair, **arguments: object
) -> tuple[dict[tuple[str, str], Result], ItemTable, Generation]:
    task = Generation(str(material / "questions.jsonl"), batch_size=3, **arguments)
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    rows = task.report(table).results
    assert {row.n for row in rows} == {7}
    return {(row.metric, row.model): row for row in rows}, table, task


def test_every_metric_of_two_known_texts(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Paris is the answer of one question of seven; the other model writes Para and goes in circles.
    pair = ModelPair(writer(tokenizer, "Para"), writer(tokenizer, "Paris"), tokenizer)
    rows, table, task = measure(material, pair, max_new_tokens=10)
    values = {key: row.value for key, row in rows.items()}
    assert values == pytest.approx(
        {
            ("exact_match", "dense"): 1 / 7,
            ("exact_match", "pruned"): 0,
            ("exact_match", "difference"): -1 / 7,
            ("contains", "dense"): 1 / 7,
            ("contains", "pruned"): 0,
            ("contains", "difference"): -1 / 7,
            # Of the seven 4-grams of "Parararara" three are new, of the nine 2-grams three, too.
            ("repetition", "dense"): 0,
            ("repetition", "pruned"): 4 / 7,
            ("repetition", "difference"): 4 / 7,
            ("distinct_1", "dense"): 1,
            ("distinct_1", "pruned"): 3 / 10,
            ("distinct_1", "difference"): -7 / 10,
            ("distinct_2", "dense"): 1,
            ("distinct_2", "pruned"): 3 / 9,
            ("distinct_2", "difference"): -6 / 9,
            ("end_of_text", "dense"): 1,
            ("end_of_text", "pruned"): 0,
            ("end_of_text", "difference"): -1,
            ("length", "dense"): 6,
            ("length", "pruned"): 10,
            ("length", "difference"): 4,
            ("first_divergence", "pair"): 3,
            ("diverged", "pair"): 1,
            ("retained", "pair"): 0,
        }
    )
    texts = list(task.report(table).texts)
    assert len(texts) == 7
    assert texts[0] == {
        "prompt": "What is the capital of France?",
        "target": "Paris",
        "dense": "Paris",
        "pruned": "Pararararar"[:10],
    }


def test_a_yes_or_no_is_also_guessed(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"id": str(n), "context": f"{n}?", "choices": ["no", "yes"], "label": int(n > 0)}
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = ModelPair(writer(tokenizer, "no"), writer(tokenizer, "yes"), tokenizer)
    task = Generation(str(path), max_new_tokens=4)
    task.read()
    table = ItemTable(task.prepare(tokenizer))
    for batch in task.batches(table.size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    found = {(row.metric, row.model): row for row in task.report(table).results}
    row = found["retained", "pair"]
    # The dense model always says yes, which is right for 3 of 4: it has no lead.
    assert [row.details[name] for name in ("dense", "pruned", "chance")] == [0.75, 0.25, 0.75]
    assert math.isnan(row.value)
    assert row.details["no_error_bar"] == "the dense model is not above chance"
    assert [found["balanced_contains", model].value for model in ("dense", "pruned")] == [0.5, 0.5]
    assert [found["chosen/yes", model].value for model in ("dense", "pruned")] == [1, 0]
    assert found["contains/no", "pruned"].value == 1


def test_few_different_targets_are_fixed_answers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"{n}?", "mood": "bad" if n < 4 else "nice"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pair = ModelPair(writer(tokenizer, "bad"), writer(tokenizer, "nice"), tokenizer)
    columns = {"context": "text", "target": "mood"}
    task = Generation(str(path), columns=columns, max_new_tokens=4)
    task.read()
    table = ItemTable(task.prepare(tokenizer))
    for batch in task.batches(table.size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    with pytest.warns(UserWarning, match=r"model chooses '\w+' for each of the 12 items"):
        results = task.report(table).results
    found = {(row.metric, row.model): row for row in results}
    assert found["contains", "dense"].value == found["contains", "dense"].details["chance"] == 2 / 3
    assert found["contains/bad", "pruned"].value == 1
    assert found["contains/nice", "pruned"].value == 0
    assert found["chosen/bad", "difference"].value == 1


def test_the_question_itself_is_no_worked_example(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    # Choices are not shown, so that in another order they do not make it another question.
    rows = [
        {"id": "0", "context": "One?", "choices": ["no", "yes"], "label": 1},
        {"id": "1", "context": "One?", "choices": ["yes", "no"], "label": 0},
        {"id": "2", "context": "Two?", "choices": ["no", "yes"], "label": 0},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Generation(str(path), few_shot=FewShot(1), chat=False)
    task.read()
    task.prepare(tokenizer)
    prompts = [tokenizer.decode(task.collate([n])["input_ids"][0]) for n in range(3)]
    assert prompts == ["Two? no\n\nOne?", "Two? no\n\nOne?", "One? yes\n\nTwo?"]


def test_a_pair_that_never_differs_counts_its_whole_length(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = ModelPair(writer(tokenizer, "Rome"), writer(tokenizer, "Rome"), tokenizer)
    rows, _, _ = measure(material, pair, max_new_tokens=10)
    assert rows["diverged", "pair"].value == 0
    assert rows["first_divergence", "pair"].value == 5
    assert rows["length", "pruned"].value == 5


def test_one_text_that_ends_inside_the_other_diverges_where_it_ends(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = ModelPair(writer(tokenizer, "gold"), writer(tokenizer, "goldfish"[:4] + "en"), tokenizer)
    rows, _, _ = measure(material, pair, max_new_tokens=10)
    assert rows["first_divergence", "pair"].value == 4
    assert rows["exact_match", "pruned"].value == pytest.approx(1 / 7)
    assert rows["exact_match", "dense"].value == 0


def test_tokens_are_those_of_a_greedy_loop_without_cache_or_padding(
    material: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)
    rows, table, task = measure(material, pair, max_new_tokens=6)
    firsts = []
    for index, question in enumerate(task._examples):
        written = {}
        for name, model in pair.models().items():
            ids = tokenizer(f"<user>{question.context}\n<assistant>")["input_ids"]
            for _ in range(6):
                with torch.no_grad():
                    ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            written[name] = ids[-6:]
            assert table[f"{name}/tokens"][index, 0].tolist() == ids[-6:]
        differ = [a != b for a, b in zip(written["dense"], written["pruned"], strict=True)]
        firsts.append(differ.index(True) if any(differ) else 6)
    assert table["first_divergence"][:, 0].tolist() == firsts
    assert rows["first_divergence", "pair"].value == pytest.approx(sum(firsts) / 7)


def test_without_a_reference_only_the_pruned_text_is_there(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows, table, task = measure(material, ModelPair(writer(tokenizer, "Rome"), None, tokenizer))
    assert {model for _, model in rows} == {"pruned"}
    assert ("first_divergence", "pair") not in rows
    assert list(next(iter(task.report(table).texts))) == ["prompt", "target", "pruned"]


def test_the_template_fills_the_users_message_or_stands_alone(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = []
    for chat in (True, False):
        task = Generation(str(material / "questions.jsonl"), template="Q: {context}", chat=chat)
        task.read()
        task.prepare(tokenizer)
        batch = task.collate([4, 1])
        # Shorter prompts are padded on the left, where generation wants it.
        assert batch["attention_mask"][0, 0] == 0
        prompts.append(tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0] == 1]))
    assert prompts == ["<user>Q: 2 + 3 =\n<assistant>", "Q: 2 + 3 ="]


def test_a_tokenizer_without_a_chat_template_is_refused(
    material: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = None
    task = Generation(str(material / "questions.jsonl"))
    task.read()
    with pytest.raises(InputError, match="set `chat: false`"):
        task.prepare(tokenizer)


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="`max_new_tokens` of at least 1 but got 0"):
        Generation("rows.jsonl", max_new_tokens=0)
