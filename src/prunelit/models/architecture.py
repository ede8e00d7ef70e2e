"""Where the parts of a decoder-only Hugging Face model are, for any family."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunelit.errors import InputError


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder blocks.

    It is the shallowest ModuleList with as many entries as the text configuration has layers.

    Raises:
        InputError: if there is none, as in an encoder-decoder.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists or model.config.is_encoder_decoder:
        raise InputError(
            f"Expected a decoder-only model with a list of {count} blocks but found none in "
            f"{type(model).__name__}."
        )
    return min(lists, key=lambda item: item[0].count("."))


def check_length(config: PreTrainedConfig, length: int, what: str) -> None:
    """Refuse sequences that are longer than the model's positions.

    Args:
        config: of the model.
        length: in tokens.
        what: names the sequences in the error.

    Raises:
        InputError: giving both lengths. A model that states no limit refuses nothing.
    """
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise InputError(
            f"Expected at most {limit} tokens, the model's positions, but {what} has {length}."
        )


def linear_modules(block: nn.Module) -> dict[str, nn.Module]:
    """Every linear map of a block by its name inside the block (GPT-2's Conv1D included)."""
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def linear_weights(block: nn.Module) -> dict[str, Tensor]:
    """The weights of `linear_modules` as they are stored."""
    return {name: linear.get_parameter("weight") for name, linear in linear_modules(block).items()}


def oriented_weight(linear: nn.Module) -> Tensor:
    """The weight of a linear map as (O, I), a view that shares storage (Conv1D stores (I, O))."""
    weight = linear.get_parameter("weight")
    return weight.T if isinstance(linear, Conv1D) else weight


@dataclass(frozen=True)
class Sublayer:
    """Attention or MLP of a block; all names are inside the block.

    Args:
        parts: the modules it consists of, one unless the family spreads it over the block.
        inputs: its linear maps but the last.
        output: its last linear map, whose zero output makes the sublayer put out nothing.
    """

    parts: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str


# Names of the sublayer's module and of its last linear map, over the families.
_ATTENTION = ("self_attn", "attn", "attention"), ("o_proj", "out_proj", "dense", "c_proj")
_MLP = ("mlp",), ("down_proj", "fc2", "dense_4h_to_h", "c_proj")


def sublayers(block: nn.Module) -> dict[str, Sublayer]:
    """The `attention` and the `mlp` of a block.

    Raises:
        InputError: if the block is built otherwise, as with a mixture of experts.
    """
    linears = linear_modules(block)
    found = {}
    for kind, (modules, outputs) in (("attention", _ATTENTION), ("mlp", _MLP)):
        name = next((name for name in modules if hasattr(block, name)), None)
        if name is None and kind == "mlp" and {"fc1", "fc2"} <= set(linears):
            found[kind] = Sublayer(("fc1", "fc2"), ("fc1",), "fc2")  # OPT
            continue
        output = next((o for last in outputs if (o := f"{name}.{last}") in linears), None)
        if name is None or output is None:
            raise InputError(
                f"The {kind} of {type(block).__name__} could not be told from its module names "
                f"{sorted(dict(block.named_children()))}: it cannot be pruned as a whole."
            )
        inside = [other for other in linears if other.startswith(f"{name}.") and other != output]
        found[kind] = Sublayer((name,), tuple(inside), output)
    return found


def final_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The embedding h that the unembedding reads: after the last block and the final norm.

    Left-padded sequences get positions that count real tokens only, as in `generate`; a family that
    takes no positions derives them from the mask itself.

    Args:
        model: a causal LM.
        input_ids: (B, T).
        attention_mask: (B, T), 0 at padding.

    Returns:
        (B, T, D), in the model's dtype.
    """
    options = {}
    left_padded = bool((attention_mask[:, 0] == 0).any())
    if left_padded and "position_ids" in inspect.signature(model.base_model.forward).parameters:
        options["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
    ).last_hidden_state


def unembed(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The logits z of final embeddings, with the scale and soft cap that the family applies.

    Args:
        model: a causal LM.
        hidden: (..., D), as `final_hidden` gives it: the final norm is already applied.

    Returns:
        (..., V), float32.
    """
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    assert head is not None
    # Under mixed precision hidden states are narrower than the weights.
    logits = head(hidden.to(head.weight.dtype)).float()
    # Cohere multiplies, Granite divides, Gemma 2 and 3 cap. `check_unembedding` refuses a family
    # for which this is not the whole truth.
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * (logits / cap).tanh()
    return logits


@torch.no_grad()
def check_unembedding(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are not what `unembed` makes of its final embedding.

    Runs a few tokens through the model, twice.

    Args:
        model: a causal LM, in evaluation mode.

    Raises:
        InputError: naming the model's class and the difference.
    """
    input_ids = torch.arange(8, device=model.device)[None]
    mask = torch.ones_like(input_ids)
    own = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float()
    ours = unembed(model, final_hidden(model, input_ids, mask))
    difference = (own - ours).abs().max().item()
    # Half-precision heads may fuse or round differently; a missing scale or cap is far larger.
    tolerance = (1e-4 if model.dtype.itemsize >= 4 else 3e-2) * max(1.0, own.abs().max().item())
    if not difference <= tolerance:
        raise InputError(
            f"The logits of {type(model).__name__} differ by {difference:.3g} from the unembedding "
            "of its last hidden state, so prunelit cannot compare models of this class."
        )
