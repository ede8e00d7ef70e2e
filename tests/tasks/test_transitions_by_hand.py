"""Sublayers one by one, against the same computed by hand from a family's own modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import prune
from prunelit.metrics.spaces.deviation import deviations
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import ModelPair

MakeModel = Callable[..., PreTrainedModel]
PARALLEL = ("phi", "gpt_neox")


def mask_of(model: PreTrainedModel, index: int, length: int) -> Tensor:
    """(1, 1, T, T), added to attention scores."""
    config = model.config
    window = length
    if config.model_type == "mistral":
        window = config.sliding_window
    if getattr(config, "layer_types", None):
        sliding = config.layer_types[index] == "sliding_attention"
        window = config.sliding_window if sliding else length
    ahead = torch.arange(length)[:, None] - torch.arange(length)
    return torch.where((ahead >= 0) & (ahead < window), 0.0, -torch.inf)[None, None]


class ByHand:
    """A family's sublayers called one by one on one unpadded sequence, no hooks, no cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.family = model, model.config.model_type
        self.base = model.base_model
        self.blocks = decoder_blocks(model)[1]

    def begin(self, ids: Tensor) -> Tensor:
        self.positions = torch.arange(ids.shape[1])[None]
        if self.family == "gpt2":
            return self.base.wte(ids) + self.base.wpe(self.positions)
        if self.family == "gpt_neox":
            return self.base.embed_in(ids)
        return self.base.embed_tokens(ids)

    def attention(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        options: dict[str, Any] = {"attention_mask": mask_of(self.model, index, x.shape[1])}
        if self.family == "gpt2":
            return x + block.attn(block.ln_1(x), **options)[0]
        options["position_embeddings"] = self.base.rotary_emb(x, self.positions)
        attention = block.attention if self.family == "gpt_neox" else block.self_attn
        out = attention(hidden_states=block.input_layernorm(x), **options)[0]
        return x + (block.post_attention_layernorm(out) if self.family == "gemma2" else out)

    def mlp(self, index: int, x: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        if self.family == "gemma2":
            out = block.mlp(block.pre_feedforward_layernorm(x))
            return x + block.post_feedforward_layernorm(out)
        norm = {"gpt2": "ln_2", "phi": "input_layernorm"}.get(
            self.family, "post_attention_layernorm"
        )
        return x + block.mlp(getattr(block, norm)(x))

    def logits(self, x: Tensor, final_norm: bool) -> Tensor:
        if final_norm:
            names = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
            x = next(getattr(self.base, name) for name in names if hasattr(self.base, name))(x)
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        z = head(x)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return cap * torch.tanh(z / cap) if cap else z


def streams(hand: ByHand, ids: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Return the input and the output of each sublayer of each block."""
    x, found = hand.begin(ids), []
    for index in range(len(hand.blocks)):
        attended = hand.attention(index, x)
        if hand.family in PARALLEL:
            alone = hand.mlp(index, x)
            found.append({"attention": (x, attended), "mlp": (x, alone)})
            x = attended + alone - x
        else:
            out = hand.mlp(index, attended)
            found.append({"attention": (x, attended), "mlp": (attended, out)})
            x = out
    return found


@pytest.mark.parametrize("final_norm", [True, False])
@torch.no_grad()
def test_every_family_by_hand(
    family: str,
    final_norm: bool,
    make_model: MakeModel,
    tokenizer: PreTrainedTokenizerBase,
    transitions: Callable[..., Any],
    contexts: list[str],
    input_ids: Tensor,
) -> None:
    if family == "opt":
        pytest.skip("its projections make it a family of its own: the null test runs it")
    dense, pruned = make_model(family), make_model(family)
    prune(pruned, Wanda(Unstructured(0.5)), input_ids)
    drop_(decoder_blocks(pruned)[1][1], "mixer")
    _, _, outputs = transitions(ModelPair(pruned, dense, tokenizer), final_norm=final_norm)
    hands = ByHand(dense), ByHand(pruned)
    item = 0
    for output in outputs:
        size = len(output["local/mlp/decode/js"].values)
        for place in range(size):
            prompt = torch.tensor([tokenizer(contexts[item])["input_ids"]])
            item += 1
            ids, ended = prompt, False
            for _ in range(6):
                following = dense(input_ids=ids).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, following], 1)
                if ended := bool(following == 0):
                    break
            mine, theirs = (streams(hand, ids) for hand in hands)
            steps = ids.shape[1] - prompt.shape[1]
            first = prompt.shape[1] - 1
            assert ended or steps == 6
            for block in range(3):
                for kind in ("attention", "mlp"):
                    read, dense_out = mine[block][kind]
                    local = getattr(hands[1], kind)(block, read)
                    for variant, out, hand in (
                        ("local", local, hands[0]),
                        ("cumulative", theirs[block][kind][1], hands[1]),
                    ):
                        expected = deviations(
                            dense_out[0],
                            out[0],
                            hands[0].logits(dense_out, final_norm)[0],
                            hand.logits(out, final_norm)[0],
                        )
                        for quantity in (
                            "embedding_cosine",
                            "embedding_orthogonal",
                            "logit_cosine",
                            "logit_mse",
                            "probability_cosine",
                            "kl_dense_pruned",
                            "kl_pruned_dense",
                            "kl_dense_pruned_estimate",
                        ):
                            for phase, chosen in (
                                ("prompt", slice(0, first)),
                                ("decode", slice(first, first + steps)),
                            ):
                                name = f"{variant}/{kind}/{phase}/{quantity}"
                                found = output[name].values[place, block]
                                torch.testing.assert_close(
                                    found[~found.isnan()],
                                    expected[quantity][chosen],
                                    rtol=2e-3,
                                    atol=2e-5,
                                    msg=lambda text, name=name: f"{name}: {text}",
                                )
