"""Find the parts of a decoder-only Hugging Face model of any family."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunelit.arguments import checked
from prunelit.errors import InputError, first_line
from prunelit.models.experts import ExpertMap, expert_maps, find_routers, fused_tensors

_PADDED = 3  # tokens of padding in a check
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_model(model: object) -> None:
    """Refuse an object that is no model of transformers.

    Raises:
        InputError: naming its type.
    """
    if not isinstance(model, PreTrainedModel):
        if isinstance(model, nn.Module):
            check_merged(model)
        raise InputError(
            f"Expected a model of transformers, such as `load_pretrained` returns, but got a "
            f"{type(model).__name__}."
        )


def check_merged(model: nn.Module) -> None:
    """Refuse adapters of peft, attached or merged in place: the weights are not those of the model.

    Raises:
        InputError: naming the module.
    """
    for name, module in model.named_modules():
        if _is_from("peft", module):
            raise InputError(
                f"Expected a model without adapters but its module {name or 'itself'!r} is a "
                f"{type(module).__name__} of peft: merge the adapter with `merge_and_unload()`."
            )


def check_plain(model: PreTrainedModel) -> None:
    """Refuse a model whose linear weights in the blocks are no plain numbers that can be pruned.

    Raises:
        InputError: naming the module that has an adapter, is quantised, or computes its weight.
    """
    check_merged(model)
    prefix, blocks = decoder_blocks(model)
    for name, module in blocks.named_modules(prefix=prefix):
        linear = isinstance(module, nn.Linear | Conv1D)
        own = dict(module.named_parameters(recurse=False))
        if linear and "weight" not in own:
            raise InputError(
                f"Expected the weight of {name!r} as a parameter but it is computed from others: "
                "make it permanent, as with `torch.nn.utils.prune.remove` or "
                "`torch.nn.utils.parametrize.remove_parametrizations`."
            )
        plain = all(
            type(own[part]) is nn.Parameter
            and type(own[part].data) is Tensor
            and own[part].dtype in _FLOATS
            for part in (["weight"] if linear else fused_tensors(module))
        )
        if not plain or _is_from("torch.ao", module) or getattr(model, "is_quantized", False):
            raise InputError(
                f"Expected plain weights in floating point but {name!r} is quantised or sharded "
                f"({type(module).__name__}): load the model without that, or `dequantize()` it."
            )


def _is_from(package: str, module: nn.Module) -> bool:
    return any(f"{cls.__module__}.".startswith(f"{package}.") for cls in type(module).__mro__)


def probe_ids(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Return (rows, length) different token ids for a check.

    They are in the middle of the vocabulary, where it has no special tokens, such as of images.
    """
    tokens = embedded_tokens(model)
    ids = (tokens // 2 + torch.arange(rows * length, device=model.device)) % tokens
    return ids.view(rows, length)


def embedded_tokens(model: PreTrainedModel) -> int:
    """Count the tokens that the model embeds."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the name and the list of the decoder blocks.

    They are the shallowest `ModuleList` with as many entries as the text configuration has layers.
    The towers of a multimodal model are left out.

    Raises:
        InputError: if there is none, as in an encoder-decoder.
    """
    config = model.config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    text = None if config is model.config else set(model.get_decoder().modules())
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
        if text is None or module in text
    ]
    if model.config.is_encoder_decoder:
        raise InputError(
            f"Expected a decoder-only model but {type(model).__name__} is an encoder-decoder: "
            "prunelit prunes models that read and write one text. Load a decoder-only model."
        )
    if not lists:
        raise InputError(
            "Expected a decoder-only model with a list of as many blocks as its "
            f"`num_hidden_layers` ({count}) but found none in {type(model).__name__}: prunelit "
            "works block by block. Load a model that is one list of blocks."
        )
    return min(lists, key=lambda item: item[0].count("."))


def trunk(model: PreTrainedModel) -> PreTrainedModel:
    """Find the part that computes the final embedding from tokens: all but the unembedding.

    It is the innermost model of transformers that holds the blocks.

    Args:
        model: a causal LM, which may have towers for other inputs than text.
    """
    prefix, _ = decoder_blocks(model)
    inside = (
        module
        for name, module in model.named_modules()
        if name and prefix.startswith(f"{name}.") and isinstance(module, PreTrainedModel)
    )
    *_, found = (model.base_model, *inside)
    return found


def check_length(config: PreTrainedConfig, length: int, what: str) -> None:
    """Refuse sequences that are longer than the model's positions.

    Args:
        config: configuration of the model. If it has no limit, every length is accepted.
        length: in tokens.
        what: name of the sequences in the error.

    Raises:
        InputError: giving both lengths.
    """
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise InputError(
            f"Expected at most {limit} tokens, the model's positions, but {what} has {length}: "
            "shorten it, or take a model with more positions."
        )


