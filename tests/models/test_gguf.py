import importlib.util
import os
import re
import subprocess
import sys
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
from prunelit.models import gguf as conversion
from prunelit.models.gguf import cache_folder, convert_gguf

# Two processes run this and start to convert at the same moment.
PROCESS = """
import sys, time
from pathlib import Path
from prunelit import load_pretrained
from prunelit.data.tokens import encode

folder, own, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / own).touch()
while not (folder / other).exists():
    time.sleep(0.001)
model, tokenizer = load_pretrained(str(folder / "tiny.gguf"))
print(model.model.embed_tokens.weight.double().sum().item())
"""


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    end: str = "<|endoftext|>",
    factors: Tensor | None = None,
    merge: str = "a b",
    pre: str | None = "gpt-2",
    **rope: str | float,
) -> None:
    """A Qwen2 or Llama and its tokenizer, with one extra merge, as float32 GGUF.

    Args:
        path: of the file.
        model: to write.
        tokenizer: to write.
        end: name of the end-of-text token.
        factors: divisors of the rotary frequencies.
        merge: the extra merge.
        pre: name of the rule that splits texts.
        rope: further keys of rotary positions, `__` for a dot.
    """
    config = model.config
    vocabulary = tokenizer.get_vocab()
    tokens = [end, *sorted(vocabulary, key=vocabulary.__getitem__)[1:], merge.replace(" ", "")]
    tokens += [f"<unused {i}>" for i in range(config.vocab_size - len(tokens))]
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in rope.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{family}.rope.{key.replace('__', '.')}", value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([merge])
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        plain = names.get_name(name, try_suffixes=(".weight", ".bias"))
        rows = parameter.detach()
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            # llama.cpp rotates neighbouring rows.
            rows = rows.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(plain, rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def qwen2(
    make_model: Callable[..., PreTrainedModel], request: pytest.FixtureRequest
) -> PreTrainedModel:
    config = make_model("qwen2").config
    # GGUF has no sliding window for this family.
    config.use_sliding_window, config.sliding_window = False, None
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.tie_word_embeddings = request.param
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def file(
    qwen2: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", qwen2, tokenizer)
    return tmp_path / "tiny.gguf"


def folders(tmp_path: Path) -> list[Path]:
    """Names in the cache without lock files, including hidden folders."""
    return [path for path in (tmp_path / "cache" / "gguf").iterdir() if path.suffix != ".lock"]


@torch.no_grad()
def test_conversion_keeps_every_weight_and_the_tokenizer(
    file: Path, qwen2: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, input_ids: Tensor
) -> None:
    model, loaded = load_pretrained(str(file))
    assert model.dtype == torch.float32
    for name, parameter in qwen2.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied is qwen2.config.tie_word_embeddings
    torch.testing.assert_close(model(input_ids).logits, qwen2(input_ids).logits)
    assert loaded("hello ab")["input_ids"] == [*tokenizer("hello ")["input_ids"], 257]
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.eos_token_id == 0


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


def test_stock_transformers_loads_and_saves_the_converted_folder(
    file: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(convert_gguf(file))
    model.half().save_pretrained(tmp_path / "again")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").dtype == torch.float16


def test_second_call_converts_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert_gguf(file)
    assert folders(tmp_path) == [first]
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted again"))
    assert convert_gguf(file) == first
    # The content of the file counts, not its place.
    moved = file.rename(file.parent / "cache" / file.name)
    assert convert_gguf(moved) == first
    # The extra is no longer needed.
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert convert_gguf(moved) == first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_a_damaged_copy_is_converted_anew(
    name: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = convert_gguf(file)
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    (folder / name).write_bytes(content[:middle] + b"\xff" * 4 + content[middle + 4 :])
    with caplog.at_level("INFO"):
        assert convert_gguf(file) == folder
    assert f"The converted copy in {folder} is damaged." in caplog.text
    assert (folder / name).read_bytes() == content


def test_a_copy_that_was_changed_keeps_neither_size_nor_time_as_an_alibi(file: Path) -> None:
    path = convert_gguf(file) / "model.safetensors"
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert convert_gguf(file) == path.parent
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["x" * 248, "\u6771" * 80, "lat\udcff"])
def test_the_name_of_the_file_may_be_any(file: Path, name: str) -> None:
    folder = convert_gguf(file.rename(file.with_name(f"{name}.gguf")))
    assert load_pretrained(str(folder))[0].dtype == torch.float32


def test_changed_file_is_converted_anew(file: Path, tmp_path: Path) -> None:
    first = convert_gguf(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    before = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = convert_gguf(file)
    assert first != second
    assert sorted(folders(tmp_path)) == sorted([first, second])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"GGUF",
        lambda data: b"not a GGUF file, but text\n" * 100,
        lambda data: data[:100],
        lambda data: data[:5000],
        lambda data: data[:-100],
        lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:],
        lambda data: data.replace(b"qwen2", b"qwenX"),
        lambda data: data.replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"),
        lambda data: data.replace(b"a b", b"zzz"),
        lambda data: re.sub(rb"(?s)(block_count.{4}).{4}", lambda m: m[1] + b"\3\0\0\x08", data),
    ],
    ids=[
        *("empty", "magic_only", "text", "header_cut", "keys_cut", "weights_cut"),
        *("version", "architecture", "weight_missing", "merges", "blocks"),
    ],
)
def test_damaged_file_is_named_and_leaves_nothing(
    file: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        InputError, match=r"tiny\.gguf cannot be read as a GGUF model: \S"
    ) as caught:
        load_pretrained(str(file))
    assert "\n" not in str(caught.value)
    assert folders(tmp_path) == []


def test_interrupted_conversion_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion.AutoTokenizer, "from_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_gguf(file)
    assert folders(tmp_path) == []
    assert convert_gguf(file).is_dir()


def test_missing_extra_gives_the_pip_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    with pytest.raises(InputError, match=r"needs accelerate: run `pip install 'prunelit\[gguf\]'`"):
        convert_gguf(file)


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PRUNELIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder().name == "prunelit"
    assert cache_folder() != tmp_path


@pytest.mark.distributed
@pytest.mark.parametrize("qwen2", [False], ids=["untied"], indirect=True)
def test_two_processes_convert_once(file: Path, tmp_path: Path, qwen2: PreTrainedModel) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "process.py", tmp_path, f"ready-{own}", f"ready-{1 - own}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    expected = qwen2.model.embed_tokens.weight.double().sum().item()
    assert [float(output) for output, _ in outputs] == [expected] * 2
    assert sum("Converting tiny.gguf" in errors for _, errors in outputs) == 1
    assert len(folders(tmp_path)) == 1


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/prunelit"])
def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNELIT_CACHE", str(tmp_path / name))
    with pytest.raises(InputError, match=f"{name}' cannot be written: .*PRUNELIT_CACHE"):
        cache_folder()


def test_a_cache_whose_name_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", f"{tmp_path}/lat\udcff")
    with pytest.raises(InputError, match=r"UTF-8 text but got '.*udcff': set .*PRUNELIT_CACHE"):
        cache_folder()
    assert not list(tmp_path.iterdir())
