"""Pruning block by block equals runs of the whole model; unsupported models are refused."""

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPTJConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.pruners import Pruner, Wanda
from prunelit.pruning.blockwise import RankText, prune_blocks
from prunelit.pruning.peak_memory import PeakMemory
from prunelit.pruning.pooling import Reach
from prunelit.sparsity import SemiStructured, Sparsity, Unstructured

from .pooled import Pooled

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


def first_real(batch: Batch) -> Batch:
    return {key: value[1:2] for key, value in batch.items()}


@torch.no_grad()
def run_blocks(model: PreTrainedModel, pruner: Pruner, text: RankText | None) -> list[int]:
    """Prune, and give the index of each block in the order of work."""
    memory, reach = PeakMemory(model.device), Reach(pruner.expert_tokens)
    return [cost.index for cost in prune_blocks(model, pruner, text, memory, reach)]


def run(model: PreTrainedModel, pruner: Pruner, batches: list[Batch]) -> None:
    run_blocks(model, pruner, RankText(batches, first_real(batches[0])))


def pad(ids: Tensor, *, left: bool, filler: int = 0) -> Batch:
    """Rows 0 and 3 of `ids` padded by 7 and 2 tokens."""
    mask = torch.ones_like(ids)
    for row, width in ((0, 7), (3, 2)):
        mask[row, slice(width) if left else slice(-width, None)] = 0
    return {"input_ids": ids.masked_fill(mask == 0, filler), "attention_mask": mask}


def forward(model: PreTrainedModel, batch: Batch) -> None:
    """The whole stock model, positions counting real tokens as its own `generate` does."""
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    left = not batch["attention_mask"][:, 0].all()
    model(**batch, **({"position_ids": positions} if left else {}), use_cache=False)


@torch.no_grad()
def observed(model: PreTrainedModel, block: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    """(N, I) inputs of every linear map of `block` in a run of the whole model, no padding."""
    inputs: dict[str, np.ndarray] = {}
    real = batch["attention_mask"].bool().flatten()

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0].flatten(0, -2)[real].double().numpy()

        return hook

    handles = [
        linear.register_forward_pre_hook(keep(name))
        for name, linear in linear_modules(block).items()
    ]
    forward(model, batch)
    for handle in handles:
        handle.remove()
    return inputs


def mask_by_hand(scores: np.ndarray, remove: int, group: int) -> np.ndarray:
    keep = np.ones_like(scores, dtype=bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], group):
            piece = scores[row, start : start + group]
            keep[row, start + np.argsort(piece, kind="stable")[:remove]] = False
    return keep


