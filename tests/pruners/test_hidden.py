from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import compare, load_pretrained, prune, save_pretrained
from prunelit.callbacks.rounds import check_stream
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.pruners import Heads, Hidden, Neuron, Sequence, Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import Deviation, Trajectory

from .smaller import check_smaller

MakeModel = Callable[..., PreTrainedModel]
MEANS = ("gpt2", "opt", "gpt_neox", "phi")  # families whose norms subtract the mean


def disturb(model: PreTrainedModel) -> PreTrainedModel:
    """Give biases and norms, which are drawn as 0 or 1, other values."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for own in model.parameters():
            if own.ndim < 2:
                own.add_(0.2 * torch.randn(own.shape, generator=generator))
    return model


@torch.no_grad()
def check_exact(
    build: Callable[[], PreTrainedModel], padded: dict[str, Tensor], tokenizer: Any, folder: Path
) -> None:
    """Compare a narrower model with the one that has zeros, and with its folder."""
    zeros, small = disturb(build()), disturb(build())
    prune(zeros, Hidden(0.25), [padded], shrink=False)
    report = prune(small, Hidden(0.25), [padded])
    gone = ~zeros.get_input_embeddings().weight.any(0)
    assert int(gone.sum()) == 8
    hidden = zeros.model(input_ids=padded["input_ids"], output_hidden_states=True).hidden_states
    assert not any(one[..., gone].any() for one in hidden)
    assert report.removed is not None
    assert report.removed["hidden_size"] == 24 == small.config.hidden_size
    stock = check_smaller(zeros, small, report, padded, tokenizer, folder, atol=3e-5)
    assert report.stored_parameters == pytest.approx(0.75 * report.parameters, rel=0.03)
    tied = stock.config.tie_word_embeddings
    head, table = small.get_output_embeddings(), small.get_input_embeddings()
    assert (head.weight is table.weight) == tied


def test_a_narrower_model_is_the_one_with_zeros(
    family: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    if family in MEANS:
        with pytest.raises(InputError, match="subtract the mean of all channels"):
            prune(make_model(family), Hidden(), [padded])
    else:
        check_exact(lambda: make_model(family), padded, tokenizer, tmp_path)


def test_a_narrower_mixture_is_the_one_with_zeros(
    mixture: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    check_exact(lambda: make_model(mixture), padded, tokenizer, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_scaled_embeddings_norms_of_heads_and_a_tied_head(
    tied: bool, padded: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, eos_token_id=0,
        bos_token_id=0, sliding_window=6, tie_word_embeddings=tied, rms_norm_eps=1e-2,
    )  # fmt: skip

    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    check_exact(build, padded, tokenizer, tmp_path)


def test_channels_with_the_smallest_activations_go(
    make_model: MakeModel, padded: dict[str, Tensor]
) -> None:
    dense, model = disturb(make_model("llama")), disturb(make_model("llama"))
    real, scores = padded["attention_mask"].bool(), np.zeros(32)

    def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
        scores[:] += np.abs(output[real].double().numpy()).mean(0)

    for block in decoder_blocks(dense)[1]:
        block.input_layernorm.register_forward_hook(note)
        block.post_attention_layernorm.register_forward_hook(note)
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        dense(**padded, position_ids=positions)
    prune(model, Hidden(0.25), [padded], shrink=False)
    gone = (~model.get_input_embeddings().weight.any(0)).nonzero().flatten().tolist()
    assert gone == sorted(np.argsort(scores)[:8].tolist())
    kept = np.delete(np.arange(32), gone)
    for own, other in zip(model.parameters(), dense.parameters(), strict=True):
        if own.shape == (300, 32):
            assert own[:, kept].equal(other[:, kept])


def test_rounds_and_other_methods_reach_one_smaller_model(
    make_model: MakeModel, padded: dict[str, Tensor], tokenizer: Any, tmp_path: Path
) -> None:
    model = make_model("qwen2")
    sizes = []
    for fraction in (0.5, 1.0):
        prune(model, Hidden(0.5).scale(fraction), [padded], shrink=False)
        sizes.append(int((~model.get_input_embeddings().weight.any(0)).sum()))
    assert sizes == [8, 16]
    methods = Sequence([Hidden(0.5), Heads(0.5), Neuron(0.25), Wanda(Unstructured(0.5))])
    assert methods.narrows_stream
    report = prune(model, methods, [padded])
    assert report.removed is not None
    assert report.removed["hidden_size"] == 16
    assert report.removed["widths"] == {"48": 36}
    assert report.removed["heads"] == {"num_attention_heads": 2, "num_key_value_heads": 1}
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    with torch.no_grad():
        assert again(**padded).logits.equal(model(**padded).logits)


def test_counted_entries_are_those_that_the_smaller_model_lacks(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    dense, model = make_model("llama"), make_model("llama")
    report = prune(model, Sequence([Hidden(0.25), Heads(0.5), Neuron(0.25)]), input_ids)
    before, after = dense.state_dict(), model.state_dict()
    for tensor in report.tensors:
        assert tensor.removed == before[tensor.name].numel() - after[tensor.name].numel()


def test_tasks_on_hidden_states_of_one_width_are_refused(material: Path) -> None:
    path = str(material / "text.jsonl")
    tasks: dict[str, Any] = {"a": Deviation(path, length=12), "b": Trajectory(path)}

    class Data:
        def __init__(self, tasks: dict[str, Any]) -> None:
            self.tasks = tasks

    check_stream(Hidden(), Data({"a": tasks["a"]}))  # type: ignore[arg-type]
    check_stream(Neuron(), Data(tasks))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"but got \['b'\]: the model has fewer channels after"):
        check_stream(Sequence([Hidden()]), Data(tasks))  # type: ignore[arg-type]


def test_models_of_two_widths_have_no_embeddings_to_compare(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    dense, model = make_model("llama"), make_model("llama")
    prune(model, Hidden(0.25), input_ids)
    with pytest.raises(InputError, match="with the same hidden_size but got 32 and 24"):
        compare(dense, model, input_ids)


def test_a_ratio_that_removes_nothing_is_told(model: PreTrainedModel, input_ids: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"Hidden\(0.01\) removes nothing: 32 is the width"):
        prune(model, Hidden(0.01), input_ids)
    with pytest.raises(InputError, match=r"`ratio` in \[0, 1\) but got 1\.0"):
        Hidden(1.0)
