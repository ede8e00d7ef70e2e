import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CohereConfig,
    Gemma2ForCausalLM,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from prunelit.errors import InputError
from prunelit.models.architecture import (
    check_length,
    check_unembedding,
    decoder_blocks,
    final_hidden,
    linear_modules,
    oriented_weight,
    unembed,
)

from ..families.tiny import tiny_model

MakeModel = Callable[..., PreTrainedModel]

PREFIXES = {"gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers", "gpt2": "transformer.h"}
TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


class DoubledHead(LlamaForCausalLM):
    def forward(self, *args: object, **kwargs: object) -> CausalLMOutputWithPast:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.01
        return output


def test_blocks_of_every_family(make_model: MakeModel, family: str) -> None:
    model = make_model(family)
    prefix, blocks = decoder_blocks(model)
    assert prefix == PREFIXES.get(family, "model.layers")
    assert blocks is model.get_submodule(prefix)
    assert len(blocks) == 3


def test_blocks_of_a_model_whose_experts_form_lists_of_the_same_length() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.model.layers[0].experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert decoder_blocks(model)[0] == "model.layers"


def test_encoder_decoder_is_refused() -> None:
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, pad_token_id=0
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(
        InputError, match=r"decoder-only .* T5ForConditionalGeneration is an encoder-decoder"
    ):
        decoder_blocks(model)


def test_model_without_a_list_of_its_layers_is_refused(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 5
    with pytest.raises(
        InputError,
        match=r"as many blocks as its `num_hidden_layers` \(5\) but found none in LlamaForCausalLM",
    ):
        decoder_blocks(model)


def test_linear_modules_are_all_matrices_of_a_block(make_model: MakeModel, family: str) -> None:
    _, blocks = decoder_blocks(make_model(family))
    for block in blocks:
        matrices = {n.removesuffix(".weight") for n, p in block.named_parameters() if p.ndim == 2}
        assert set(linear_modules(block)) == matrices


def test_linear_modules_include_subclasses() -> None:
    class Special(nn.Linear):
        pass

    block = nn.ModuleDict({"a": Special(2, 3), "b": nn.LayerNorm(3), "c": Conv1D(4, 2)})
    assert list(linear_modules(block)) == ["a", "c"]


@pytest.mark.parametrize("linear", [nn.Linear(3, 5, bias=False), Conv1D(5, 3)])
def test_oriented_weight_is_outputs_by_inputs_and_shares_storage(linear: nn.Module) -> None:
    weight = oriented_weight(linear)
    assert weight.shape == (5, 3)
    x = torch.randn(4, 3)
    torch.testing.assert_close(linear(x), x @ weight.T)
    with torch.no_grad():
        weight[2] = 0
    assert (linear(x)[:, 2] == 0).all()


@torch.no_grad()
def test_unembedding_the_final_hidden_state_gives_the_models_logits(
    make_model: MakeModel, family: str, input_ids: Tensor
) -> None:
    model = make_model(family)
    hidden = final_hidden(model, input_ids, torch.ones_like(input_ids))
    logits = unembed(model, hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(input_ids).logits, rtol=1e-5, atol=1e-5)
    check_unembedding(model)


@torch.no_grad()
@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_no_real_token(
    make_model: MakeModel, family: str, input_ids: Tensor, left: bool
) -> None:
    model = make_model(family)
    lengths = [20, 13, 1, 18, 7, 5]
    position = torch.arange(20).flip(0) if left else torch.arange(20)
    mask = (position < torch.tensor(lengths)[:, None]).long()
    batched = final_hidden(model, input_ids, mask)
    for row in range(len(input_ids)):
        real = mask[row].bool()
        alone = input_ids[row, real][None]
        expected = final_hidden(model, alone, torch.ones_like(alone))[0]
        torch.testing.assert_close(batched[row, real], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_gemma_2_caps_its_logits(make_model: MakeModel, input_ids: Tensor) -> None:
    model = make_model("gemma2")
    assert isinstance(model, Gemma2ForCausalLM)
    cap = model.config.final_logit_softcapping
    hidden = final_hidden(model, input_ids, torch.ones_like(input_ids)) * 20
    raw = model.lm_head(hidden)
    assert raw.abs().max() > cap
    logits = unembed(model, hidden)
    assert logits.abs().max() <= cap
    torch.testing.assert_close(logits, cap * torch.tanh(raw / cap))


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [CohereConfig(**TINY, logit_scale=0.25), GraniteConfig(**TINY, logits_scaling=4.0)],
    ids=["cohere", "granite"],
)
def test_families_that_scale_their_logits(config: CohereConfig | GraniteConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1, 50, (2, 6))
    hidden = final_hidden(model, ids, torch.ones_like(ids))
    unscaled = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(unembed(model, hidden), unscaled / 4)
    check_unembedding(model)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_unembedded_to_float32(
    make_model: MakeModel, family: str, dtype: torch.dtype, input_ids: Tensor
) -> None:
    model = make_model(family).to(dtype)
    check_unembedding(model)
    hidden = final_hidden(model, input_ids, torch.ones_like(input_ids))
    assert hidden.dtype == dtype
    assert unembed(model, hidden).dtype == torch.float32


@torch.no_grad()
def test_narrow_hidden_states_meet_wider_weights(model: PreTrainedModel) -> None:
    hidden = torch.randn(2, 32).bfloat16()
    torch.testing.assert_close(unembed(model, hidden), unembed(model, hidden.float()))


@torch.no_grad()
def test_head_that_does_something_else_is_refused(input_ids: Tensor) -> None:
    torch.manual_seed(0)
    model = DoubledHead(LlamaConfig(**{**TINY, "vocab_size": 300})).eval()
    # Logits large enough that 1% of them is no rounding.
    model.lm_head.weight.data.normal_()
    with pytest.raises(InputError, match=r"logits of DoubledHead differ by \d.* cannot compare"):
        check_unembedding(model)


@torch.no_grad()
def test_scale_that_the_model_does_not_apply_is_refused(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    scaled = copy.deepcopy(model)
    scaled.config.logit_scale = 0.5
    with pytest.raises(InputError, match="LlamaForCausalLM differ by"):
        check_unembedding(scaled)


@torch.no_grad()
def test_nan_logits_are_refused(model: PreTrainedModel, input_ids: Tensor) -> None:
    model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="differ by nan"):
        check_unembedding(model)


@torch.no_grad()
def test_a_model_that_counts_padding_is_refused() -> None:
    model = tiny_model("bart")
    with pytest.raises(
        InputError, match=r"Padding on the left changes the logits of BartForCausal"
    ):
        check_unembedding(model)


def test_state_space_model_is_found_by_its_layers() -> None:
    config = MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, state_size=4)
    assert decoder_blocks(AutoModelForCausalLM.from_config(config))[0] == "backbone.layers"


def test_positions_limit_the_length(make_model: MakeModel, family: str) -> None:
    config = make_model(family).config
    check_length(config, 128, "a sequence")
    with pytest.raises(InputError, match=r"at most 128 tokens, .* but a sequence has 129"):
        check_length(config, 129, "a sequence")


def test_model_that_states_no_limit_takes_any_length() -> None:
    check_length(MambaConfig(), 1_000_000, "a sequence")
