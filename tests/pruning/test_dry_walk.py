"""A method sees all blocks before it changes one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    MambaConfig,
    PreTrainedModel,
    XmodConfig,
    Zamba2Config,
)

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import check_unembedding
from prunelit.models.replay import check_replay
from prunelit.pruners import Magnitude, SparseGPT, Wanda
from prunelit.sparsity import Unstructured

from .pooled import Pooled


def assert_refused(model: PreTrainedModel, ids: Tensor, message: str, **options: object) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in (Wanda, SparseGPT):
        with pytest.raises(InputError, match=message):
            prune(model, method(Unstructured(0.5), **options), ids)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_used_without_a_call_is_refused(input_ids: Tensor) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert_refused(model, input_ids, r"Block 0 .* 'mixer\.dt_proj' without a call .*'\*dt_proj'")
    prune(model, Wanda(Unstructured(0.5), exclude=["*dt_proj"]), input_ids)


def test_a_module_that_reads_other_rows_is_refused_wherever_it_is(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    model.model.layers[2].mlp = Pooled(model.model.layers[2].mlp)
    message = r"Block 2 cannot be pruned. 'mlp\.summary' reads a tensor of shape \(2, 1, 32\)"
    assert_refused(model, input_ids, message)


def test_a_bidirectional_model_is_refused(input_ids: Tensor) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert_refused(model, input_ids, "BertLMHeadModel is bidirectional: a token changes")


def test_padding_on_the_right_is_no_sign_of_it(
    make_model: Callable[..., PreTrainedModel], family: str, input_ids: Tensor
) -> None:
    mask = torch.ones_like(input_ids)
    mask[:, 15:] = 0
    batch = {"input_ids": input_ids, "attention_mask": mask}
    prune(make_model(family), Wanda(Unstructured(0.5)), [batch])
    prune(make_model(family), Magnitude(Unstructured(0.5)))


def test_weights_that_blocks_share_are_pruned_and_counted_once(input_ids: Tensor) -> None:
    config = Zamba2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, pad_token_id=0, layers_block_type=["mamba", "hybrid"] * 2,
        num_mem_blocks=1, mamba_d_state=8, mamba_headdim=8, n_mamba_heads=8, mamba_ngroups=1,
        adapter_rank=4, use_mamba_kernels=False, attention_head_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert_refused(model, input_ids, r"Block 1 .* does not use '\S+', which another block has too")
    report = prune(model, Wanda(Unstructured(0.5), exclude=["*adapter_list*"]), input_ids)
    names = [tensor.name for tensor in report.tensors]
    assert len(names) == len(set(names))
    assert set(names) <= {name for name, _ in model.named_parameters()}
    pruned = {tensor.name: tensor.sparsity for tensor in report.tensors if tensor.kind == "linear"}
    shared = {name: share for name, share in pruned.items() if "shared_transformer" in name}
    assert {name.split(".")[2] for name in shared} == {"1"}
    assert {share for name, share in shared.items() if "adapter_list" not in name} == {0.5}


def test_a_model_that_needs_more_than_tokens_is_refused() -> None:
    config = XmodConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, is_decoder=True,
    )  # fmt: skip
    with pytest.raises(InputError, match="cannot run on tokens alone: Input language unknown"):
        check_unembedding(AutoModelForCausalLM.from_config(config).eval())


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_check_runs_the_last_tokens_of_a_sequence(
    make_model: Callable[..., PreTrainedModel], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = make_model("llama"), torch.arange(40).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    mask = mask if side == "left" else mask.flip(1)
    seen: list[Tensor] = []
    monkeypatch.setattr("prunelit.pruning.dry_walk._SAMPLE", 16)
    monkeypatch.setattr(
        "prunelit.pruning.dry_walk.check_replay",
        lambda model, batch: seen.append(batch["input_ids"]) or check_replay(model, batch),
    )
    batch = {"input_ids": ids, "attention_mask": mask}
    prune(model, Wanda(Unstructured(0.5)), [batch])
    end = 40 if side == "left" else 36
    assert [found.tolist() for found in seen] == [[list(range(end - 16, end))]]


def test_a_method_without_statistics_runs_no_block(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    runs: list[torch.nn.Module] = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda block, _args: runs.append(block))
    prune(model, Magnitude(Unstructured(0.5)), input_ids)
    assert not runs
    prune(model, Wanda(Unstructured(0.5)), input_ids)
    assert runs
