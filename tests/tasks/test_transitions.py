"""Sublayers one by one, against the same computed by hand from a family's own modules."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.metrics.deviation import deviations
from prunelit.models.architecture import decoder_blocks
from prunelit.models.surgery import drop_
from prunelit.pruners import BlockDrop, SublayerDrop, Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import ItemTable, Pair, Transitions
from prunelit.tasks.items import Streamed

MakeModel = Callable[..., PreTrainedModel]
PARALLEL = ("phi", "gpt_neox")
CONTEXTS = ["one", "a longer prompt", "two", "what now?", "x"]


@pytest.fixture
def measure(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Any]:
    """`measure(pair, **arguments)`: the task, its complete table, and what each batch gave."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"context": text}) + "\n" for text in CONTEXTS))

    def run(pair: Pair, world: int = 1, **arguments: Any) -> tuple[Transitions, ItemTable, list]:
        defaults = {"chat": False, "max_new_tokens": 6, "tokens": None, "batch_size": 3}
        task = Transitions(str(path), **{**defaults, **arguments})
        task.read()
        size = task.prepare(tokenizer)
        assert pair.dense is not None
        task.check(pair.dense)
        tables, outputs = [], []
        for rank in range(world):
            table = ItemTable(size)
            for batch in task.batches(size, rank, world):
                if len(batch["indices"]):
                    outputs.append(task.step(pair, batch))
                    table.assign(batch["indices"], outputs[-1])
            tables.append(table)
        for other in tables[1:]:
            for name, sketch in other.sketches.items():
                tables[0].sketches[name].merge(sketch)
        return task, tables[0], outputs

    return run


def mask_of(model: PreTrainedModel, index: int, length: int) -> Tensor:
    """(1, 1, T, T), added to attention scores."""
    config = model.config
    window = length
    if config.model_type == "mistral":
        window = config.sliding_window
    if getattr(config, "layer_types", None):
        sliding = config.layer_types[index] == "sliding_attention"
        window = config.sliding_window if sliding else length
    ahead = torch.arange(length)[:, None] - torch.arange(length)
    return torch.where((ahead >= 0) & (ahead < window), 0.0, -torch.inf)[None, None]


