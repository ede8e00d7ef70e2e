"""Blocks with heads and neurons of their own numbers, in memory, in a folder and in a cache."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import InputError, load_pretrained, prune, save_pretrained
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.heads import find_heads, zero_heads_
from prunelit.models.neurons import find_neurons, neuron_rows
from prunelit.models.parts import drop_, sublayers
from prunelit.models.surgery import build_exported
from prunelit.models.without_sublayers import fields_of
from prunelit.pruners import Neuron
from prunelit.pruners.base import Probe, Pruner

MakeModel = Callable[..., PreTrainedModel]
FAMILIES = ["llama", "qwen3", "gemma2"]


class Uneven(Pruner):
    """Take half of the heads of block 0, half of the neurons of block 1, and more of block 2."""

    shrinks = by_block = drops_sublayers = True

    def __init__(self, dropped: str | None = None) -> None:
        self.dropped = dropped

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self._places = {block: index for index, block in enumerate(decoder_blocks(model)[1])}
        self._heads = find_heads(model)
        return False

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        index = self._places[block]
        if index == 1 and self.dropped:
            drop_(block, *([self.dropped] if self.dropped != "block" else sublayers(block)))
            return
        heads = self._heads[index]
        assert heads is not None
        if index != 1:
            zero_heads_(block, heads, torch.arange(heads.groups) < heads.groups // 2)
        for neurons in find_neurons(block) if index else ():
            gone = torch.arange(neurons.width) % (index + 1) == 0
            linears = linear_modules(block)
            oriented_weight(linears[neurons.output])[:, gone] = 0
            for name in neurons.inputs:
                rows = neuron_rows(linears[name], neurons.width)[gone].flatten()
                oriented_weight(linears[name])[rows] = 0


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def by_cache(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Compute logits of a few tokens, then of each other one, with a cache."""
    begin = model.eval()(input_ids=ids[:, :3], use_cache=True)
    found, cache = [begin.logits], begin.past_key_values
    for place in range(3, ids.shape[1]):
        step = model(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
        found.append(step.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("dropped", [None, "mlp", "mixer", "block"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_folder_computes_what_is_in_memory(
    name: str,
    dropped: str | None,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    model = make_model(name)
    zeros = copy.deepcopy(model)
    prune(zeros, Uneven(dropped), shrink=False)
    report = prune(model, Uneven(dropped))
    expected = logits(model, input_ids)
    torch.testing.assert_close(expected, logits(zeros, input_ids), rtol=1e-4, atol=1e-4)
    assert report.stored_parameters < report.parameters
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    ours, _ = load_pretrained(str(tmp_path / "pruned"))
    widths = {linear.shape for linear in again.state_dict().values()}
    assert widths == {linear.shape for linear in model.state_dict().values()}
    for loaded in (again, ours):
        assert fields_of(loaded) == fields_of(model) != {}
        assert logits(loaded, input_ids).equal(expected)
        torch.testing.assert_close(by_cache(loaded, input_ids), expected, rtol=1e-3, atol=1e-3)
        kwargs = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        texts = [one.generate(input_ids[:1], **kwargs) for one in (loaded, model)]
        assert texts[0].equal(texts[1])
    again.save_pretrained(tmp_path / "again")
    once_more = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert logits(once_more, input_ids).equal(expected)


def test_zeros_give_the_same_folder_later(make_model: MakeModel, input_ids: Tensor) -> None:
    model, zeros = make_model("llama"), make_model("llama")
    report = prune(model, Uneven())
    prune(zeros, Uneven(), shrink=False)
    exported, removed = build_exported(zeros, by_block=True)
    assert removed.as_dict() == report.removed
    assert logits(exported, input_ids).equal(logits(model, input_ids))
    even, removed = build_exported(zeros)  # as wide as the widest block
    assert not removed.fields
    assert not fields_of(even)
    assert even.num_parameters() > exported.num_parameters()


def test_equal_numbers_make_a_stock_folder(make_model: MakeModel) -> None:
    class Even(Neuron):
        by_block = True

    model = make_model("llama")
    ids = torch.arange(64).view(4, 16)
    report = prune(model, Even(0.5), ids)
    assert report.removed is not None
    assert report.removed["fields"] == {}
    assert model.config.intermediate_size == make_model("llama").config.intermediate_size // 2


def test_no_other_loader_takes_the_folder(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = make_model("llama")
    save_pretrained(model, tokenizer, tmp_path / "pruned", prune(model, Uneven()))
    with pytest.raises(
        ValueError, match="blocks lack parts; `import prunelit` and use AutoModelFor"
    ):
        LlamaForCausalLM.from_pretrained(tmp_path / "pruned")
    own = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert own["model_type"] == "prunelit"
    layers = own["prunelit"]["config"]["per_layer_config"]
    assert sorted(layers) == ["0", "1", "2"]
    assert layers["1"] == {"intermediate_size": model.config.intermediate_size // 2}
    assert layers["0"] == {"num_attention_heads": 2, "num_key_value_heads": 1}
    built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "pruned"))
    assert built.num_parameters() == model.num_parameters()


def test_it_is_not_made_smaller_again(make_model: MakeModel) -> None:
    model = make_model("llama")
    prune(model, Uneven())
    with pytest.raises(InputError, match="3 of its blocks have numbers of heads or neurons of"):
        prune(model, Neuron(0.5), torch.arange(64).view(4, 16))


CODE = """\
import sys, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits
print("prunelit" in sys.modules, sum("Absent" in str(type(own)) for own in model.modules()))
torch.save(logits, sys.argv[2])
"""


def test_custom_code_needs_no_prunelit(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Also where a sublayer is dropped."""
    model, folder, ids = make_model("qwen3"), tmp_path / "pruned", torch.tensor([[1, 2, 3]])
    report = prune(model, Uneven("mlp"))
    save_pretrained(model, tokenizer, folder, report, custom_code=True)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(tmp_path / "logits.pt")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.stdout == "False 1\n"
    expected = logits(model, ids)
    assert torch.load(tmp_path / "logits.pt").equal(expected)
    assert logits(load_pretrained(str(folder))[0], ids).equal(expected)
