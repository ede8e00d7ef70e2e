import copy
import gc
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import prunelit
from prunelit import prune
from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import keep_in, store_of, whole
from prunelit.models.streaming import FileStore, MappedFile, place_model, stream
from prunelit.pruners import Magnitude, Neuron, Pruner, SparseGPT, SublayerDrop, Wanda
from prunelit.sparsity import Unstructured


class Copying(FileStore):
    """Copies the weights at `fetch`, as for a GPU, on a machine that has none."""

    def fetch(self) -> None:
        self._away = [weight.data for weight in self._block.parameters()]
        for weight in self._block.parameters():
            weight.data = weight.data.clone()

    def leave(self, edited: bool) -> None:
        away = self._away
        super().leave(edited)
        if not edited:
            for weight, one in zip(self._block.parameters(), away, strict=True):
                weight.data = one


def test_weights_that_were_edited_stay_and_lie_in_a_file(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    weights = list(block.parameters())
    stream(model, model.dtype)
    before = [weight.data_ptr() for weight in weights]
    with whole(block):
        pass
    assert [weight.data_ptr() for weight in weights] == before
    with whole(block, edited=True), whole(block):
        weights[0].data.fill_(3)
    after = [weight.data_ptr() for weight in weights]
    assert not set(before) & set(after)
    assert (weights[0] == 3).all()
    with whole(block, edited=True):  # in the same file
        weights[0].data.fill_(4)
    assert [weight.data_ptr() for weight in weights] == after
    assert (weights[0] == 4).all()


def test_a_change_that_is_not_announced_is_forgotten_on_a_device(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    keep_in(block, Copying(block, None))
    weight = next(block.parameters())
    expected = weight.detach().clone()
    with whole(block):
        weight.data.zero_()
    assert torch.equal(weight, expected)
    with whole(block, edited=True):
        weight.data.zero_()
    assert not weight.any()


@pytest.mark.parametrize(
    ("kind", "name", "pruner"),
    [
        (FileStore, "llama", Wanda(Unstructured(0.5))),
        (Copying, "gpt2", Wanda(Unstructured(0.5))),
        (Copying, "llama", SparseGPT(Unstructured(0.5))),
        (FileStore, "gpt2", SublayerDrop(1)),
        (Copying, "qwen3", SublayerDrop(1)),
        (FileStore, "gemma2", Neuron(0.25)),
        (Copying, "llama", Magnitude(Unstructured(0.5, within="model"))),
    ],
)
def test_a_streamed_model_is_pruned_as_a_resident_one(
    kind: type[FileStore],
    name: str,
    pruner: Pruner,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    one, other = make_model(name).bfloat16(), make_model(name).bfloat16()
    for block in decoder_blocks(other)[1]:
        keep_in(block, kind(block, tmp_path))
    reports = [prunelit.prune(model, copy.deepcopy(pruner), input_ids) for model in (one, other)]
    assert reports[0].tensors == reports[1].tensors
    for key, weight in one.named_parameters():
        assert torch.equal(weight, other.get_parameter(key)), key
    for part, model, report in zip("ab", (one, other), reports, strict=True):
        prunelit.save_pretrained(model, tokenizer, tmp_path / part, report)
    loaded = [prunelit.load_pretrained(str(tmp_path / part))[0] for part in "ab"]
    assert len(list(tmp_path.glob("a/*.safetensors"))) < len(list(tmp_path.glob("b/*.safetensors")))
    assert torch.equal(*(model(input_ids=input_ids).logits for model in loaded))


def test_the_skeleton_moves_and_blocks_do_not(model: PreTrainedModel) -> None:
    stream(model, model.dtype)
    block = decoder_blocks(model)[1][0]
    place_model(model, torch.device("meta"))
    assert model.get_input_embeddings().weight.is_meta
    assert not next(block.parameters()).is_meta
    store = store_of(block)
    assert isinstance(store, FileStore)
    assert store.device.type == "meta"


def test_a_copy_is_refused(model: PreTrainedModel) -> None:
    stream(model, model.dtype)
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.deepcopy(model)


def test_a_file_of_other_shapes_is_not_used_again() -> None:
    file = MappedFile([torch.ones(2, 3), torch.ones(4)], None)
    assert file.fits([torch.zeros(2, 3), torch.zeros(4)])
    assert not file.fits([torch.zeros(3, 2), torch.zeros(4)])
    assert not file.fits([torch.zeros(2, 3), torch.zeros(4).double()])
    assert not file.fits([torch.zeros(2, 3)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Wanda(Unstructured(0.5)),
        lambda: SparseGPT(Unstructured(0.5)),
        lambda: SublayerDrop(1),
        lambda: Magnitude(Unstructured(0.5, within="model")),
    ],
)
def test_weights_are_those_of_a_run_in_memory(
    build: Callable[[], object],
    family: str,
    make_model: Callable[..., PreTrainedModel],
    input_ids: Tensor,
) -> None:
    one, other = make_model(family).bfloat16(), make_model(family).bfloat16()
    parameters = dict(other.named_parameters())
    prune(one, build(), input_ids)  # type: ignore[arg-type]
    prune(other, build(), input_ids, offload_to=torch.device("cpu"))  # type: ignore[arg-type]
    gc.collect()
    for name, weight in one.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), name
        assert other.get_parameter(name) is parameters[name]
    assert torch.equal(one(input_ids=input_ids).logits, other(input_ids=input_ids).logits)


# Prunes a model of 12 blocks of 25 MB each, and writes how much its resident set grew, in MB.
SCRIPT = """
import os, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from prunelit import prune
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
torch.set_num_threads(1)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
config = LlamaConfig(vocab_size=300, hidden_size=512, intermediate_size=3300,
                     num_hidden_layers=12, num_attention_heads=4)
model = AutoModelForCausalLM.from_config(config).eval()
before = resident()
seen = []
class Looking(Wanda):
    def prune_block(self, block, probes):
        super().prune_block(block, probes)
        seen.append(resident())
for offload in (torch.device("cpu"), None):
    if os.fork() == 0:  # from the same start
        ids = torch.ones(2, 8, dtype=torch.long)
        prune(model, Looking(Unstructured(0.5)), ids, offload_to=offload)
        with open(FILE, "a") as file:
            file.write(f"{max(seen[2:]) - before}\\n")
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blocks_that_wait_are_not_resident(
    tmp_path: Path, start_process: Callable[..., BaseProcess]
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = start_process(tmp_path / "script.py", {"FILE": str(tmp_path / "grown")})
    process.join(120)
    assert process.exitcode == 0
    waiting, resident = map(float, (tmp_path / "grown").read_text().split())
    # 12 blocks of 24.5 MB are 294 MB.
    assert waiting < resident - 200