@torch.no_grad()
def prune_by_hand(
    model: PreTrainedModel, batches: list[Batch], remove: Callable[[int], int], group: int | None
) -> None:
    """Wanda without any replay: every block observed in a run of the model pruned so far."""
    for block in decoder_blocks(model)[1]:
        pieces = [observed(model, block, batch) for batch in batches]
        for name, linear in linear_modules(block).items():
            x = np.concatenate([piece[name] for piece in pieces])
            norm = np.sqrt((x**2).mean(0).astype(np.float32))
            weight = oriented_weight(linear)
            width = group or weight.shape[1]
            keep = mask_by_hand(np.abs(weight.numpy()) * norm, remove(width), width)
            weight.mul_(torch.from_numpy(keep))


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(
    ("sparsity", "remove", "group"),
    [
        (Unstructured(0.625), lambda width: width * 5 // 8, None),
        (SemiStructured(2, 4), lambda _: 2, 4),
    ],
    ids=["unstructured", "2:4"],
)
def test_block_by_block_equals_runs_of_the_whole_model(
    make_model: MakeModel,
    family: str,
    input_ids: Tensor,
    left: bool,
    sparsity: Sparsity,
    remove: Callable[[int], int],
    group: int | None,
) -> None:
    batches = [pad(input_ids, left=left), {"input_ids": input_ids[:2, :9]}]
    batches[1]["attention_mask"] = torch.ones_like(batches[1]["input_ids"])
    model = make_model(family)
    dense, expected = copy.deepcopy(model), copy.deepcopy(model)
    run(model, Wanda(sparsity), batches)
    prune_by_hand(expected, batches, remove, group)
    assert_same_weights(model, expected)
    assert not torch.equal(model(input_ids).logits, dense(input_ids).logits)


@pytest.mark.parametrize("left", [True, False])
def test_what_stands_at_padding_changes_nothing(
    make_model: MakeModel, family: str, input_ids: Tensor, left: bool
) -> None:
    pruned = []
    for filler in (0, 123):
        pruned.append(make_model(family))
        run(pruned[-1], Wanda(Unstructured(0.5)), [pad(input_ids, left=left, filler=filler)])
    assert_same_weights(*pruned)


def test_batch_size_does_not_change_the_masks(
    make_model: MakeModel, family: str, padded: Batch
) -> None:
    pruned = []
    for size in (1, 2, 6):
        split = zip(*(padded[key].split(size) for key in padded), strict=True)
        model = make_model(family)
        batches = [dict(zip(padded, pieces, strict=True)) for pieces in split]
        run_blocks(model, Wanda(Unstructured(0.5)), RankText(batches, first_real(padded)))
        pruned.append(model)
    assert_same_weights(pruned[0], pruned[1])
    assert_same_weights(pruned[0], pruned[2])


def test_hooks_and_forwards_are_left_as_they_were(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("llama")
    block = model.model.layers[1]
    own = block.forward
    block.forward = own  # as accelerate's hooks do
    run(model, Wanda(Unstructured(0.5)), [padded])
    assert vars(block)["forward"] is own
    assert "forward" not in vars(model.model.layers[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def assert_refused(model: PreTrainedModel, batch: Batch, match: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=match):
        run(model, Wanda(Unstructured(0.5)), [batch])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(block) for block in decoder_blocks(model)[1])


def test_blocks_that_depend_on_more_than_their_arguments_are_refused(
    make_model: MakeModel, padded: Batch
) -> None:
    model = make_model("llama")
    calls = itertools.count()

    def drift(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output + 0.01 * next(calls)

    model.model.layers[1].register_forward_hook(drift)
    assert_refused(model, padded, r"LlamaForCausalLM one by one differs by \d")


def test_blocks_called_in_another_way_are_refused(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("llama")
    for block in model.model.layers:
        block.register_forward_pre_hook(
            lambda _module, args, kwargs: ((), {"hidden_states": args[0], **kwargs}),
            with_kwargs=True,
        )
    assert_refused(model, padded, r"LlamaForCausalLM cannot be run one by one: .*hidden")


def test_model_that_runs_a_block_twice_is_refused(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("llama")
    last = model.model.layers[2]
    model.model.layers[1].register_forward_hook(
        lambda _module, _args, kwargs, output: last(output, **kwargs), with_kwargs=True
    )
    assert_refused(model, padded, "called 4 of its 3 blocks")


# The model runs itself, then with blocks that only note their arguments, then block by block.
@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("model", 1),
        ("model", 2),
        ("model.embed_tokens", 2),
        ("model.layers.1", 1),
        ("model.layers.1", 2),
        ("model.layers.1", 3),
        ("model.layers.1.mlp", 2),
    ],
)
def test_error_of_the_model_is_not_swallowed(
    make_model: MakeModel, padded: Batch, place: str, call: int
) -> None:
    model = make_model("llama")
    before = copy.deepcopy(model.state_dict())
    calls = itertools.count(1)

    def fail(*_: object) -> None:
        if next(calls) == call:
            raise ValueError("a fault of the model")

    model.get_submodule(place).register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=r"^a fault of the model$") as caught:
        run(model, Wanda(Unstructured(0.5)), [padded])
    assert not isinstance(caught.value, InputError)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_linear_map_that_reads_another_number_of_tokens_is_refused(
    make_model: MakeModel, padded: Batch
) -> None:
    model = make_model("llama")

    for block in model.model.layers:
        block.mlp = Pooled(block.mlp)
    with pytest.raises(InputError, match=r"'mlp\.summary' .* \(\d+, 1, 32\) while .* \(\d+, 20\)"):
        run(model, Wanda(Unstructured(0.5)), [padded])
    run(model, Wanda(Unstructured(0.5), exclude=["mlp.summary"]), [padded])
    assert (model.model.layers[0].mlp.inner.up_proj.weight == 0).float().mean() == 0.5


# Families whose blocks return the hidden state first in a tuple.
TUPLES: list[PreTrainedConfig] = [
    BloomConfig(vocab_size=300, hidden_size=32, n_layer=3, n_head=4),
    FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=3, num_attention_heads=4),
    GPTJConfig(vocab_size=300, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, n_positions=64),
]


@pytest.mark.parametrize("config", TUPLES, ids=lambda config: config.model_type)
def test_blocks_that_return_tuples(config: PreTrainedConfig, input_ids: Tensor) -> None:
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(config).eval()
    pruned, other = copy.deepcopy(dense), copy.deepcopy(dense)
    run(pruned, Wanda(Unstructured(0.5)), [pad(input_ids, left=False)])
    run(other, Wanda(Unstructured(0.5)), [pad(input_ids, left=False, filler=9)])
    for name, linear in linear_modules(decoder_blocks(pruned)[1][1]).items():
        assert (oriented_weight(linear) == 0).sum(1).eq(linear.weight.shape[1] // 2).all(), name
    for name, weight in pruned.state_dict().items():
        assert weight.equal(other.state_dict()[name])


def test_autocast_keeps_no_copy_of_the_dense_weights(model: PreTrainedModel, input_ids: Tensor):
    cached, fresh = copy.deepcopy(model), copy.deepcopy(model)
    batches = [pad(input_ids, left=True)]
    for pruned, caches in ((cached, True), (fresh, False)):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=caches):
            run(pruned, Wanda(Unstructured(0.5)), batches)
    for name, weight in cached.state_dict().items():
        assert weight.equal(fresh.state_dict()[name])
