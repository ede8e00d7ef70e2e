import copy
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit.models.fingerprint import fingerprint


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
