"""Positions, splits and sizes that a GGUF file gives and transformers leaves out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prunelit import load_pretrained, load_tokenizer
from prunelit.data.tokens import encode
from prunelit.errors import InputError
from prunelit.models.gguf_header import GGUFHeader

from .gguf_files import folders, write_gguf


def llama3_factors(model: PreTrainedModel) -> Tensor:
    """Divisors of the rotary frequencies, as llama.cpp's converter writes them."""
    rope = model.config.rope_parameters
    plain = rope["rope_theta"] ** (-torch.arange(0, 8, 2) / 8)
    return plain / model.model.rotary_emb.inv_freq


def scaled(make_model: Callable[..., PreTrainedModel], family: str, **rope: object) -> Any:
    """A tiny model whose rotary positions are scaled."""
    config = make_model(family).config
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    if family == "qwen2":
        config.use_sliding_window, config.sliding_window = False, None
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)  # positions must matter
    return model


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: dict[str, tuple[dict, dict]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, {"scaling__factor": 4.0}),
    "linear_of_old_files": ({"rope_type": "linear", "factor": 4.0}, {"scale_linear": 4.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 32},
    ),
    "yarn_beta": (
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
        },
        {
            "scaling__type": "yarn",
            "scaling__original_context_length": 64,
            "scaling__factor": 2,
            "scaling__yarn_beta_fast": 4,
            "scaling__yarn_beta_slow": 0.5,
        },
    ),
    "yarn_of_the_whole_context": (
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128},
        {"scaling__type": "yarn", "scaling__factor": 8.0},
    ),
    "llama3": ({**LLAMA3, "original_max_position_embeddings": 64}, {}),
    "llama3_of_another_context": ({**LLAMA3, "original_max_position_embeddings": 30}, {}),
    "llama3_none_between": ({**LLAMA3, "original_max_position_embeddings": 300}, {}),
    "default": ({"rope_type": "default"}, {"scaling__type": "none"}),
}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", SCALINGS)
@torch.no_grad()
def test_rotary_positions_are_those_of_the_file(
    name: str,
    kind: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    input_ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    rope, keys = SCALINGS[name]
    dense = scaled(make_model, kind, **rope)
    factors = llama3_factors(dense) if "llama3" in name else None
    write_gguf(tmp_path / "tiny.gguf", dense, tokenizer, factors=factors, **keys)
    # The text is longer than the old context of most scalings.
    ids = input_ids.reshape(1, -1)[:, :100]
    model, _ = load_pretrained(str(tmp_path / "tiny.gguf"))
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-3)
    if name != "default":
        plain = scaled(make_model, kind, rope_type="default")
        assert (plain(ids).logits - dense(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize(
    ("keys", "factors", "problem"),
    [
        ({"scaling__type": "longrope", "scaling__factor": 4.0}, None, "of the type 'longrope'"),
        ({"scaling__attn_factor": 1.2}, None, r"llama\.rope\.scaling\.attn_factor"),
        ({"freq_base_swa": 5e5}, None, r"llama\.rope\.freq_base_swa"),
        ({}, [1.0, 1.5, 9.0, 7.0], r"factors in 'rope_freqs\.weight'"),
        ({}, [1.0, 8.0], r"factors in 'rope_freqs\.weight'"),
        ({"scaling__factor": 2.0}, [1.0, 1.0, 8.0, 8.0], r"both 'rope_freqs\.weight'"),
    ],
)
def test_rotary_positions_of_another_form_are_refused(
    keys: dict,
    factors: list[float] | None,
    problem: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    tensor = None if factors is None else torch.tensor(factors)
    write_gguf(tmp_path / "tiny.gguf", make_model("llama"), tokenizer, factors=tensor, **keys)
    with pytest.raises(InputError, match=rf"tiny\.gguf cannot be read as .*{problem}"):
        load_pretrained(str(tmp_path / "tiny.gguf"))
    assert folders(tmp_path) == []


def test_the_end_token_that_transformers_adds_is_no_reason_to_refuse(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    dense = scaled(make_model, "llama", **LLAMA3, original_max_position_embeddings=64)
    options = {"end": "<|end_of_text|>", "factors": llama3_factors(dense)}
    write_gguf(tmp_path / "tiny.gguf", dense, tokenizer, **options)
    model, loaded = load_pretrained(str(tmp_path / "tiny.gguf"))
    assert loaded.convert_tokens_to_ids("<|endoftext|>") == model.config.vocab_size == 300
    assert loaded.eos_token == "<|end_of_text|>"
    assert encode(loaded, "hello") == encode(tokenizer, "hello")
    with pytest.raises(InputError, match=r"has the token '<\|endoftext\|>' with the id 300"):
        encode(loaded, "hello<|endoftext|>")


@pytest.mark.parametrize(
    ("pre", "text", "merged"),
    [
        ("gpt-2", "\n\n5", False),
        ("smollm", "\n\n5", True),
        ("starcoder", "\n\n55", True),
        ("smollm", "\n5\n", False),
        ("llama-bpe", "\n\n5", True),
        ("qwen2", "\n\na", True),
    ],
)
def test_texts_are_split_before_merges_by_the_rule_of_the_file(
    pre: str,
    text: str,
    merged: bool,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, make_model("llama"), tokenizer, merge="Ċ Ċ", pre=pre)
    loaded = load_tokenizer(str(file))
    assert (257 in loaded(text)["input_ids"]) is merged
    assert len(loaded(text)["input_ids"]) == len(text) - merged
    assert loaded.decode(loaded(text)["input_ids"]) == text


@pytest.mark.parametrize("pre", ["deepseek-llm", "foo-bar", "default"])
def test_a_rule_that_is_not_known_is_refused(
    pre: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", make_model("llama"), tokenizer, pre=pre)
    with pytest.raises(InputError, match=rf"rule '{pre}' that splits its texts"):
        load_tokenizer(str(tmp_path / "tiny.gguf"))
    assert folders(tmp_path) == []


def test_a_file_without_a_rule_is_split_as_gpt2_and_says_so(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", make_model("llama"), tokenizer, merge="Ċ Ċ", pre=None)
    with caplog.at_level("INFO"):
        assert len(load_tokenizer(str(tmp_path / "tiny.gguf"))("\n\n5")["input_ids"]) == 3
    assert "does not name the rule that splits its texts" in caplog.text


def test_a_file_with_more_weights_than_its_model_is_refused(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    config = make_model("llama").config
    config.attention_bias = True  # GGUF has no key for it
    write_gguf(tmp_path / "tiny.gguf", AutoModelForCausalLM.from_config(config), tokenizer)
    with pytest.raises(InputError, match=r"holds \d+ weights but LlamaForCausalLM has \d+"):
        load_pretrained(str(tmp_path / "tiny.gguf"))


def test_more_blocks_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(10**6)
    writer.add_tensor("blk.0.ffn_up.weight", torch.ones(2, 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="is 1000000 but it holds the tensors of 1 blocks"):
        GGUFHeader(path)
