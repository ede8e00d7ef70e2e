import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prunelit import load_pretrained
from prunelit.errors import InputError
from prunelit.models import gguf as conversion
from prunelit.models.gguf import cache_folder, convert_gguf

from .gguf_files import folders, write_gguf

# Two processes run this and start to convert at the same moment.
PROCESS = """
import os, time
from pathlib import Path
from prunelit import load_pretrained

folder = Path(FOLDER)
os.environ["PRUNELIT_CACHE"] = str(folder / "cache")
os.dup2(os.open(folder / f"stderr-{RANK}", os.O_WRONLY | os.O_CREAT), 2)
(folder / f"ready-{RANK}").touch()
while not (folder / f"ready-{1 - RANK}").exists():
    time.sleep(0.001)
model, tokenizer = load_pretrained(str(folder / "tiny.gguf"))
found = model.model.embed_tokens.weight.double().sum().item()
(folder / f"sum-{RANK}").write_text(str(found))
"""


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
def test_two_processes_convert_once(
    file: Path, tmp_path: Path, qwen2: PreTrainedModel, run_ranks: Callable[..., None]
) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    run_ranks(tmp_path / "process.py", 2, FOLDER=str(tmp_path))
    expected = qwen2.model.embed_tokens.weight.double().sum().item()
    assert [float((tmp_path / f"sum-{own}").read_text()) for own in range(2)] == [expected] * 2
    errors = [(tmp_path / f"stderr-{own}").read_text() for own in range(2)]
    assert sum("Converting tiny.gguf" in text for text in errors) == 1
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
