"""Drop methods against a slow computation that runs the stock model without the part."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight, sublayers
from prunelit.models.surgery import is_dropped
from prunelit.pruners import BlockDrop, Neuron, SublayerDrop

MakeModel = Callable[..., PreTrainedModel]
POST_NORMS = {
    "gemma2": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
}
PARALLEL = ("phi", "gpt_neox")


def streams(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """Hidden states before every block and after the last, real tokens only, (N, D)."""
    seen: list[Tensor] = []
    _, blocks = decoder_blocks(model)
    handles = [
        block.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for block in blocks
    ]
    handles.append(
        blocks[-1].register_forward_hook(
            lambda _m, _a, out: seen.append(out if isinstance(out, Tensor) else out[0])
        )
    )
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(**batch, position_ids=positions, use_cache=False)
    for handle in handles:
        handle.remove()
    real = batch["attention_mask"].bool()
    return [tensor[real].double().numpy() for tensor in seen]


def contributions(model: PreTrainedModel, family: str, batch: dict[str, Tensor]) -> list[dict]:
    """What each sublayer adds to the stream, read off the family's own module, (N, D)."""
    seen: list[dict[str, np.ndarray]] = [{} for _ in decoder_blocks(model)[1]]
    real = batch["attention_mask"].bool()
    handles = []
    for index, block in enumerate(decoder_blocks(model)[1]):
        for kind, part in sublayers(block).items():
            name = POST_NORMS.get(family, {}).get(kind, part.output)

            def keep(_m: nn.Module, _a: object, out: Tensor, index=index, kind=kind) -> None:
                out = out.view(*real.shape, -1)
                seen[index][kind] = out[real].double().numpy()

            handles.append(block.get_submodule(name).register_forward_hook(keep))
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(**batch, position_ids=positions, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def distance(a: np.ndarray, b: np.ndarray, angular: bool = False) -> float:
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float((np.arccos(cosine) / np.pi if angular else 1 - cosine).mean())


def by_hand(model: PreTrainedModel, family: str, batch: dict[str, Tensor]) -> dict:
    found = {}
    parts = contributions(model, family, batch)
    for index, (h, added) in enumerate(zip(streams(model, batch)[:-1], parts, strict=True)):
        middle = h + added["attention"]
        found[index, "attention"] = distance(h, middle)
        start = h if family in PARALLEL else middle
        found[index, "mlp"] = distance(start, start + added["mlp"])
    return found


def dropped(model: PreTrainedModel) -> set[tuple[int, str]]:
    return {
        (index, kind)
        for index, block in enumerate(decoder_blocks(model)[1])
        for kind in ("attention", "mlp")
        if is_dropped(block, kind)
    }


@pytest.mark.parametrize("target", ["attention", "mlp", "both"])
@pytest.mark.parametrize("count", [1, 2])
def test_sublayers_that_change_least_go(
    family: str, make_model: MakeModel, padded: dict[str, Tensor], target: str, count: int
) -> None:
    model = make_model(family)
    scores = by_hand(model, family, padded)
    competing = [place for place in scores if target in ("both", place[1])]
    expected = set(sorted(competing, key=lambda place: scores[place])[:count])
    prune(model, SublayerDrop(count, target), [padded])  # type: ignore[arg-type]
    assert dropped(model) == expected


@pytest.mark.parametrize("target", ["attention", "both"])
def test_scored_again_after_each_drop(
    make_model: MakeModel, padded: dict[str, Tensor], target: str
) -> None:
    model, slow = make_model("llama", seed=3), make_model("llama", seed=3)
    expected: set[tuple[int, str]] = set()
    for _ in range(2):
        scores = by_hand(slow, "llama", padded)
        left = [p for p in scores if target in ("both", p[1]) and p not in expected]
        index, kind = min(left, key=lambda place: scores[place])
        expected.add((index, kind))
        output = sublayers(decoder_blocks(slow)[1][index])[kind].output
        nn.init.zeros_(decoder_blocks(slow)[1][index].get_submodule(output).weight)
    prune(model, SublayerDrop(2, target, rescore=True), [padded])  # type: ignore[arg-type]
    assert dropped(model) == expected


def test_rounds_of_drops_only_add(make_model: MakeModel, padded: dict[str, Tensor]) -> None:
    for pruner in (
        SublayerDrop(2, "both"),
        BlockDrop(2),
        BlockDrop(2, consecutive=True),
    ):
        model = make_model("llama")
        prune(model, pruner.scaled(0.5), [padded])
        first = dropped(model)
        assert len(first) == (2 if isinstance(pruner, BlockDrop) else 1)
        prune(model, pruner, [padded])
        assert first < dropped(model)
        assert len(dropped(model)) == 2 * len(first)


def six_blocks(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.model.layers:  # blocks of very different influence
            scale = float(torch.rand(()) * 3 + 0.05)
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.2 * scale)
    return model


@pytest.mark.parametrize("kind", ["cosine", "angular"])
@pytest.mark.parametrize(("count", "seed"), list(itertools.product([1, 2, 3, 5], range(3))))
def test_best_run_of_blocks_by_brute_force(
    count: int, seed: int, kind: str, padded: dict[str, Tensor]
) -> None:
    model = six_blocks(seed)
    states = streams(model, padded)
    runs = range(6 - count + 1)
    scores = [distance(states[i], states[i + count], kind == "angular") for i in runs]
    best = int(np.argmin(scores))
    pruner = BlockDrop(count, consecutive=True, distance=kind)  # type: ignore[arg-type]
    prune(
        model,
        pruner,
        [{k: v[:4] for k, v in padded.items()}, {k: v[4:] for k, v in padded.items()}],
    )
    assert {index for index, _ in dropped(model)} == set(range(best, best + count))


@pytest.mark.parametrize(("count", "seed"), list(itertools.product([1, 2, 4], range(3))))
def test_discrete_blocks_by_brute_force(count: int, seed: int, padded: dict[str, Tensor]) -> None:
    model = six_blocks(seed)
    states = streams(model, padded)
    scores = [distance(states[i], states[i + 1]) for i in range(6)]
    prune(model, BlockDrop(count), [padded])
    assert {index for index, _ in dropped(model)} == set(np.argsort(scores)[:count].tolist())


def test_blocks_that_are_no_identity_without_sublayers_are_refused(input_ids: Tensor) -> None:
    config = OPTConfig(
        vocab_size=300,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        do_layer_norm_before=False,
    )
    model = OPTForCausalLM(config).eval()
    with pytest.raises(InputError, match="changes its input even when its sublayers put out"):
        prune(model, SublayerDrop(1), input_ids)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SublayerDrop(3), "fewer than the model's 3 attention sublayers"),
        (lambda: SublayerDrop(6, "both"), "fewer than the model's 6 both sublayers"),
        (lambda: BlockDrop(3), "fewer than the model's 3 blocks"),
        (lambda: SublayerDrop(0), "`count` of at least 1"),
        (lambda: SublayerDrop(1, "heads"), "attention, mlp or both but got 1 and 'heads'"),
        (lambda: BlockDrop(1, distance="l2"), "cosine or angular but got 1 and 'l2'"),
        (lambda: Neuron(1.0), r"`ratio` in \[0, 1\) but got 1\.0"),
    ],
)
def test_bad_settings(
    build: Callable[[], object], message: str, model: PreTrainedModel, input_ids: Tensor
) -> None:
    with pytest.raises(InputError, match=message):
        prune(model, build(), input_ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.25, 0.4])
