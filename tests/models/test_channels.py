"""The channels of the residual stream are found by the shapes of a narrower configuration."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    CohereConfig,
    LlamaConfig,
    MiniCPM3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3VLConfig,
)

from prunelit.errors import InputError
from prunelit.models.channels import (
    find_channels,
    find_removed_channels,
    fitting_width,
    zero_channels_,
)
from prunelit.models.hidden import check_narrower

from .small import TINY, build


def test_the_roles_of_tensors(make_model: Callable[..., PreTrainedModel]) -> None:
    channels = find_channels(make_model("gpt_oss"))
    expected = {
        **{f"self_attn.{n}_proj.weight": ((1, "read"),) for n in "qkv"},
        "self_attn.o_proj.weight": ((0, "write"),),
        "self_attn.o_proj.bias": ((0, "write"),),
        "mlp.router.weight": ((1, "read"),),
        "mlp.experts.gate_up_proj": ((1, "read"),),
        "mlp.experts.down_proj": ((2, "write"),),
        "mlp.experts.down_proj_bias": ((1, "write"),),
        "input_layernorm.weight": ((0, "each"),),
        "post_attention_layernorm.weight": ((0, "each"),),
    }
    assert channels.inside(1) == expected
    assert channels.norms(0) == ["input_layernorm", "post_attention_layernorm"]
    outside = {name for name in channels.axes if not name.startswith("model.layers.")}
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@torch.no_grad()
def test_removed_channels_are_those_that_nothing_writes(model: PreTrainedModel) -> None:
    assert find_removed_channels(model) is None
    gone = torch.arange(32) % 4 == 1
    zero_channels_(model, gone)
    assert find_removed_channels(model).equal(gone)  # type: ignore[union-attr]
    model.model.layers[1].mlp.down_proj.weight[5, 3] = 1.0
    gone[5] = False
    assert find_removed_channels(model).equal(gone)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CohereConfig(**TINY), r"its norms, such as 'model\.norm', subtract the mean"),
        (MiniCPM3Config(**TINY), r"compute something else|a width of its own"),
    ],
    ids=["cohere", "minicpm3"],
)
def test_other_families_are_refused(config: PreTrainedConfig, reason: str) -> None:
    model = build(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=reason):
        check_narrower(model, 24)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_models_of_images_are_refused() -> None:
    from transformers import AutoModelForImageTextToText

    config = Qwen3VLConfig(
        text_config={**TINY, "head_dim": 8},
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2,
            "patch_size": 8, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
        },
    )  # fmt: skip
    with pytest.raises(InputError, match="not that of one text model"):
        find_channels(AutoModelForImageTextToText.from_config(config))


@pytest.mark.parametrize(
    ("width", "heads", "ratio", "kept"),
    [(32, 4, 0.25, 24), (32, 4, 0.1, 32), (72, 9, 0.5, 72), (144, 9, 0.4, 72), (36, 6, 0.3, 24)],
)
def test_the_nearest_width_that_the_configuration_takes(
    width: int, heads: int, ratio: float, kept: int
) -> None:
    config = LlamaConfig(
        **{**TINY, "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": 1}
    )
    assert fitting_width(build(config), ratio) == kept
