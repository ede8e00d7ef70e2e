"""Models whose blocks differ from those of a stock class, as transformers loads them.

Some blocks lack a sublayer, or have fewer heads or neurons than others. A stock class would fill
the gap with random weights, so the folder of such a model has a model type of its own. Without
prunelit, transformers refuses it. With it, `from_pretrained` builds the stock class and puts blocks
of other widths and `Absent` modules into it.

It imports no other module of prunelit: a copy of this file in the folder is all that transformers
needs with `trust_remote_code`.
"""

import copy
import inspect
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME

_TYPE = "prunelit"
_CODE = "modeling_prunelit"
# A stock class that is named outright reads weights from the file that this key names.
_NO_FILE = "none, as blocks lack parts; `import prunelit` and use AutoModelForCausalLM"
_FIELDS = "_prunelit_fields"  # attribute of a block of a width of its own


class Absent(nn.Module):
    """Module that returns what the one in its place returned when all its weights were 0.

    It keeps no keys, values or states. In a cache it leaves one number for each token or sequence,
    by which the library counts the tokens.

    Args:
        kind: `attention`, `mixer` or `mlp`.
        returns: values that it returns, as `prunelit.models.absent.find_returns` writes them.
        original: the module in whose place it is.
        place: index of its block, if it counts the tokens of the block in a cache.
    """

    def __init__(
        self, kind: str, returns: str, original: nn.Module, place: int | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.returns = returns
        self.layer_idx = place
        values = returns.split(",")
        self._length = None if len(values) == 1 else len([text for text in values if text.strip()])
        self._first = values[0]
        own = original if isinstance(original, Absent) else None
        self._names = own._names if own else parameters_of(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros like the hidden state, or the argument that the module passed on."""
        values = [*args, *kwargs.values()]
        hidden = next(value for value in values if isinstance(value, Tensor))
        if self.layer_idx is not None:
            for cache in [value for value in values if hasattr(value, "get_seq_length")][:1]:
                _count_tokens(cache, self.layer_idx, hidden)
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        word, _, width = self._first.partition(" ")
        if word == "zeros":
            first = hidden.new_zeros(*hidden.shape[:-1], int(width or hidden.shape[-1]))
        else:
            first = named[word]
        return first if self._length is None else (first, *[None] * (self._length - 1))


def parameters_of(module: nn.Module) -> list[str]:
    """List the names of the arguments of a module's `forward`."""
    return [name for name in inspect.signature(type(module).forward).parameters if name != "self"]


def _count_tokens(cache: Any, index: int, hidden: Tensor) -> None:
    """Leave in a layer of a cache what the library counts the tokens by."""
    batch, length = hidden.shape[:2]
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    if hasattr(layer, "update_conv_state"):
        for state in range(layer.number_of_states):
            cache.update_conv_state(hidden.new_zeros(batch, 1, 1), index, state_idx=state)
    if layer is None or hasattr(layer, "get_seq_length"):
        entry = hidden.new_zeros(batch, 1, length, 1)
        cache.update(entry, entry, index)


class PrunelitConfig(PreTrainedConfig):
    """Reader of the `config.json` of a model whose blocks differ from those of a stock class.

    It becomes the configuration of the stock class, in a subclass that knows the differences.
    """

    model_type = _TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the configuration of the stock class; the arguments are those of transformers."""
        own = config_dict.get(_TYPE)
        if not isinstance(own, dict) or not {"absent", "config"} <= own.keys():
            raise ValueError(
                f"Expected `config` and `absent` under {_TYPE!r} in config.json but they are "
                "missing: write the folder again with prunelit."
            )
        plain = _without_layers(own["config"])
        made = _config_class(CONFIG_MAPPING[plain["model_type"]]).from_dict(plain, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config._absent, config._fields = own["absent"], own.get("fields", {})
        return made


@cache
def _config_class(stock: type[PreTrainedConfig]) -> Any:
    """Make a subclass of a stock configuration, and tell transformers which models it has."""
    # This module is imported before they exist, while transformers imports what registers it.
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    def to_dict(self: Any) -> dict[str, Any]:
        plain = stock.to_dict(self)
        return {name: value for name, value in plain.items() if name not in ("_absent", "_fields")}

    def save_pretrained(self: Any, save_directory: Any, **kwargs: Any) -> None:
        stock.save_pretrained(self, save_directory, **kwargs)
        write_config(Path(save_directory), self, self._absent, self._fields)

    own = {"to_dict": to_dict, "save_pretrained": save_pretrained, "_absent": {}, "_fields": {}}
    made = type(f"Prunelit{stock.__name__}", (stock,), {**own, "__module__": __name__})
    for auto, known in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        if (model := known.get(stock, None)) is not None:
            auto.register(made, _model_class(model, made), exist_ok=True)
    return made


def _model_class(stock: Any, config_class: type[PreTrainedConfig]) -> type[nn.Module]:
    """Make a subclass of a stock model that has other modules in the place of some."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        set_fields(self, stock, config._fields)
        for name, values in config._absent.items():
            original = self.get_submodule(name)
            absent = Absent(original=original, **values)
            for key, buffer in original.named_buffers(recurse=False):
                absent.register_buffer(key, buffer, persistent=False)  # the family may fill it
            self.set_submodule(name, absent)

    # By its name and module, the library finds how it renames the weights of a family.
    own = {"__init__": __init__, "config_class": config_class, "__module__": stock.__module__}
    return type(stock.__name__, (stock,), own)


def set_fields(model: Any, stock: Any, fields: dict[str, dict[str, Any]]) -> None:
    """Put blocks that are built of other configurations in the place of some.

    Args:
        model: just built.
        stock: class that builds a model of which a block is taken.
        fields: by the name of a block, fields of the configuration that differ.
    """
    own = model.config.get_text_config(decoder=True)
    for changes in [json.loads(text) for text in dict.fromkeys(map(_as_text, fields.values()))]:
        config = copy.deepcopy(model.config)
        text = config.get_text_config(decoder=True)
        for name, value in changes.items():
            setattr(text, name, value)
        other = stock(config)
        for name in [name for name, found in fields.items() if found == changes]:
            block = other.get_submodule(name)
            for module in block.modules():
                if getattr(module, "config", None) is text:
                    module.config = own  # so that a change of the model's options reaches it
            setattr(block, _FIELDS, changes)
            model.set_submodule(name, block)


def _as_text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def note_fields(block: nn.Module, fields: dict[str, Any]) -> None:
    """Note in a block the fields of the configuration that it would be built of."""
    setattr(block, _FIELDS, fields)


def fields_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the fields of the configuration that a block has for itself, by name of the block."""
    found = {name: vars(module).get(_FIELDS) for name, module in model.named_modules()}
    return {name: fields for name, fields in found.items() if fields}


def is_uneven(config: PreTrainedConfig) -> bool:
    """Return True for the configuration of a model whose blocks differ from those of its class."""
    return bool(getattr(config, "_absent", None) or getattr(config, "_fields", None))


def absent_modules(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the arguments of each `Absent` of a model, by the name of the module."""
    return {
        name: {"kind": module.kind, "returns": module.returns, "place": module.layer_idx}
        for name, module in model.named_modules()
        if isinstance(module, Absent)
    }


def write_config(
    folder: Path,
    config: PreTrainedConfig,
    absent: dict[str, dict[str, Any]],
    fields: dict[str, dict[str, Any]],
    custom_code: bool = False,
) -> None:
    """Write the `config.json` of a folder anew, so that no stock class loads it wrongly.

    The stock configuration stays inside, with `per_layer_config` as transformers defines it. No
    stock class of a plain decoder reads that yet, and those that ignore it say nothing.

    Args:
        folder: holds the `config.json` of transformers.
        config: of the model.
        absent: its absent modules, see `absent_modules`.
        fields: of blocks of other widths, see `fields_of`.
        custom_code: put a copy of this file there, for `trust_remote_code`.
    """
    path = folder / CONFIG_NAME
    plain = json.loads(path.read_text(encoding="utf-8"))
    if plain["model_type"] == _TYPE:
        plain = plain[_TYPE]["config"]
    text = config.get_text_config(decoder=True)
    key = next((name for name, value in vars(config).items() if value is text), None)
    layers: dict[str, dict[str, Any]] = {}
    for name, values in (fields | absent).items():
        if (index := re.search(r"\.(\d+)(?:\.|$)", name)) is not None:
            layers.setdefault(index[1], {}).update(
                {"skip": [values["kind"]]} if name in absent else values
            )
    (plain if key is None else plain[key])["per_layer_config"] = layers
    whole: dict[str, Any] = {
        "model_type": _TYPE,
        "architectures": ["PrunelitForCausalLM"],
        "transformers_weights": _NO_FILE,
        _TYPE: {"absent": absent, "fields": fields, "config": plain},
    }
    if custom_code:
        shutil.copyfile(__file__, folder / f"{_CODE}.py")
        whole["auto_map"] = {"AutoConfig": f"{_CODE}.{PrunelitConfig.__name__}"}
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _without_layers(plain: dict[str, Any]) -> dict[str, Any]:
    """Leave `per_layer_config` out of a configuration and of the parts inside it."""
    return {
        name: _without_layers(value) if isinstance(value, dict) else value
        for name, value in plain.items()
        if name != "per_layer_config"
    }


AutoConfig.register(_TYPE, PrunelitConfig, exist_ok=True)
