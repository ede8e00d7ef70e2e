"""Read what transformers leaves out of a GGUF file: the scaling of rotary positions, digits.

Internal: nothing here is public.
"""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunelit.errors import InputError

_FACTORS = "rope_freqs.weight"  # tensor with a divisor of each frequency
_LLAMA3_CONTEXT = 8192  # of the released models
# Keys of positions that this module or transformers reads.
_READ = {
    "dimension_count",
    "freq_base",
    "scale_linear",
    "scaling.type",
    "scaling.factor",
    "scaling.original_context_length",
    "scaling.yarn_beta_fast",
    "scaling.yarn_beta_slow",
    "scaling.finetuned",  # changes nothing
}
# Keys that change nothing with this value.
_NEUTRAL = {
    "scaling.attn_factor": 1.0,
    "scaling.yarn_attn_factor": 1.0,
    "scaling.yarn_ext_factor": 1.0,
    "scaling.yarn_log_multiplier": 0.0,
    "scaling.alpha": 0.0,
}
# Names of the rules that split a text into the pieces that merges stay in, as llama.cpp reads them.
_AS_GPT2 = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum"),
    *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "a.x-4.0", "modern-bert"),
}
_DIGITS_ALONE = {
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
}


class GGUFHeader:
    """The keys and the tensors of a GGUF file.

    Args:
        path: of the file; it must be one that transformers can read.

    Raises:
        ValueError: if the file says that it has more blocks than it holds.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self._path = path
        self._values = {key: field.contents() for key, field in reader.fields.items()}
        self._architecture = self._values["general.architecture"]
        self._sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        self._factors = next(
            (torch.from_numpy(t.data.copy()) for t in reader.tensors if t.name == _FACTORS), None
        )
        held = {name.split(".")[1] for name in self._sizes if name.startswith("blk.")}
        blocks = self._values.get(key := f"{self._architecture}.block_count", 0)
        if blocks > len(held):  # millions would take transformers hours
            raise ValueError(f"`{key}` is {blocks} but it holds the tensors of {len(held)} blocks.")

    def set_positions(self, config: PreTrainedConfig) -> None:
        """Write the rotary positions of the file into the configuration of its model.

        Raises:
            InputError: if transformers has no positions of this form.
        """
        rope = getattr(config, "rope_parameters", None)
        found = {
            key: value
            for full, value in self._values.items()
            if (key := full.removeprefix(f"{self._architecture}.rope.")) != full
        }
        if "mrope_section" in (rope or {}):
            found.pop("dimension_sections", None)
        if isinstance(rope, dict) and "full_attention" in rope:  # other positions in local layers
            if base := found.pop("freq_base_swa", None):
                rope["sliding_attention"]["rope_theta"] = float(base)
            rope = rope["full_attention"]
        for key, value in found.items():
            if key not in _READ and not math.isclose(_NEUTRAL.get(key, math.nan), value):
                raise self._refuse(f"the key {self._architecture}.rope.{key} is not supported")
        if longrope := [name for name in self._sizes if name.startswith("rope_factors_")]:
            raise self._refuse(f"the tensor {longrope[0]!r} is not supported")
        scaling = self._scaling(found)
        if rope is None:
            if scaling:
                raise self._refuse(f"{type(config).__name__} has no rotary positions")
            return
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        dimensions = int(found.get("dimension_count", width))
        rope["rope_theta"] = float(found.get("freq_base", 10000.0))
        if dimensions != width or "partial_rotary_factor" in rope:
            rope["partial_rotary_factor"] = dimensions / width
        plain = rope["rope_theta"] ** (-torch.arange(0, dimensions, 2) / dimensions)
        if self._factors is not None:
            if scaling:
                raise self._refuse(f"it has both {_FACTORS!r} and a scaling of another type")
            scaling = self._llama3(plain)
        rope.update(scaling)

    def set_splits(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Split texts before merges as the file says, where transformers has no such rule.

        It splits by the rule of GPT-2 then, without a word.

        Raises:
            InputError: if the rule is not known here.
        """
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._values.get("tokenizer.ggml.model") != "gpt2":
            return
        if not isinstance(backend.pre_tokenizer, ByteLevel):
            return
        name = self._values.get("tokenizer.ggml.pre")
        if name in _DIGITS_ALONE:
            plain = ByteLevel(add_prefix_space=False)
            backend.pre_tokenizer = Sequence([Digits(individual_digits=True), plain])
        elif name is None:
            rank_zero_info(
                f"{self._path} does not name the rule that splits its texts (tokenizer.ggml.pre): "
                "they are split as those of GPT-2."
            )
        elif name not in _AS_GPT2:
            raise self._refuse(
                f"the rule {name!r} that splits its texts (tokenizer.ggml.pre) is not supported"
            )

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that left out tensors of the file.

        Raises:
            InputError: giving both numbers of weights.
        """
        known = {
            name: size
            for name, size in self._sizes.items()
            if not name.startswith("rope_") and ".nextn." not in name
        }
        if model.config.get_text_config(decoder=True).tie_word_embeddings:
            known.pop("output.weight", None)
        taken = sum(parameter.numel() for parameter in model.parameters())
        if sum(known.values()) != taken:
            raise self._refuse(
                f"it holds {sum(known.values())} weights but {type(model).__name__} has {taken}"
            )

    def _scaling(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of `rope_parameters` for the scaling that the keys describe."""
        factor = float(found.get("scaling.factor") or found.get("scale_linear") or 1.0)
        kind = str(found.get("scaling.type", "linear"))
        if kind == "none" or (kind == "linear" and factor == 1):
            return {}
        scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
        if kind == "yarn":
            context = (
                found.get("scaling.original_context_length")
                or self._values[f"{self._architecture}.context_length"]
            )
            scaling["original_max_position_embeddings"] = int(context)
            for name in ("beta_fast", "beta_slow"):
                if (beta := found.get(f"scaling.yarn_{name}")) is not None:
                    scaling[name] = float(beta)
        elif kind != "linear":
            raise self._refuse(f"rotary positions of the type {kind!r} are not supported")
        return scaling

    def _llama3(self, plain: Tensor) -> dict[str, Any]:
        """Find the scaling of Llama 3 that gives the factors of the file.

        The factor of a wavelength is 1 below a quarter of the old context and the highest factor
        above the old context. Between them its inverse is a straight line of the frequency.

        Args:
            plain: frequencies without scaling, in radians per token.
        """
        assert self._factors is not None
        factors = self._factors.float().flatten()
        if bool((factors == 1).all()):
            return {}
        wavelength, highest = 2 * math.pi / plain, factors.max().item()
        contexts = [_LLAMA3_CONTEXT]
        if factors.shape == plain.shape:
            share = (1 / factors - 1 / highest) / (1 - 1 / highest)
            between = (factors > 1) & (factors < highest)
            contexts += [round(x) for x in ((1 + 3 * share) * wavelength)[between].tolist()]
            contexts += [math.floor(wavelength[factors == highest].min().item())]
            for context in contexts:
                smooth = ((context / wavelength - 1) / 3).clamp(0, 1)
                expected = 1 / ((1 - smooth) / highest + smooth)
                if torch.allclose(factors, expected, rtol=1e-3):
                    return {
                        "rope_type": "llama3",
                        "factor": highest,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                        "original_max_position_embeddings": context,
                    }
        raise self._refuse(f"the factors in {_FACTORS!r} are not those of a Llama 3 model")

    def _refuse(self, reason: str) -> InputError:
        return InputError(
            f"{self._path} cannot be read as the model that it is: {reason}. Use the original "
            "folder."
        )
