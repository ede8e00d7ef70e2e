"""Saved models without their dropped parts: transformers loads them, with the same outputs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.neurons import find_neurons
from prunelit.models.parts import drop_, sublayers
from prunelit.models.surgery import build_exported
from prunelit.pruners import (
    RIA,
    BlockDrop,
    Magnitude,
    Neuron,
    OBSUpdate,
    Pruner,
    Quantize,
    Random,
    SparseGPT,
    SublayerDrop,
    Wanda,
)
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]

STOCK = {
    "random": lambda: Random(Unstructured(0.5)),
    "magnitude": lambda: Magnitude(Unstructured(0.5)),
    "wanda": lambda: Wanda(Unstructured(0.5)),
    "ria": lambda: RIA(Unstructured(0.5)),
    "sparsegpt": lambda: SparseGPT(Unstructured(0.5)),
    "obs_update": lambda: OBSUpdate(Wanda(Unstructured(0.5))),
    "quantize": lambda: Quantize(4),
    "neuron": lambda: Neuron(0.25),
    "blocks": lambda: BlockDrop(1),
    "run_of_blocks": lambda: BlockDrop(2, consecutive=True),
}


def store(
    model: PreTrainedModel, pruner: Pruner, ids: Tensor, folder: Path, tokenizer: object
) -> dict:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = prune(model, pruner, ids, shrink=False)
    pruned = {name: value.clone() for name, value in model.state_dict().items()}
    save_pretrained(model, tokenizer, folder, report)  # type: ignore[arg-type]
    # Saving does not change the model.
    assert model.state_dict().keys() == before.keys()
    assert all(value.equal(pruned[name]) for name, value in model.state_dict().items())
    return json.loads((folder / "pruning.json").read_text())


def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(**batch, position_ids=positions, use_cache=False).logits


def rollout(model: PreTrainedModel, batch: dict[str, Tensor], use_cache: bool) -> Tensor:
    return model.generate(  # type: ignore[operator]
        **batch, max_new_tokens=8, do_sample=False, use_cache=use_cache, eos_token_id=None
    )


@pytest.mark.parametrize("method", list(STOCK))
def test_stock_class_loads_it_with_equal_logits(
    method: str,
    family: str,
    make_model: MakeModel,
    input_ids: Tensor,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    model = make_model(family)
    store(model, STOCK[method](), input_ids, tmp_path / "pruned", tokenizer)
    stock, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "pruned", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    real = padded["attention_mask"].bool()
    found, expected = logits(stock, padded)[real], logits(model, padded)[real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(rollout(stock, padded, True), rollout(stock, padded, False))
    tied = stock.config.tie_word_embeddings
    head, table = stock.get_output_embeddings(), stock.get_input_embeddings()
    assert (head.weight.data_ptr() == table.weight.data_ptr()) == tied


def test_removed_blocks_are_gone(
    family: str,
    make_model: MakeModel,
    input_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path / "dense")
    plain = store(model, BlockDrop(1), input_ids, tmp_path / "pruned", tokenizer)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    config = stock.config.get_text_config(decoder=True)
    assert config.num_hidden_layers == 2 == len(decoder_blocks(stock)[1])
    assert len(plain["removed"]["blocks"]) == 1
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        left = [i for i in range(3) if i not in plain["removed"]["blocks"]]
        assert config.layer_types == [kinds[i] for i in left]
    indices = [m.layer_idx for m in stock.modules() if getattr(m, "layer_idx", None) is not None]
    assert sorted(set(indices)) == [0, 1]
    parameters = [sum(p.numel() for p in m.parameters()) for m in (model, stock)]
    block = sum(p.numel() for p in decoder_blocks(model)[1][0].parameters())
    assert parameters[1] == parameters[0] - block == plain["stored_parameters"]
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("dense", "pruned")]
    assert sizes[0] - sizes[1] == pytest.approx(4 * block, rel=0.2)


def test_narrowed_mlps(
    family: str,
    make_model: MakeModel,
    input_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    model = make_model(family)
    width = 128 if family == "gpt2" else 48
    plain = store(model, Neuron(0.25), input_ids, tmp_path / "pruned", tokenizer)
    assert plain["removed"]["widths"] == {str(width): width * 3 // 4}
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    for small, large in zip(decoder_blocks(stock)[1], decoder_blocks(model)[1], strict=True):
        (mlp,) = find_neurons(large)
        for name in (*mlp.inputs, mlp.output):
            before, after = (b.get_submodule(name).weight.numel() for b in (large, small))
            assert after * 4 == before * 3


KINDS = {"attention": "mixer", "mlp": "mlp"}
DROPS = [
    ("attention", [0]),
    ("attention", [0, 2]),
    ("attention", [1]),
    ("mlp", [0]),
    ("mlp", [0, 1]),
]


@pytest.mark.parametrize(("kind", "indices"), DROPS)
def test_dropped_sublayers_are_left_out_and_the_rest_is_put_together_again(
    kind: str,
    indices: list[int],
    family: str,
    make_model: MakeModel,
    input_ids: Tensor,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    class Chosen(SublayerDrop):
        def decide(self, model: PreTrainedModel, probes: list) -> bool:
            for index in indices:
                drop_(decoder_blocks(model)[1][index], KINDS[kind])
            return False

    model = make_model(family)
    plain = store(model, Chosen(), input_ids, tmp_path / "pruned", tokenizer)
    assert plain["removed"][kind] == indices
    stored = load_file(tmp_path / "pruned" / "model.safetensors")
    prefix, blocks = decoder_blocks(model)
    for index in range(3):
        for part in sublayers(blocks[index])[KINDS[kind]].parts:
            inside = [name for name in stored if name.startswith(f"{prefix}.{index}.{part}.")]
            assert bool(inside) == (index not in indices)
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    real = padded["attention_mask"].bool()
    found, expected = logits(again, padded)[real], logits(model, padded)[real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(rollout(again, padded, True), rollout(again, padded, False))
    assert torch.equal(rollout(again, padded, True), rollout(model, padded, True))


SHRINKING = {
    "neuron": lambda: Neuron(0.25),
    "attention": lambda: SublayerDrop(1),
    "mlp": lambda: SublayerDrop(1, "mlp"),
    "both": lambda: SublayerDrop(2, "both"),
    "blocks": lambda: BlockDrop(1),
}


@pytest.mark.parametrize("method", list(SHRINKING))
def test_the_model_in_memory_is_the_one_that_is_written(
    method: str,
    family: str,
    make_model: MakeModel,
    input_ids: Tensor,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    zeroed, model, dense = make_model(family), make_model(family), make_model(family)
    before = dense.config.to_dict()
    zeroed.config = model.config = dense.config  # as models that are built from one object
    prune(zeroed, SHRINKING[method](), input_ids, shrink=False)
    model.get_input_embeddings().requires_grad_(False)
    report = prune(model, SHRINKING[method](), input_ids)
    assert dense.config.to_dict() == before
    expected = sum(p.numel() for p in dense.parameters())
    assert sum(p.numel() for p in zeroed.parameters()) == report.parameters == expected
    assert sum(p.numel() for p in model.parameters()) == report.stored_parameters < expected
    assert sum(p.nbytes for p in model.parameters()) == report.stored_bytes
    assert not model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight
    ]
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    plain = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert plain["removed"] == report.removed
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    assert again.config.to_dict().keys() == model.config.to_dict().keys()
    state = again.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    real = padded["attention_mask"].bool()
    found = logits(model, padded)[real]
    torch.testing.assert_close(found, logits(again, padded)[real], rtol=0, atol=0)
    torch.testing.assert_close(found, logits(zeroed, padded)[real], rtol=1e-5, atol=1e-5)
    for cached in (True, False):
        assert rollout(model, padded, cached).equal(rollout(zeroed, padded, True))


def test_a_configuration_that_makes_other_weights_is_refused(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    model.model.layers[1].mlp.up_proj.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(
        InputError, match=r"with the same fields in config.json, the tensor '.*extra' is another"
    ):
        prune(model, SublayerDrop(1), input_ids)


def test_dropped_attention_keeps_no_keys_and_values(
    model: PreTrainedModel, input_ids: Tensor, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    store(model, SublayerDrop(1), input_ids, tmp_path / "pruned", tokenizer)
    dropped = json.loads((tmp_path / "pruned" / "pruning.json").read_text())["removed"]["attention"]
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    with torch.no_grad():
        cache = again(input_ids=input_ids, use_cache=True).past_key_values
    for index, layer in enumerate(cache.layers):
        expected = (6, 1, 20, 1) if index in dropped else (6, 2, 20, 8)
        assert layer.keys.shape == expected
    assert cache.get_seq_length() == 20


def test_a_folder_that_lacks_more_than_it_says_is_refused(
    model: PreTrainedModel, input_ids: Tensor, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    store(model, SublayerDrop(1), input_ids, tmp_path / "pruned", tokenizer)
    path = tmp_path / "pruned" / "config.json"
    plain = json.loads(path.read_text())
    plain["prunelit"]["absent"] = {}
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError, match="lacks 4 weights"):
        load_pretrained(str(tmp_path / "pruned"))


def test_nothing_left_is_refused(model: PreTrainedModel) -> None:
    for block in decoder_blocks(model)[1]:
        drop_(block, "mixer", "mlp")
    with pytest.raises(InputError, match="a block to be left"):
        build_exported(model)


def test_masks_are_stored_with_one_bit_a_weight(
    model: PreTrainedModel, input_ids: Tensor, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    store(model, Wanda(Unstructured(0.5)), input_ids, tmp_path / "pruned", tokenizer)
    packed = load_file(tmp_path / "pruned" / "masks.safetensors")
    stored = load_file(tmp_path / "pruned" / "model.safetensors")
    assert len(packed) == 21
    for name, bits in packed.items():
        weight = stored[name]
        assert bits.numel() == weight.numel() // 8
        kept = sum(int(byte).bit_count() for byte in bits.tolist())
        assert kept == int((weight != 0).sum())


@pytest.mark.parametrize(
    "second",
    [
        lambda: Wanda(Unstructured(0.5)),
        lambda: Quantize(4),
        lambda: SublayerDrop(1, "mlp"),
        lambda: BlockDrop(1),
        lambda: Neuron(0.25),
    ],
)
def test_a_folder_without_sublayers_is_pruned_again(
    second: Callable[[], Pruner],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    padded: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    store(model, SublayerDrop(1), input_ids, tmp_path / "pruned", tokenizer)
    model, _ = load_pretrained(str(tmp_path / "pruned"))
    pruner = second()
    if pruner.shrinks:
        with pytest.raises(InputError, match=r"lacks mixers in blocks \[\d\]: start"):
            prune(model, pruner, input_ids)
        return
    store(model, pruner, input_ids, tmp_path / "again", tokenizer)
    again, _ = load_pretrained(str(tmp_path / "again"))
    torch.testing.assert_close(logits(again, padded), logits(model, padded))
    assert rollout(again, padded, True).equal(rollout(model, padded, False))
