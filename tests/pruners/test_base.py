from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    PreTrainedModel,
)

from prunelit import prune
from prunelit.activations import SquaredNorm, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.pruners import LinearPruner, Wanda
from prunelit.sparsity import SemiStructured, Unstructured

MakeModel = Callable[..., PreTrainedModel]
ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


class Halving(LinearPruner):
    """Halves every weight that it is given and remembers their shapes."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[torch.Size, torch.dtype, Statistic]] = []

    def statistic(self, linear: nn.Module) -> Statistic:
        return SquaredNorm(oriented_weight(linear).shape[1])

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        self.seen.append((weight.shape, weight.dtype, statistic))
        return weight / 2


class Exploding(Halving):
    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return weight / 0


class Growing(Halving):
    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return weight * 1e8  # finite in float32


@pytest.fixture
def block(model: PreTrainedModel) -> nn.Module:
    return decoder_blocks(model)[1][0]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*"], [], ATTENTION | MLP),
        (["mlp.*"], [], MLP),
        (["*"], ["mlp.*"], ATTENTION),
        (["self_attn.?_proj"], ["*.o_proj"], ATTENTION - {"self_attn.o_proj"}),
        (["mlp.up_proj", "self_attn.[qk]_proj"], [], {
            "mlp.up_proj", "self_attn.q_proj", "self_attn.k_proj",
        }),
    ],
)  # fmt: skip
def test_patterns_choose_modules(
    block: nn.Module, include: list[str], exclude: list[str], expected: set[str]
) -> None:
    pruner = Halving(Unstructured(0.5), include, exclude)
    assert set(pruner.targets(block)) == expected
    assert set(pruner.watch(block)) == expected


def test_every_probe_has_a_fresh_statistic(block: nn.Module) -> None:
    pruner = Halving(Unstructured(0.5))
    statistics = [probe.statistic for _ in range(2) for probe in pruner.watch(block).values()]
    assert len(set(map(id, statistics))) == 2 * len(ATTENTION | MLP)
    assert all(probe.at == "input" for probe in pruner.watch(block).values())


@pytest.mark.parametrize("place", ["include", "exclude"])
def test_pattern_that_matches_nothing_lists_near_names(model: PreTrainedModel, place: str) -> None:
    pruner = Halving(Unstructured(0.5), **{place: ["mlp.up"]})
    with pytest.raises(
        InputError, match=r"'mlp\.up' matches no .* LlamaForCausalLM; near names: .*mlp\.up_proj"
    ):
        pruner.check(model)


def test_pattern_like_nothing_lists_all_names(model: PreTrainedModel) -> None:
    with pytest.raises(InputError) as caught:
        Halving(Unstructured(0.5), ["zzz"]).check(model)
    assert all(name in str(caught.value) for name in ATTENTION | MLP)


def test_patterns_that_leave_nothing(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r"\['mlp\.\*'\] without `exclude` \['\*'\] matches no"):
        Halving(Unstructured(0.5), ["mlp.*"], ["*"]).check(model)


def test_shape_that_the_sparsity_refuses_names_the_module(block: nn.Module) -> None:
    with pytest.raises(InputError, match=r"inputs of self_attn\.q_proj .* `group` 5 but got 32"):
        Halving(SemiStructured(2, 5)).targets(block)
    # 48 inputs of the last MLP matrix are divisible by 3, 32 are not.
    assert Halving(SemiStructured(1, 3), ["mlp.down_proj"]).targets(block)


def test_weights_are_edited_in_place_as_outputs_by_inputs_in_float32(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    model = make_model("gpt2").bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    storage = {name: value.data_ptr() for name, value in model.named_parameters()}
    pruner = Halving(Unstructured(0.5), ["mlp.c_fc"])
    prune(model, pruner, input_ids)
    assert [(shape, dtype) for shape, dtype, _ in pruner.seen] == [((128, 32), torch.float32)] * 3
    for name, value in model.named_parameters():
        expected = before[name] / 2 if name.endswith("c_fc.weight") else before[name]
        assert torch.equal(value, expected), name
        assert value.dtype == torch.bfloat16
        assert value.data_ptr() == storage[name]


def test_conv1d_of_gpt_2_is_pruned_along_its_inputs(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    model = make_model("gpt2")
    prune(model, Wanda(Unstructured(0.25)), input_ids)
    for block in model.transformer.h:
        for name, linear in linear_modules(block).items():
            inputs = linear.weight.shape[0]
            assert ((linear.weight == 0).sum(0) == inputs // 4).all(), name


def test_only_matrices_of_blocks_are_pruned(
    make_model: MakeModel, family: str, input_ids: Tensor
) -> None:
    model = make_model(family)
    prefix, blocks = decoder_blocks(model)
    inside = {
        f"{prefix}.{index}.{name}.weight"
        for index, block in enumerate(blocks)
        for name in linear_modules(block)
    }
    before = {name: value.clone() for name, value in model.named_parameters()}
    prune(model, Wanda(Unstructured(0.5)), input_ids)
    changed = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    # Norms, biases, token embeddings and the unembedding, tied or not, stay as they were.
    assert changed == inside


def test_weights_that_are_not_finite_name_the_module(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    with pytest.raises(InputError, match=r"Exploding made NaN or infinite weights in 'mlp\.up_"):
        prune(model, Exploding(Unstructured(0.5), ["mlp.up_proj"]), input_ids)


def test_weights_that_the_dtype_of_the_model_cannot_hold_name_the_module(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    with pytest.raises(InputError, match=r"Growing made NaN or infinite weights in 'mlp\.up_"):
        prune(make_model("llama").half(), Growing(Unstructured(0.5), ["mlp.up_proj"]), input_ids)


def test_activations_that_overflow_name_the_module(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    # Finite in float32, their squares are not.
    for name in ("gate_proj", "up_proj"):
        model.model.layers[1].mlp.get_submodule(name).weight.data.mul_(1e10)
    with pytest.raises(
        InputError, match=r"inputs of 'mlp\.down_proj' or their squares are not finite"
    ):
        prune(model, Wanda(Unstructured(0.5)), input_ids)


def test_linear_map_that_is_never_called_is_named(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    for block in model.model.layers:
        block.mlp.spare = nn.Linear(32, 32)
    with pytest.raises(InputError, match=r"'mlp\.spare' received no calibration token: exclude it"):
        prune(model, Wanda(Unstructured(0.5)), input_ids)
    prune(model, Wanda(Unstructured(0.5), exclude=["mlp.spare"]), input_ids)
    assert (model.model.layers[2].mlp.spare.weight != 0).all()


def test_convolution_is_no_fused_expert(input_ids: Tensor) -> None:
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    prune(model, Wanda(Unstructured(0.5), include=["mixer.in_proj"]), input_ids)
    weight = model.backbone.layers[1].mixer.in_proj.weight
    assert ((weight == 0).sum(1) == 16).all()
