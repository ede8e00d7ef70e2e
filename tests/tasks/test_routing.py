"""Routers of a mixture, against the rules of each family in NumPy on its own router logits."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GraniteMoeConfig,
    Llama4TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import prune
from prunelit.core import dry_run
from prunelit.core.candidate import find_refused
from prunelit.core.datamodule import PruneData
from prunelit.core.weights import Weights
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.saving import save_pretrained
from prunelit.models.streaming import stream
from prunelit.pruners import BlockDrop, ExpertDrop, Wanda
from prunelit.report.results import read_results
from prunelit.sparsity import Unstructured
from prunelit.tasks import ItemTable, ModelPair, Routing

MakeModel = Callable[..., PreTrainedModel]
Run = Callable[..., tuple[Routing, ItemTable]]
FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe", "llama4"]
STEPS = 5


def build(name: str, make_model: MakeModel, seed: int = 0) -> PreTrainedModel:
    """A tiny mixture; that of DeepSeek has 2 groups of 4 experts and correction biases."""
    if name not in ("deepseek_v3", "granitemoe", "llama4"):
        return make_model(name, seed=seed)
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "intermediate_size", "pad_token_id")  # fmt: skip
    plain = make_model("mixtral").config.to_dict()
    sizes: dict[str, Any] = {key: plain[key] for key in same} | {"num_local_experts": 4}
    config: Any
    if name == "deepseek_v3":
        plain = make_model(name).config.to_dict()
        config = DeepseekV3Config(**{**plain, "n_routed_experts": 8, "topk_group": 1})
    elif name == "llama4":  # of two blocks the second is a mixture; an expert for each token
        config = Llama4TextConfig(
            **sizes, intermediate_size_mlp=24, head_dim=8, interleave_moe_layer_step=2,
            bos_token_id=0, eos_token_id=0, num_experts_per_tok=1,
        )  # fmt: skip
    else:
        config = GraniteMoeConfig(**sizes, num_experts_per_tok=2)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name_, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim >= 2 or "correction" in name_:
                value.normal_(std=0.15)
    return model


def disturbed(dense: PreTrainedModel, ids: Tensor) -> PreTrainedModel:
    """Half of the weights are pruned, and the routers are changed a little."""
    pruned = copy.deepcopy(dense)
    prune(pruned, Wanda(Unstructured(0.5)), ids)
    with torch.no_grad():
        for router in filter(None, routers(pruned)):
            router.weight.add_(0.05 * torch.randn(router.weight.shape))
    return pruned


def routers(model: PreTrainedModel) -> list[Any]:
    """Module with the matrix of the router of each block; None without one."""
    found = []
    for block in decoder_blocks(model)[1]:
        own = [m for name, m in block.named_modules() if name.split(".")[-1] in ("gate", "router")]
        own = [m.layer if hasattr(m, "layer") else m for m in own]
        found.append(own[0] if own else None)
    return found


@contextmanager
def linear_calls(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Inputs of the routers by block, where they call `linear`."""
    places = {id(router.weight): i for i, router in enumerate(routers(model)) if router is not None}
    seen: dict[int, Tensor] = {}
    own = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) in places:
            seen[places[id(weight)]] = x.detach().reshape(-1, x.shape[-1])
        return own(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        yield seen


def decide(router: Any, x: Tensor, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sets of active experts, (N, E) bool, and the distribution of the router, (N, E)."""
    logits = x.double().numpy() @ router.weight.detach().double().numpy().T
    if getattr(router, "bias", None) is not None:
        logits = logits + router.bias.detach().double().numpy()
    k = config.num_experts_per_tok
    if config.model_type in ("deepseek_v3", "llama4_text"):
        scores = choice = 1 / (1 + np.exp(-logits))
    else:
        scores, choice = np.exp(logits), logits
    if config.model_type == "deepseek_v3":
        choice = scores + router.e_score_correction_bias.double().numpy()
        grouped = choice.reshape(len(choice), config.n_group, -1)
        best = np.sort(grouped, -1)[..., -2:].sum(-1).argsort(-1)[:, -config.topk_group :]
        closed = np.ones(grouped.shape[:2], dtype=bool)
        np.put_along_axis(closed, best, False, 1)
        choice = np.where(closed[..., None], -np.inf, grouped).reshape(choice.shape)
    active = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(active, choice.argsort(-1)[:, -k:], True, 1)
    return active, scores / scores.sum(-1, keepdims=True)


@torch.no_grad()
def by_hand(
    pair: ModelPair, contexts: list[str], kept: dict[int, list[int]]
) -> dict[str, np.ndarray]:
    """Every quantity by prompt, block and token, each prompt alone: no padding, no cache."""
    dense, pruned = pair.dense, pair.pruned
    assert dense is not None
    found: dict[str, list[list[np.ndarray]]] = {}
    for text in contexts:
        prompt = torch.tensor([pair.tokenizer(text, add_special_tokens=False)["input_ids"]])
        ids = dense.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS, do_sample=False
        )
        with linear_calls(dense) as read:
            dense(ids, use_cache=False)
        with linear_calls(pruned) as own:
            pruned(ids, use_cache=False)
        of_prompt: dict[str, list[np.ndarray]] = {}
        for index, (one, other) in enumerate(zip(routers(dense), routers(pruned), strict=True)):
            if one is None:
                continue
            first, p = decide(one, read[index], dense.config)
            numbers = kept.get(index, list(range(first.shape[1])))
            p = p[:, numbers] / p[:, numbers].sum(-1, keepdims=True)
            for way, x in (("local", read[index]), ("cumulative", own[index])):
                chosen, q = decide(other, x, pruned.config)
                second = np.zeros(first.shape, dtype=bool)
                second[:, numbers] = chosen
                values = {
                    "changed": (first != second).any(-1),
                    "overlap": (first & second).sum(-1) / (first | second).sum(-1),
                    "router_kl": (p * np.log(p / q)).sum(-1),
                }
                for name, value in values.items():
                    of_prompt.setdefault(f"{way}/{name}", []).append(value)
            of_prompt.setdefault("dense", []).append(first)
            of_prompt.setdefault("pruned", []).append(second)
        start = prompt.shape[1] - 1
        for name, blocks in of_prompt.items():
            for phase, part in (("prompt", slice(start)), ("decode", slice(start, start + STEPS))):
                found.setdefault(f"{name}/{phase}", []).append(np.stack([b[part] for b in blocks]))
    return found


def check(table: ItemTable, results: dict[tuple[str, str], float], hand: dict[str, Any]) -> None:
    places = table["experts/dense"][0].nonzero()[:, 0].tolist()
    for key, prompts in hand.items():
        name, _, phase = key.rpartition("/")
        if name in ("dense", "pruned"):
            load = sum(one.sum(1) for one in prompts)  # (P, E)
            assert table[f"load/{key}"].sum(0)[places].tolist() == load.tolist()
            share = load / load.sum(-1, keepdims=True)
            logs = np.log(share, out=np.zeros(share.shape), where=share > 0)
            entropy = -(share * logs).sum(-1)
            assert results[f"{phase}/load_entropy", name] == pytest.approx(entropy.mean())
            continue
        way, quantity = name.split("/")
        there = [one for one in prompts if one.shape[1]]
        by_block = np.mean([one.mean(1) for one in there], 0)
        sketch = table.sketches[f"{way}/{phase}/{quantity}"]
        assert sketch.mean[places].tolist() == pytest.approx(by_block.tolist(), rel=1e-3, abs=2e-6)
        value = np.mean([one.mean() for one in there])
        assert results[f"{way}/{phase}/{quantity}", "pair"] == pytest.approx(
            value, rel=1e-3, abs=2e-6
        )
        if phase == "decode":
            by_step = np.mean([one.mean(0) for one in there], 0)
            steps = table.sketches[f"{way}/step/{quantity}"]
            assert steps.mean.tolist() == pytest.approx(by_step.tolist(), rel=1e-3, abs=2e-6)


@pytest.fixture
def routing(
    write_rows: Callable[..., str], contexts: list[str], measure: Callable[..., Any]
) -> Run:
    """`routing(pair, **arguments)`: the task and its table."""

    def run(pair: ModelPair, world: int = 1, **arguments: Any) -> tuple[Routing, ItemTable]:
        path = write_rows([{"context": text} for text in contexts[:5]])
        defaults = {"chat": False, "max_new_tokens": STEPS, "batch_size": 3}
        task = Routing(path, **{**defaults, **arguments})
        return task, measure(task, pair, world)[0]

    return run


def values_of(task: Routing, table: ItemTable) -> dict[tuple[str, str], float]:
    return {(row.metric, row.model): row.value for row in task.report(table).results}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_by_hand(
    name: str,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    routing: Run,
    contexts: list[str],
    input_ids: Tensor,
) -> None:
    dense = build(name, make_model)
    dense.generation_config.eos_token_id = None
    pair = ModelPair(disturbed(dense, input_ids), dense, tokenizer)
    task, table = routing(pair)
    hand = by_hand(pair, contexts[:5], {})
    assert 0 < np.mean(np.concatenate([x.ravel() for x in hand["local/changed/decode"]])) < 1
    check(table, values_of(task, table), hand)
    gate = "sigmoid" if name in ("deepseek_v3", "llama4") else "softmax"
    assert task.report(table).results[0].details["gate"] == gate


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_dropped_experts_by_hand(
    name: str,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    routing: Run,
    contexts: list[str],
    input_ids: Tensor,
) -> None:
    dense = build(name, make_model)
    dense.generation_config.eos_token_id = None
    pruned = copy.deepcopy(dense)
    report = prune(pruned, ExpertDrop(count=2), input_ids)
    assert report.removed is not None
    # Rows of the routers tell which experts are left.
    kept = {
        index: [int((one.weight == row).all(1).nonzero()) for row in other.weight]
        for index, (one, other) in enumerate(zip(routers(dense), routers(pruned), strict=True))
        if one is not None
    }
    named = {f"{index}.mlp.experts": numbers for index, numbers in kept.items()}
    assert report.removed["kept_experts"] == named
    pair = ModelPair(pruned, dense, tokenizer, kept_experts=named)
    task, table = routing(pair)
    results = values_of(task, table)
    check(table, results, by_hand(pair, contexts[:5], kept))
    for phase in ("prompt", "decode"):
        assert results[f"local/{phase}/router_kl", "pair"] == pytest.approx(0, abs=1e-6)
        assert 0 < results[f"local/{phase}/dropped_mass", "pair"] < 1
        ratio = results[f"{phase}/load_entropy", "pruned"] / math.log(
            len(next(iter(kept.values())))
        )
        assert results[f"{phase}/load_evenness", "pruned"] == pytest.approx(ratio)
    with pytest.raises(InputError, match=r"`pruning.json` does not say it"):
        routing(ModelPair(pruned, dense, tokenizer))


def test_a_copy_decides_the_same(
    mixture: str, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, routing: Run
) -> None:
    dense = make_model(mixture)
    task, table = routing(ModelPair(copy.deepcopy(dense), dense, tokenizer))
    for (metric, model), value in values_of(task, table).items():
        if model in ("pair", "difference"):
            assert value == (1 if metric.endswith("overlap") else 0), metric
    places = 2 if mixture == "deepseek_v3" else 3
    assert (table["experts/dense"][0] > 0).sum() == places


def test_streamed_blocks_and_ranks_give_the_same(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, routing: Run, input_ids: Tensor
) -> None:
    dense = make_model("qwen3_moe")
    pair = ModelPair(disturbed(dense, input_ids), dense, tokenizer)
    task, table = routing(pair)
    _, ranks = routing(pair, world=2, batch_size=1)
    for model in pair.models().values():
        stream(model)
    _, streamed = routing(pair)
    for column in table.columns():
        one = table[column].nan_to_num(7)
        assert one.equal(streamed[column].nan_to_num(7)), column
        torch.testing.assert_close(one, ranks[column].nan_to_num(7), rtol=1e-3, atol=1e-5)
    assert values_of(task, table)["cumulative/decode/changed", "pair"] > 0


def test_a_removed_block_is_left_out(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, routing: Run, input_ids: Tensor
) -> None:
    dense = make_model("qwen3_moe")
    pruned = copy.deepcopy(dense)
    report = prune(pruned, BlockDrop(1), input_ids)
    assert report.removed is not None
    (gone,) = report.removed["blocks"]
    task, table = routing(ModelPair(pruned, dense, tokenizer, [gone]))
    sketch = table.sketches["cumulative/decode/changed"]
    assert sketch.n.tolist() == [0 if index == gone else 5 for index in range(3)]
    assert table["load/dense/decode"][:, gone].sum() == 0
    curves = {curve.tag: curve for curve in task.report(table).curves}
    assert curves["decode/load_evenness/dense"].n[gone] == 0
    assert [name for name, _ in task.report(table).pictures] == ["routing_changes", "routing_load"]


def test_a_model_without_routers_is_refused(model: PreTrainedModel) -> None:
    task = Routing("prompts.jsonl")
    with pytest.raises(InputError, match="no block of the model has a router"):
        task.check(model)


def test_a_run_knows_the_experts_that_it_dropped(
    make_model: MakeModel,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    material: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    source = tmp_path / "dense"
    make_model("qwen3_moe").save_pretrained(source)
    tokenizer.save_pretrained(source)
    config = make_config(tmp_path)
    config["model"]["source"] = str(source)
    drop = {"class_path": "prunelit.pruners.ExpertDrop", "init_args": {"count": 1}}
    config["pruning"]["init_args"]["pruner"] = drop
    rows = {"path": str(material / "questions.jsonl"), "max_new_tokens": 3}
    config["data"]["tasks"] = [{"class_path": "prunelit.tasks.Routing", "init_args": rows}]
    path = str(save_config(tmp_path, config))
    cli("fit", "--config", path)
    results = tmp_path / "run" / "board" / "only"
    first = read_results(results / "results.jsonl")
    assert any("dropped_mass" in row.metric for row in first)
    files = {file.name for file in (results / "figures").glob("routing*")}
    assert files >= {"routing_changes.png", "routing_load.csv", "routing_curves.csv"}
    weights = Weights(str(source), candidate=str(tmp_path / "run" / "pruned"))
    weights.load()
    assert list(weights.pair.kept_experts) == [f"{index}.mlp.experts" for index in range(3)]
    monkeypatch.setattr(dry_run, "_PROBE", 0.01)
    cli("fit", "--config", path, "--dry_run")


def test_experts_of_a_model_that_was_pruned_twice_have_no_numbers(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, tmp_path: Path
) -> None:
    model = make_model("qwen3_moe")
    folders = [str(tmp_path / name) for name in ("dense", "once", "twice")]
    model.save_pretrained(folders[0])
    tokenizer.save_pretrained(folders[0])
    for folder in folders[1:]:
        save_pretrained(model, tokenizer, folder, prune(model, ExpertDrop(count=1), input_ids))
    dense, once, twice = folders
    for source, candidate, known in ((dense, once, 3), (once, twice, 3), (dense, twice, 0)):
        weights = Weights(source, candidate=candidate)
        assert len(weights.kept_experts) == known
        refused = find_refused(PruneData(None, [Routing("prunelit:facts.jsonl")]), weights)
        reason = f"which experts of {dense!r} are left in {twice!r} but its `pruning.json`"
        assert [reason in text for text in refused] == [True] * (known == 0)