def linear_modules(block: nn.Module) -> dict[str, nn.Module]:
    """Find the linear maps of a block by their names inside the block.

    They are `Linear`, the Conv1D of GPT-2, routers that hold a matrix of their own, and a view
    for each expert of a tensor that fuses experts, as `mlp.experts.down_proj.3`.
    """
    routers = find_routers(block)
    found: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        matrix = name in routers and weight is not None and weight.ndim == 2
        if isinstance(module, nn.Linear | Conv1D) or matrix:
            found[name] = module
        found |= expert_maps(name, module)
    return found


@checked
def oriented_weight(linear: nn.Module) -> Tensor:
    """View the weight of a linear map as (O, I).

    It shares the storage of the weight, so that changes in place reach the model. `Linear` stores
    (O, I), the Conv1D of GPT-2 stores (I, O), and a mixture of experts may fuse the matrices of all
    experts in one tensor.

    Args:
        linear: a linear map of a block, such as `LinearPruner.targets` gives.

    Example:
        >>> import torch
        >>> from transformers.pytorch_utils import Conv1D
        >>> from prunelit.pruners import oriented_weight
        >>> oriented_weight(torch.nn.Linear(3, 2)).shape  # 3 inputs, 2 outputs
        torch.Size([2, 3])
        >>> oriented_weight(Conv1D(2, 3)).shape
        torch.Size([2, 3])
    """
    if isinstance(linear, ExpertMap):
        return linear.weight
    weight = linear.get_parameter("weight")
    return weight.T if isinstance(linear, Conv1D) else weight


def names_of(name: str, linear: nn.Module) -> tuple[str, ...]:
    """Names by which patterns find a linear map: for an expert, also that of the fused tensor.

    Args:
        name: of the map, inside its block.
        linear: the map.
    """
    return (name, name.rpartition(".")[0]) if isinstance(linear, ExpertMap) else (name,)


@dataclass(frozen=True)
class Weight:
    """Tensor of a block with two dimensions or more.

    Args:
        value: the parameter.
        kind: `linear` for linear maps and experts; or what no method for linear maps prunes unless
            it is named: `router`, `gate` (a map with one output), `convolution`, `other`.
    """

    value: nn.Parameter
    kind: str = "linear"


def block_weights(block: nn.Module) -> dict[str, Weight]:
    """Find all weights of a block: parameters of two dimensions or more, but no biases.

    Args:
        block: a decoder block; its weights may have no values.

    Returns:
        By the name of the parameter inside the block.
    """
    routers = find_routers(block)
    found: dict[str, Weight] = {}
    for path, module in block.named_modules():
        fused = fused_tensors(module)
        for name, value in module.named_parameters(recurse=False):
            if value.ndim < 2 or (fused and name not in fused):
                continue
            if path in routers:
                kind = "router"
            elif _is_gate(module):
                kind = "gate"
            elif fused or isinstance(module, nn.Linear | Conv1D):
                kind = "linear"
            else:
                kind = "convolution" if isinstance(module, _CONVOLUTIONS) else "other"
            found[f"{path}.{name}" if path else name] = Weight(value, kind)
    return found


def repeated_weights(model: PreTrainedModel) -> list[set[str]]:
    """Find the weights that blocks share: they are pruned once and counted once.

    Returns:
        For each block, names inside it of the parameters that an earlier block has too.
    """
    _, blocks = decoder_blocks(model)
    owners: dict[int, int] = {}
    return [
        {
            name
            for name, value in block.named_parameters(remove_duplicate=False)
            if owners.setdefault(id(value), index) != index
        }
        for index, block in enumerate(blocks)
    ]


def left_dense(block: nn.Module) -> set[str]:
    """Find the modules that methods for linear maps leave dense unless they are named.

    Args:
        block: a decoder block.

    Returns:
        Names inside the block: routers and what is in them, and linear maps with one output.
    """
    gates = {name for name, module in block.named_modules() if _is_gate(module)}
    return find_routers(block) | gates


def _is_gate(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) and oriented_weight(module).shape[0] == 1


def device_of(block: nn.Module) -> torch.device:
    """Return the device of a block; a block without weights has none, and is on the CPU."""
    return next((weight.device for weight in block.parameters()), torch.device("cpu"))


def block_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the hidden state of a block's output; older families return it first in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def takes_positions(model: PreTrainedModel) -> bool:
    """Return True for a family with `position_ids`; others derive positions from the mask."""
    return "position_ids" in inspect.signature(trunk(model).forward).parameters