def test_neurons_that_matter_least_go(
    family: str, make_model: MakeModel, padded: dict[str, Tensor], ratio: float
) -> None:
    model = make_model(family)
    block = decoder_blocks(model)[1][0]  # whose inputs no earlier pruning changes
    mlp = sublayers(block)["mlp"]
    seen: list[Tensor] = []
    real = padded["attention_mask"].bool()
    handle = block.get_submodule(mlp.output).register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].view(*real.shape, -1)[real])
    )
    streams(model, padded)
    handle.remove()
    down = oriented_weight(block.get_submodule(mlp.output)).detach().double().numpy().copy()
    scores = np.abs(down).mean(0) * (seen[0].double().numpy() ** 2).mean(0)
    gone = np.argsort(scores)[: round(ratio * len(scores))]
    prune(model, Neuron(ratio), [padded])
    after = oriented_weight(block.get_submodule(mlp.output)).detach().numpy()
    np.testing.assert_array_equal(np.flatnonzero(~after.any(0)), np.sort(gone))
    kept = np.delete(np.arange(len(scores)), gone)
    np.testing.assert_allclose(after[:, kept], down[:, kept], rtol=1e-6)
    for name in mlp.inputs:
        linear = block.get_submodule(name)
        rows = oriented_weight(linear).detach().numpy()
        np.testing.assert_array_equal(np.flatnonzero(~rows.any(1)), np.sort(gone))
        if getattr(linear, "bias", None) is not None:
            assert not linear.bias[torch.from_numpy(gone)].any()
