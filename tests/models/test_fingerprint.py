import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.fingerprint import fingerprint, fingerprint_files, stored_parts, weight_bytes
from prunelit.models.read_checks import check_weights


def test_a_copy_on_disk_is_the_same_model(
    model: PreTrainedModel, folder: Path, tmp_path: Path
) -> None:
    mark = fingerprint(model)
    assert len(mark) == 64
    assert fingerprint(copy.deepcopy(model)) == mark
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert fingerprint(loaded) == fingerprint(AutoModelForCausalLM.from_pretrained(folder).eval())
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(AutoModelForCausalLM.from_pretrained(moved).eval()) == fingerprint(loaded)


def test_every_family_has_one(make_model: Callable[..., PreTrainedModel], family: str) -> None:
    assert fingerprint(make_model(family)) == fingerprint(make_model(family))
    assert fingerprint(make_model(family)) != fingerprint(make_model(family, seed=1))


def test_every_change_of_the_output_changes_the_fingerprint(model: PreTrainedModel) -> None:
    def a_weight(other: PreTrainedModel) -> None:
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3

    def a_sign_of_zero(other: PreTrainedModel) -> None:
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight[3, 4] = -0.0

    def a_zero(other: PreTrainedModel) -> None:
        with torch.no_grad():
            other.model.layers[1].mlp.up_proj.weight[3, 4] = 0.0

    def the_dtype(other: PreTrainedModel) -> None:
        other.to(torch.bfloat16)

    def a_buffer(other: PreTrainedModel) -> None:
        other.model.rotary_emb.inv_freq *= 2

    def the_configuration(other: PreTrainedModel) -> None:
        other.config.rms_norm_eps *= 2

    def the_end_of_text(other: PreTrainedModel) -> None:
        other.generation_config.eos_token_id = 5

    def a_sublayer(other: PreTrainedModel) -> None:
        other.model.layers[1].mlp.act_fn = torch.nn.Identity()

    marks = [fingerprint(model)]
    for change in (
        a_weight,
        a_sign_of_zero,
        a_zero,
        the_dtype,
        a_buffer,
        the_configuration,
        the_end_of_text,
        a_sublayer,
    ):
        other = copy.deepcopy(model)
        change(other)
        marks.append(fingerprint(other))
    assert len(set(marks)) == len(marks)


def test_the_attention_kernel_is_part_of_it(model: PreTrainedModel) -> None:
    before = fingerprint(model)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert fingerprint(model) != before


def test_a_change_of_any_tensor_of_any_shard_shows(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    before = fingerprint_files(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        whole = shard.read_bytes()
        for name in load_file(shard):
            tensors = load_file(shard)
            tensors[name].view(-1)[-1] += 1
            save_file(tensors, shard, {"format": "pt"})
            now = fingerprint_files(tmp_path)
            assert [key for key in now if now[key] != before[key]] == [shard.name]
        shard.write_bytes(whole)
    assert fingerprint_files(tmp_path) == before


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_large_tensors_are_sampled_at_a_stride_or_hashed_whole(tmp_path: Path, form: str) -> None:
    def save(value: torch.Tensor) -> None:
        if form == "bin":
            torch.save({"w": value}, tmp_path / "pytorch_model.bin")
        else:
            save_file({"w": value}, tmp_path / "model.safetensors")

    weight = torch.zeros(1024, 1024)  # 4 MiB, a block every 65 KiB
    save(weight)
    sampled, full = fingerprint_files(tmp_path), fingerprint_files(tmp_path, full=True)
    assert [value.split()[0] for value in (*sampled.values(), *full.values())] == [
        *("sampled", "sha256")
    ]
    for place in ((0, 0), (-1, -1), (slice(None), 3)):
        other = weight.clone()
        other[place] += 1
        save(other)
        assert fingerprint_files(tmp_path) != sampled
    weight[8, 8] = 1  # between two blocks
    save(weight)
    # The archive of torch has a checksum of every tensor.
    assert (fingerprint_files(tmp_path) == sampled) == (form == "safetensors")
    assert fingerprint_files(tmp_path, full=True) != full


def test_a_tokenizer_file_counts_whole(folder: Path) -> None:
    before = fingerprint_files(folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    now = fingerprint_files(folder)
    assert [key for key in now if now[key] != before[key]] == ["tokenizer.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\2" + bytes(7) + b"[]",
        b"\x0d" + bytes(7) + b'{"a": "text"}',
        b"\x23" + bytes(7) + b'{"a": {"data_offsets": [0, 1e18]}} ',
        b"\x23" + bytes(7) + b'{"a": {"data_offsets": [0, 9999]}} ',
    ],
)
def test_a_damaged_file_of_weights_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors' is no complete safetensors file"):
        fingerprint_files(tmp_path)


class Scaled(torch.Tensor):
    """A quantised tensor as libraries make them: nothing can be computed of it here."""

    @staticmethod
    def __new__(cls, whole: torch.Tensor, scale: torch.Tensor) -> "Scaled":
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole: torch.Tensor, scale: torch.Tensor) -> None:
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


def test_a_quantised_tensor_is_read_by_its_parts(model: PreTrainedModel) -> None:
    whole, scale = torch.ones(4, 8, dtype=torch.int8), torch.ones(4, 1)
    weight = Scaled(whole, scale)
    assert [part.dtype for part in stored_parts(weight)] == [torch.int8, torch.float32]
    assert weight_bytes(SimpleNamespace(parameters=lambda: [weight])) == 32 + 16  # type: ignore[arg-type]
    model.register_buffer("own", weight)
    marks = [fingerprint(model)]
    check_weights(model, "here")
    whole[2, 3] = 5
    marks.append(fingerprint(model))
    scale[1] = float("inf")
    marks.append(fingerprint(model))
    assert len(set(marks)) == 3
    with pytest.raises(InputError, match="'own' of 'here' holds NaN or infinite values"):
        check_weights(model, "here")