def final_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the embedding h, the input of the unembedding: after last block and final norm.

    The positions of left-padded sequences count real tokens only, as in `generate`. A family
    without `position_ids` derives them from the mask.

    Args:
        model: a causal LM.
        input_ids: (B, T).
        attention_mask: (B, T), 0 at padding.

    Returns:
        (B, T, D), in the model's dtype.
    """
    options = {}
    left_padded = bool((attention_mask[:, 0] == 0).any())
    if left_padded and takes_positions(model):
        options["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    return trunk(model)(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
    ).last_hidden_state


def last_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the embedding of the last position of left-padded sequences, (B, D)."""
    return final_hidden(model, input_ids, attention_mask)[:, -1]


def unembed(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Compute the logits z of final embeddings, with the scale and soft cap of the family.

    Args:
        model: a causal LM.
        hidden: (..., D), from `final_hidden`, after the final norm.

    Returns:
        (..., V), float32.
    """
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    assert head is not None
    # In mixed precision the hidden states have a narrower type than the weights.
    logits = head(hidden.to(head.weight.dtype)).float()
    # Cohere multiplies, Granite divides, Gemma 2 and 3 cap. `check_unembedding` refuses a family
    # that does anything else.
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * (logits / cap).tanh()
    return logits


def logit_factor(model: PreTrainedModel) -> float | None:
    """Return the factor by which `unembed` multiplies the output of the head; None if it caps it.

    Args:
        model: a causal LM.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "final_logit_softcapping", None):
        return None
    scales = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    factor, divisor = scales
    return factor / divisor


@torch.no_grad()
def check_unembedding(model: PreTrainedModel) -> None:
    """Refuse a model that does not predict the next token, or not as `unembed` computes it.

    It runs a few tokens through the model, twice. The second time another token is the last one: it
    must not change what the model says of earlier ones. Nor may padding on the left, with which the
    same tokens run beside.

    Args:
        model: a causal LM, in evaluation mode.

    Raises:
        InputError: naming the model's class and the difference.
    """
    input_ids = probe_ids(model, 1, 9)
    other = input_ids.clone()
    other[:, -1] = input_ids[:, 0]
    # Each pass has two rows, as last bits may depend on the number of rows.
    mask = torch.ones_like(input_ids).expand(2, -1)
    try:
        own = (
            model(input_ids=input_ids.expand(2, -1), attention_mask=mask, use_cache=False)
            .logits[:1]
            .float()
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{type(model).__name__} cannot run on tokens alone: {first_line(error).rstrip('.')}. "
            "Load a model of text."
        ) from error
    # Half-precision heads may fuse or round differently. A missing scale or cap gives far more.
    exact = model.dtype.itemsize >= 4
    tolerance = (1e-4 if exact else 3e-2) * max(1.0, own.abs().max().item())

    head: Any = model.get_output_embeddings()

    def compute(ids: Tensor, mask: Tensor) -> Tensor | None:
        hidden = final_hidden(model, ids, mask)
        if head is None or head.weight.shape[-1] != hidden.shape[-1]:
            return None
        return unembed(model, hidden)

    def difference(found: Tensor | None) -> float:
        return float("inf") if found is None else (own - found[:1])[:, :-1].abs().max().item()

    padded = input_ids.roll(_PADDED, dims=1)
    beside = torch.stack([mask[0], (torch.arange(9, device=mask.device) >= _PADDED).to(mask)])
    found = compute(torch.cat([other, padded]), beside)
    if difference(found) <= tolerance:
        assert found is not None
        worst = (found[1, _PADDED:] - found[0, :-_PADDED]).abs().max().item()
        if not worst <= tolerance * (1 if exact else 10):
            raise InputError(
                f"Padding on the left changes the logits of {type(model).__name__} by {worst:.3g}, "
                "so texts of different lengths cannot be measured together. Load a model that does "
                "not count padding."
            )
        return
    changed = model(input_ids=other, attention_mask=mask[:1], use_cache=False).logits.float()
    if (own - changed)[:, :-1].abs().max() > tolerance:
        raise bidirectional(model)
    worst = difference(compute(input_ids, mask[:1]))
    how = "differ" if worst == float("inf") else f"differ by {worst:.3g}"
    raise InputError(
        f"The logits of {type(model).__name__} {how} from the "
        "unembedding of its last hidden state, so prunelit cannot compare models of this class. "
        "Load a model whose logits are a linear map of that state."
    )


def bidirectional(model: PreTrainedModel) -> InputError:
    """Return the error of a model in which a token changes what comes before it."""
    return InputError(
        f"{type(model).__name__} is bidirectional: a token changes the logits of earlier ones, so "
        "it cannot predict the next token. Load a decoder-only model, or set `is_decoder` in its "
        "config.json if it was trained as one."
    )
