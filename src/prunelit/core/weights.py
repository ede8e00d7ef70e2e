"""The weights of a run: the model that is pruned, and the dense model it is compared with."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunelit.core.placement import Placement
from prunelit.core.private_api import multiplies_bfloat16
from prunelit.data.vocabularies import tell_vocabulary
from prunelit.errors import InputError
from prunelit.models.architecture import check_plain, check_unembedding
from prunelit.models.fewer_experts import config_counts
from prunelit.models.fingerprint import weight_bytes
from prunelit.models.loading import (
    DType,
    load_config,
    load_placed,
    load_tokenizer,
    read_experts_before,
    read_removed,
    source_version,
)
from prunelit.models.located import pin_revision
from prunelit.models.model_pair import ModelPair
from prunelit.models.parallel import check_parallel, group_ranks, parallelize
from prunelit.models.read_checks import check_vocabulary
from prunelit.models.shards import shard_blocks
from prunelit.models.sharing import copy_sharing, outside_sums, share_outside
from prunelit.models.streaming import stream
from prunelit.models.surgery import Removed
from prunelit.report.results import name_content


class Origin:
    """A source of a model; all that is read from it belongs to one commit.

    Args:
        source: see `prunelit.load_pretrained`.
        revision: branch, tag or commit on the hub.
        numerics: dtype of the weights and implementation of attention.
        trust_remote_code: run code that comes with the weights.
        full_hash: identify the weights of a folder by all of them; False takes a sample.
    """

    def __init__(
        self,
        source: str,
        revision: str | None,
        numerics: dict[str, Any],
        trust_remote_code: bool,
        full_hash: bool,
    ) -> None:
        self.source = source
        self._revision = revision
        self._numerics = numerics
        self._code = {"trust_remote_code": trust_remote_code}
        self._full_hash = full_hash

    @cached_property
    def _same(self) -> dict[str, Any]:
        """Options of every read; the branch may move on between two reads."""
        return {"revision": pin_revision(self.source, self._revision), **self._code}

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model; reads no weights."""
        return load_config(self.source, **self._same)

    @property
    def text_config(self) -> PreTrainedConfig:
        """Configuration of the language model, if the model has other parts."""
        return self.config.get_text_config(decoder=True)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model; reads no weights."""
        tokenizer = load_tokenizer(self.source, **self._same)
        check_vocabulary(tokenizer, self.text_config.vocab_size, self.source)
        return tokenizer

    @cached_property
    def removed(self) -> Removed:
        """Parts that an earlier pruning by prunelit removed."""
        return read_removed(self.source, self._same["revision"])

    @cached_property
    def experts_before(self) -> set[int]:
        """Numbers of experts that mixtures had before an earlier pruning dropped some."""
        return read_experts_before(self.source, self._same["revision"])

    def read(self, place: Callable[[PreTrainedModel], None] | None = None) -> PreTrainedModel:
        """Read the weights.

        Args:
            place: takes weights to where they wait; None leaves them.
        """
        model = load_placed(self.source, place, **self._numerics, **self._same)[0]
        check_unembedding(model)
        return model

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the weights of a run; None if only their files tell."""
        name = self._numerics["dtype"]
        if name != "auto":
            return getattr(torch, name)
        stored = self.text_config.dtype
        return stored if isinstance(stored, torch.dtype) else None

    @cached_property
    def version(self) -> dict[str, Any]:
        """Content of the source; computed once, as the weights are read once."""
        return source_version(self.source, **self._same)

    @cached_property
    def all_weights(self) -> dict[str, Any] | None:
        """Content of the source with all weights; None if it was not asked for."""
        return source_version(self.source, **self._same, full=True) if self._full_hash else None

    def identify(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return plain data that identifies a model that was read.

        Args:
            model: from `read`.
        """
        content = self.all_weights or self.version
        by = "all weights" if self._full_hash else "a sample of the weights"
        quantized = getattr(self.config, "quantization_config", None)
        return {
            "source": self.source,
            "content": name_content(content),
            "content_by": "commit" if "commit" in content else by,
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "bytes": weight_bytes(model),
            "quantized": None if quantized is None else _method(quantized),
        }


class Weights:
    """Reads both models of a run, each at most once.

    It is a plain object. A Lightning module that holds it therefore does not register the dense
    model as a submodule.

    Args:
        source: of the model, see `prunelit.load_pretrained`.
        dtype: of the weights; `auto` is the dtype they are stored in, see `settle_dtype`.
        attn_implementation: as in transformers; None is its default.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.
        reference: keep the dense model for comparison.
        full_hash: identify the weights of a folder by all of them; False takes a sample.
        candidate: source of a model that takes the place of the pruned one; None prunes.
        candidate_revision: branch, tag or commit of the candidate on the hub.

    Attributes:
        placement: of both models; set it before `load`.
        device: of this rank, for what it keeps of a sharded or parallel model.
        together: number of ranks that compute a parallel model together.
        trains: the run trains the pruned model; set it before `load`.
    """

    def __init__(
        self,
        source: str,
        dtype: DType = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        reference: bool = True,
        full_hash: bool = False,
        candidate: str | None = None,
        candidate_revision: str | None = None,
    ) -> None:
        self.source = source
        self.placement: Placement = "resident"
        self.device = torch.device("cpu")
        self.together = 1
        self.trains = True
        self._mesh: DeviceMesh | None = None
        self.reference = reference
        self.full_hash = full_hash
        self._numerics: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
        }
        same = (self._numerics, trust_remote_code, full_hash)
        self.origin = Origin(source, revision, *same)
        self.candidate = None if candidate is None else Origin(candidate, candidate_revision, *same)
        self._trust_remote_code = trust_remote_code
        self._pair: ModelPair | None = None
        self._dense: PreTrainedModel | None = None
        self._outside: list[int] | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model; reads no weights."""
        return self.origin.tokenizer

    def load_config(self) -> PreTrainedConfig:
        """Read the configuration of the model, without its weights."""
        return self.origin.config

    @property
    def waits(self) -> bool:
        """True if the blocks of both models wait in stores, see `prunelit.models.stores`."""
        return self.placement in ("streamed", "sharded")

    @property
    def resident(self) -> bool:
        """True if both models are whole on each device."""
        return self.placement == "resident"

    def settle_dtype(self, agree: Callable[[bool], bool]) -> None:
        """Let `auto` be float32 on a CPU without instructions for bfloat16, and say so.

        There products of bfloat16 take two to four times as long as those of float32, which holds
        every number of bfloat16.

        Args:
            agree: returns True if something is true on every rank.
        """
        if self._numerics["dtype"] != "auto" or self.device.type != "cpu":
            return
        if any(
            origin is not None
            and origin.dtype is torch.bfloat16
            and getattr(origin.config, "quantization_config", None) is None
            for origin in (self.origin, self.candidate)
        ) and not agree(multiplies_bfloat16()):
            self._numerics["dtype"] = "float32"
            rank_zero_info(
                "This CPU has no instructions for bfloat16, in which the weights are stored, so "
                "they are loaded in float32: faster, in twice the memory. `model.dtype` bfloat16 "
                "keeps them as they are."
            )

    def check_parallel(self, ranks: int) -> None:
        """Refuse models that several ranks cannot compute together.

        Args:
            ranks: number of ranks in a group.

        Raises:
            InputError: naming the family, or the number of heads.
        """
        for origin in (self.origin, self.candidate):
            if origin is not None:
                check_parallel(origin.config, ranks)

    def _place(self, model: PreTrainedModel) -> None:
        """Take the weights of a model to where they wait, or to the ranks that compute it."""
        if self.placement == "streamed":
            stream(model, dense=self._dense)
        elif self.placement == "sharded":
            shard_blocks(model, self.device, self._dense)
        else:
            check_plain(model)
            self._mesh = self._mesh or group_ranks(self.device, self.together)
            parallelize(model, self._mesh, self.device)

    @cached_property
    def other_vocabulary(self) -> str | None:
        """Words for a token of the candidate that is another one; None if there is none."""
        if self.candidate is None:
            return None
        return tell_vocabulary(self.origin.tokenizer, self.candidate.tokenizer)

    def beside(self, candidate: str | None) -> "Weights":
        """Return the weights of another run on the same dense model, which is not read again.

        Args:
            candidate: source of a model in the place of the pruned one; None prunes.
        """
        other = copy.copy(self)
        other._pair = None
        other._dense = self._dense if self._pair is None else self._pair.dense
        vars(other).pop("other_vocabulary", None)
        same = (self._numerics, self._trust_remote_code, self.full_hash)
        other.candidate = None if candidate is None else Origin(candidate, None, *same)
        return other

    @property
    def other_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Tokenizer of the candidate, if its vocabulary is not that of the dense model."""
        if self.candidate is None or self.other_vocabulary is None:
            return None
        return self.candidate.tokenizer

    @property
    def removed_blocks(self) -> Sequence[int]:
        """Blocks of the dense model that a candidate lacks; none if its blocks are other ones."""
        assert self.candidate is not None
        blocks = [one.text_config.num_hidden_layers for one in (self.origin, self.candidate)]
        removed = self.candidate.removed.blocks
        return removed if blocks[0] - blocks[1] == len(removed) else ()

    @property
    def kept_experts(self) -> Mapping[str, Sequence[int]]:
        """Experts of the dense model that a candidate has; none if it was pruned from another."""
        assert self.candidate is not None
        same = self.candidate.experts_before <= config_counts(self.origin.config)
        return self.candidate.removed.kept_experts if same else {}

    def identities(self) -> dict[str, Any]:
        """Return source, content and dtype of the dense model and of the candidate."""
        assert self.candidate is not None
        assert self.pair.dense is not None
        same = "that of the dense model" if self.other_vocabulary is None else "its own"
        return {
            "dense": self.origin.identify(self.pair.dense),
            "candidate": {**self.candidate.identify(self.pair.pruned), "tokenizer": same},
        }

    @property
    def pair(self) -> ModelPair:
        """Both models.

        Raises:
            RuntimeError: before `load`.
        """
        if self._pair is None:
            raise RuntimeError("Expected `load` to be called before the models are used.")
        return self._pair

    def load(self, pruned_folder: str | Path | None = None) -> None:
        """Read the weights, also of the dense model if the run keeps one; once.

        Args:
            pruned_folder: a pruned model to use as the model under test. None uses the dense
                weights, which are then pruned in place.
        """
        if self._pair is not None:
            return
        removed: Sequence[int] = ()
        kept: Mapping[str, Sequence[int]] = {}
        place = None if self.resident else self._place
        if self.reference and self._dense is None and place is not None:
            self._dense = self.origin.read(place)  # first, as the other may rest on it
        if self.candidate is not None:
            pruned, removed = self.candidate.read(place), self.removed_blocks
            kept = self.kept_experts
            pruned.requires_grad_(False)
        elif pruned_folder is not None:
            folder = Origin(
                str(pruned_folder), None, self._numerics, self._trust_remote_code, False
            )
            pruned, removed = folder.read(place), folder.removed.blocks
            kept = folder.removed.kept_experts
        elif self._dense is not None and self.resident:
            pruned = self._copy(self._dense).requires_grad_(True)
        else:
            pruned = self.origin.read(place)
        self._pair = ModelPair(
            pruned, None, self.tokenizer, removed, self.other_tokenizer, kept_experts=kept
        )
        if not self.reference:
            return
        if self._dense is None:
            # Where both are still equal, copying is faster than reading again.
            equal = self.candidate is None and pruned_folder is None
            self._dense = self._copy(pruned) if equal else self.origin.read()
        self._pair.dense = self._dense.requires_grad_(False)
        if self.shares and self._outside is None:
            self._outside = outside_sums(self._dense)

    @property
    def shares(self) -> bool:
        """True if what is outside the blocks is one memory in both models, where it is equal."""
        return self.resident and not self.trains and self.pair.dense is not None

    def check_shared(self) -> None:
        """Refuse a dense model that was changed together with the pruned one.

        Raises:
            InputError: saying how to change the pruned one alone.
        """
        if self._outside is None or not self.shares:
            return
        assert self.pair.dense is not None
        if outside_sums(self.pair.dense) != self._outside:
            raise InputError(
                "Expected a dense model as it was read, but embeddings, the last norm or the head "
                "were edited in place: both models have them in one memory. Give the pruned model "
                "a new tensor: `weight.data = changed`."
            )

    def share(self) -> None:
        """Let what is outside the blocks be one memory in both models, where it is equal."""
        if self.shares:
            assert self.pair.dense is not None
            share_outside(self.pair.dense, self.pair.pruned)

    def _copy(self, model: PreTrainedModel) -> PreTrainedModel:
        """Copy a model; without training, what is outside the blocks stays one memory."""
        return copy.deepcopy(model) if self.trains else copy_sharing(model)

    def take_reference(self) -> None:
        """Let the dense model of `pair` be the one to copy in the next `load`."""
        self._dense = self.pair.dense

    def discard_pruned(self) -> None:
        """Forget the pruned model. The next `load` copies the dense model, or reads it again."""
        self._pair = None

    def recipe(self) -> dict[str, Any]:
        """Plain data that identifies the dense model and the numerics of its activations."""
        identity = {
            "source": self.source,
            "version": self.origin.version,
            "full": self.origin.all_weights,
        }
        return {**identity, **self._numerics}


def _method(quantized: Any) -> str:
    """Return the name of a quantisation; config.json has it as a mapping or as an object."""
    own = quantized if isinstance(quantized, dict) else vars(quantized)
    method = own.get("quant_method", "unknown")
    return str(getattr(method, "value", method))