class ByHand:
    """A family's sublayers called one by one on one unpadded sequence, no hooks, no cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.family = model, model.config.model_type
        self.base = model.base_model
        self.blocks = decoder_blocks(model)[1]

    def begin(self, ids: Tensor) -> Tensor:
        self.positions = torch.arange(ids.shape[1])[None]
        if self.family == "gpt2":
            return self.base.wte(ids) + self.base.wpe(self.positions)
        if self.family == "gpt_neox":
            return self.base.embed_in(ids)
        return self.base.embed_tokens(ids)

    def attention(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        options: dict[str, Any] = {"attention_mask": mask_of(self.model, index, x.shape[1])}
        if self.family == "gpt2":
            return x + block.attn(block.ln_1(x), **options)[0]
        options["position_embeddings"] = self.base.rotary_emb(x, self.positions)
        attention = block.attention if self.family == "gpt_neox" else block.self_attn
        out = attention(hidden_states=block.input_layernorm(x), **options)[0]
        return x + (block.post_attention_layernorm(out) if self.family == "gemma2" else out)

    def mlp(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        if self.family == "gemma2":
            out = block.mlp(block.pre_feedforward_layernorm(x))
            return x + block.post_feedforward_layernorm(out)
        norm = {"gpt2": "ln_2", "phi": "input_layernorm"}.get(
            self.family, "post_attention_layernorm"
        )
        return x + block.mlp(getattr(block, norm)(x))

    def logits(self, x: Tensor, final_norm: bool) -> Tensor:
        if final_norm:
            names = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
            x = next(getattr(self.base, name) for name in names if hasattr(self.base, name))(x)
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        z = head(x)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return cap * torch.tanh(z / cap) if cap else z


def streams(hand: ByHand, ids: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """For each block what each sublayer reads and what comes of it."""
    x, found = hand.begin(ids), []
    for index in range(len(hand.blocks)):
        attended = hand.attention(index, x)
        if hand.family in PARALLEL:
            alone = hand.mlp(index, x)
            found.append({"attention": (x, attended), "mlp": (x, alone)})
            x = attended + alone - x
        else:
            out = hand.mlp(index, attended)
            found.append({"attention": (x, attended), "mlp": (attended, out)})
            x = out
    return found


@pytest.mark.parametrize("final_norm", [True, False])
@torch.no_grad()
def test_every_family_by_hand(
    family: str,
    final_norm: bool,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    measure: Callable[..., Any],
    input_ids: Tensor,
) -> None:
    if family == "opt":
        pytest.skip("its projections make it a family of its own: the null test runs it")
    dense, pruned = make_model(family), make_model(family)
    prune(pruned, Wanda(Unstructured(0.5)), input_ids)
    drop_(decoder_blocks(pruned)[1][1], "attention")
    _, _, outputs = measure(Pair(pruned, dense, tokenizer), final_norm=final_norm)
    hands = ByHand(dense), ByHand(pruned)
    item = 0
    for output in outputs:
        size = len(output["local/mlp/decode/js"].values)
        for place in range(size):
            prompt = torch.tensor([tokenizer(CONTEXTS[item])["input_ids"]])
            item += 1
            ids, ended = prompt, False
            for _ in range(6):
                following = dense(input_ids=ids).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, following], 1)
                if ended := bool(following == 0):
                    break
            mine, theirs = (streams(hand, ids) for hand in hands)
            steps = ids.shape[1] - prompt.shape[1]
            first = prompt.shape[1] - 1
            assert ended or steps == 6
            for block in range(3):
                for kind in ("attention", "mlp"):
                    read, dense_out = mine[block][kind]
                    local = getattr(hands[1], kind)(block, read)
                    for variant, out, hand in (
                        ("local", local, hands[0]),
                        ("cumulative", theirs[block][kind][1], hands[1]),
                    ):
                        expected = deviations(
                            dense_out[0],
                            out[0],
                            hands[0].logits(dense_out, final_norm)[0],
                            hand.logits(out, final_norm)[0],
                        )
                        for quantity in (
                            "embedding_cosine",
                            "embedding_orthogonal",
                            "logit_cosine",
                            "logit_mse",
                            "probability_cosine",
                            "kl_dense_pruned",
                            "kl_pruned_dense",
                            "kl_dense_pruned_estimate",
                        ):
                            for phase, chosen in (
                                ("prompt", slice(0, first)),
                                ("decode", slice(first, first + steps)),
                            ):
                                name = f"{variant}/{kind}/{phase}/{quantity}"
                                found = output[name].values[place, block]
                                torch.testing.assert_close(
                                    found[~found.isnan()],
                                    expected[quantity][chosen],
                                    rtol=2e-3,
                                    atol=2e-5,
                                    msg=lambda text, name=name: f"{name}: {text}",
                                )


def test_a_copy_differs_nowhere(
    family: str,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    measure: Callable[..., Any],
) -> None:
    dense = make_model(family)
    _, table, _ = measure(Pair(copy.deepcopy(dense), dense, tokenizer))
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
    measure: Callable[..., Any],
) -> None:
    drop_(decoder_blocks(model)[1][1], "attention")
    _, table, _ = measure(Pair(model, make_model(), tokenizer))
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
    measure: Callable[..., Any],
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    dense, zeroed = make_model(), make_model()
    report = prune(zeroed, drop(), input_ids)
    save_pretrained(zeroed, tokenizer, tmp_path / "pruned", report)
    stored, _ = load_pretrained(str(tmp_path / "pruned"))
    plain = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    blocks = plain["removed"]["blocks"]
    _, first, _ = measure(Pair(zeroed, dense, tokenizer))
    _, second, _ = measure(Pair(stored, dense, tokenizer, blocks))
    assert first.sketches.keys() == second.sketches.keys()
    for name, sketch in first.sketches.items():
        torch.testing.assert_close(
            sketch.mean, second.sketches[name].mean, rtol=1e-3, atol=1e-5, msg=name
        )
    if blocks:
        with pytest.raises(InputError, match="a pruned model with 3 blocks"):
            measure(Pair(stored, dense, tokenizer))


def test_batches_ranks_and_chosen_tokens(
    model: PreTrainedModel,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    measure: Callable[..., Any],
    input_ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prune(model, Wanda(Unstructured(0.5)), input_ids)
    pair = Pair(model, make_model(), tokenizer)
    task, whole, _ = measure(pair, batch_size=5)
    _, ranks, _ = measure(pair, world=2, batch_size=1)
    for name, sketch in whole.sketches.items():
        other = ranks.sketches[name]
        assert sketch.n.equal(other.n)
        torch.testing.assert_close(sketch.mean, other.mean, rtol=1e-3, atol=1e-5, msg=name)
    rows = {row.metric: row for row in task.summarise(whole)}
    assert len(rows) == 2 * 2 * 2 * 4
    name = "cumulative/mlp/decode/kl_dense_pruned"
    assert rows[name].value == pytest.approx(float(whole.sketches[name].mean.mean()), rel=1e-6)
    assert rows[name].n == 5
    assert rows[name].details["final_norm"] is True
    _, _, all_tokens = measure(pair, batch_size=5)
    _, few, outputs = measure(pair, batch_size=5, tokens=2)
    assert few.sketches[name].tokens.tolist() == [10] * 3
    values, chosen = all_tokens[0][name].values, outputs[0][name].values
    for mine, theirs in zip(values[:, 0], chosen[:, 0], strict=True):
        there = (~mine.isnan()).nonzero()[:, 0]
        picked = (~theirs.isnan()).nonzero()[:, 0]
        assert picked.tolist() == [there[len(there) // 2 - 1], there[-1]]


def test_curves_and_pictures(
    model: PreTrainedModel,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    measure: Callable[..., Any],
    input_ids: Tensor,
) -> None:
    prune(model, Wanda(Unstructured(0.5)), input_ids)
    task, table, _ = measure(Pair(model, make_model(), tokenizer))
    curves = {curve.tag: curve for curve in task.curves(table)}
    assert curves.keys() == table.sketches.keys()
    curve = curves["local/attention/prompt/logit_cosine"]
    assert (curve.axis, list(curve.x), list(curve.n)) == ("block", [0, 1, 2], [4, 4, 4])
    assert all(
        low <= mean <= high
        for low, mean, high in zip(curve.low, curve.mean, curve.high, strict=True)
    )
    pictures = task.pictures(table)
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
        ({"tokens": 0}, "`tokens` of at least 1 but got 0"),
        ({"temperature": 0.0}, "`temperature` above 0 but got 0.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` of at least 1 but got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transitions("prompts.jsonl", **arguments)


def test_an_unembedding_that_reads_something_else(make_model: MakeModel) -> None:
    task = Transitions("prompts.jsonl", final_norm=False)
    with pytest.raises(InputError, match="reads 16 numbers a token while its blocks pass on 32"):
        task.check(make_model("opt"))
