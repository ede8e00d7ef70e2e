"""Sublayers one by one: of copies, of models that lack some, and of batches and ranks."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    NemotronHConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.metrics.spaces.deviation import LOGIT_SPACE
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_
from prunelit.pruners import BlockDrop, SublayerDrop, Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import ModelPair, Transitions
from prunelit.tasks.item_table import Streamed

MakeModel = Callable[..., PreTrainedModel]


def test_a_copy_differs_nowhere(
    family: str,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
) -> None:
    dense = make_model(family)
    _, table, _ = transitions(ModelPair(copy.deepcopy(dense), dense, tokenizer))
    for name, sketch in table.sketches.items():
        assert sketch.places == 3
        if name.endswith(("cosine", "estimate", "agreement", "overlap")):
            perfect = 0.0 if "kl_" in name else 1.0
        else:
            perfect = 0.0
        assert sketch.n.tolist() == [5 if "decode" in name else 4] * 3, name  # "x" is one token
        for value in (sketch.lowest, sketch.highest):
            assert (value - perfect).abs().max() <= 1e-5, name


def test_a_dropped_attention_is_seen_where_it_was_and_only_there(
    model: PreTrainedModel,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
) -> None:
    drop_(decoder_blocks(model)[1][1], "mixer")
    _, table, _ = transitions(ModelPair(model, make_model(), tokenizer))
    local = table.sketches["local/attention/decode/embedding_cosine"].mean
    assert local[1] < 0.999
    torch.testing.assert_close(local[[0, 2]], torch.ones(2).double(), rtol=0, atol=1e-6)
    untouched = table.sketches["local/mlp/decode/embedding_cosine"].lowest
    torch.testing.assert_close(untouched, torch.ones(3).double(), rtol=0, atol=1e-6)
    cumulative = table.sketches["cumulative/mlp/decode/embedding_cosine"].mean
    assert cumulative[0] > 1 - 1e-6
    assert (cumulative[1:] < 0.999).all()


@pytest.mark.parametrize("drop", [lambda: SublayerDrop(1), lambda: BlockDrop(1)])
def test_a_folder_that_lacks_parts_gives_what_zeroed_parts_give(
    drop: Callable[[], Any],
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    dense, zeroed = make_model(), make_model()
    report = prune(zeroed, drop(), input_ids, shrink=False)
    save_pretrained(zeroed, tokenizer, tmp_path / "pruned", report)
    stored, _ = load_pretrained(str(tmp_path / "pruned"))
    plain = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    blocks = plain["removed"]["blocks"]
    _, first, _ = transitions(ModelPair(zeroed, dense, tokenizer))
    _, second, _ = transitions(ModelPair(stored, dense, tokenizer, blocks))
    assert first.sketches.keys() == second.sketches.keys()
    for name, sketch in first.sketches.items():
        torch.testing.assert_close(
            sketch.mean, second.sketches[name].mean, rtol=1e-3, atol=1e-5, msg=name
        )
    if blocks:
        with pytest.raises(InputError, match="a pruned model with 3 blocks"):
            transitions(ModelPair(stored, dense, tokenizer))


def test_batches_ranks_and_chosen_tokens(
    model: PreTrainedModel,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
    input_ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prune(model, Wanda(Unstructured(0.5)), input_ids)
    pair = ModelPair(model, make_model(), tokenizer)
    task, whole, _ = transitions(pair, batch_size=5)
    _, ranks, _ = transitions(pair, world=2, batch_size=1)
    for name, sketch in whole.sketches.items():
        other = ranks.sketches[name]
        assert sketch.n.equal(other.n)
        torch.testing.assert_close(sketch.mean, other.mean, rtol=1e-3, atol=1e-5, msg=name)
    rows = {row.metric: row for row in task.report(whole).results}
    assert len(rows) == 2 * 2 * 2 * 4
    name = "cumulative/mlp/decode/kl_dense_pruned"
    assert rows[name].value == pytest.approx(float(whole.sketches[name].mean.mean()), rel=1e-6)
    assert rows[name].n == 5
    assert rows[name].details["final_norm"] is True
    _, _, all_tokens = transitions(pair, batch_size=5)
    _, few, outputs = transitions(pair, batch_size=5, tokens=2)
    assert few.sketches[name].tokens.tolist() == [10] * 3
    values, chosen = all_tokens[0][name].values, outputs[0][name].values
    # A column a token that is compared, of however long a text.
    assert chosen.shape[-1] == 2
    for mine, theirs in zip(values[:, 0], chosen[:, 0], strict=True):
        there = mine[~mine.isnan()]
        assert theirs.tolist() == [there[len(there) // 2 - 1], there[-1]]


@pytest.mark.parametrize("final_norm", [True, False])
def test_the_logit_space_of_every_token_without_logits(
    family: str,
    final_norm: bool,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
    input_ids: Tensor,
) -> None:
    if family == "opt" and not final_norm:
        pytest.skip("its unembedding reads a projection")
    dense, pruned = make_model(family), make_model(family)
    prune(pruned, Wanda(Unstructured(0.5)), input_ids)
    pair = ModelPair(pruned, dense, tokenizer)
    options = {"final_norm": final_norm, "max_new_tokens": 3}
    _, plain, _ = transitions(pair, logit_gram=False, **options)
    task, found, _ = transitions(pair, tokens=1, **options)
    (details,) = {row.details["logit_tokens"] for row in task.report(found).results}
    assert details == (1 if family == "gemma2" else "every")  # it caps its logits
    assert found.sketches.keys() == plain.sketches.keys()
    for name, sketch in found.sketches.items():
        space = name.rpartition("/")[2]
        every = space in LOGIT_SPACE if family != "gemma2" else False
        if every or space.startswith("embedding"):
            assert sketch.tokens.equal(plain.sketches[name].tokens)
            # Logits in float32 have noise, which `1 - cosine` shows.
            torch.testing.assert_close(
                sketch.mean, plain.sketches[name].mean, rtol=2e-4, atol=1e-5, msg=name
            )
        else:
            assert (sketch.tokens <= 5).all()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_without_the_probability_space(
    name: str,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
    input_ids: Tensor,
) -> None:
    dense, pruned = make_model(name), make_model(name)
    prune(pruned, Wanda(Unstructured(0.5)), input_ids)
    task, table, _ = transitions(ModelPair(pruned, dense, tokenizer), tokens=0)
    spaces = {one.rpartition("/")[2].partition("_")[0] for one in table.sketches}
    assert spaces == ({"embedding", "logit"} if name == "llama" else {"embedding"})
    report = task.report(table)
    pictures = dict(report.pictures)
    assert list(pictures) == ["transitions_attention", "transitions_mlp", "transitions_theory"]
    assert len(pictures["transitions_theory"].figure.axes) == len(spaces)
    assert len(report.results) == 2 * 2 * 2 * len(spaces)


def test_a_model_that_gives_no_numbers_is_refused(
    model: PreTrainedModel,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
) -> None:
    with torch.no_grad():
        decoder_blocks(model)[1][1].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(InputError, match=r"Expected a number for `[a-z_]+` of every token"):
        transitions(ModelPair(model, make_model(), tokenizer))


def test_curves_and_pictures(
    model: PreTrainedModel,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
    input_ids: Tensor,
) -> None:
    prune(model, Wanda(Unstructured(0.5)), input_ids)
    task, table, _ = transitions(ModelPair(model, make_model(), tokenizer))
    curves = {curve.tag: curve for curve in task.report(table).curves}
    assert curves.keys() == table.sketches.keys()
    curve = curves["local/attention/prompt/logit_cosine"]
    assert (curve.axis, list(curve.x), list(curve.n)) == ("block", [0, 1, 2], [4, 4, 4])
    assert all(
        low <= mean <= high
        for low, mean, high in zip(curve.low, curve.mean, curve.high, strict=True)
    )
    pictures = dict(task.report(table).pictures)
    assert list(pictures) == [
        "transitions_attention",
        "transitions_mlp",
        "transitions_kl",
        "transitions_theory",
    ]
    numbers = pictures["transitions_theory"].numbers
    assert len(numbers["exact"]) == 4 * 8 * 3
    assert isinstance(table.sketches, dict)
    assert not any(isinstance(value, Streamed) for value in table.columns())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": -1}, "`tokens` of at least 0 but got -1"),
        ({"temperature": 0.0}, "`temperature` above 0 but got 0.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` of at least 1 but got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transitions("prompts.jsonl", **arguments)


def test_an_unembedding_that_reads_something_else(make_model: MakeModel) -> None:
    task = Transitions("prompts.jsonl", final_norm=False)
    with pytest.raises(InputError, match="needs 16 numbers per token but its blocks return 32"):
        task.check(make_model("opt"))


def test_blocks_of_a_hybrid_have_the_sublayers_that_they_have(
    tokenizer: PreTrainedTokenizerBase, transitions: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    config = NemotronHConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_attention_heads=4, head_dim=8,
        layers_block_type=["mamba", "attention", "mlp", "mamba", "attention"],
        num_key_value_heads=2,
        mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1, pad_token_id=0,
    )  # fmt: skip
    dense = AutoModelForCausalLM.from_config(config).eval()
    pruned = copy.deepcopy(dense)
    report = prune(pruned, SublayerDrop(1, "mixer"), torch.arange(64).view(4, 16))
    assert report.removed is not None
    (gone,) = report.removed["blocks"]  # a block with nothing else goes with its mixer
    task, table, _ = transitions(ModelPair(pruned, dense, tokenizer, removed_blocks=[gone]))
    mixer = table.sketches["local/mixer/decode/embedding_cosine"]
    mlp = table.sketches["local/mlp/decode/embedding_cosine"]
    assert mixer.n.tolist() == [5, 5, 0, 5, 5]
    assert mlp.n.tolist() == [0, 0, 5, 0, 0]
    assert mixer.mean[gone] < 0.9999
    assert all(mixer.mean[i] == pytest.approx(1, abs=1e-6) for i in (0, 1, 3, 4) if i != gone)
    assert not any("/attention/" in name for name in table.sketches)
    names = [name for name, _ in task.report(table).pictures]
    assert names[:2] == ["transitions_mixer", "transitions_mlp"]
