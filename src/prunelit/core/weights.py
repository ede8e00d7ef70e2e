"""The weights of a run: the model that is pruned, and the dense model it is compared with."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunelit.models.architecture import check_unembedding
from prunelit.models.loading import (
    DType,
    check_vocabulary,
    load_config,
    load_pretrained,
    load_tokenizer,
    pin_revision,
    read_removed,
    source_version,
)
from prunelit.models.model_pair import ModelPair
from prunelit.pruning.lora import Adapters, LoRA


class Weights:
    """Reads both models of a run, each at most once.

    It is a plain object. A Lightning module that holds it therefore does not register the dense
    model as a submodule.

    Args:
        source: of the model, see `prunelit.load_pretrained`.
        dtype: of the weights; `auto` is the dtype they are stored in.
        attn_implementation: as in transformers; None is its default.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.
        reference: keep the dense model for comparison.
        full_hash: identify the weights of a folder by all of them; False takes a sample.
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
    ) -> None:
        self.source = source
        self.reference = reference
        self.full_hash = full_hash
        self.adapters: Adapters | None = None
        self._numerics: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
        }
        self._code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        self._revision = revision
        self._pair: ModelPair | None = None
        self._dense: PreTrainedModel | None = None

    @cached_property
    def _commit(self) -> str | None:
        """Commit of a model on the hub, resolved once: the branch may move on between two reads."""
        return pin_revision(self.source, self._revision)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model; reads no weights."""
        tokenizer = load_tokenizer(self.source, revision=self._commit, **self._code)
        config = self.load_config().get_text_config(decoder=True)
        check_vocabulary(tokenizer, config.vocab_size, self.source)
        return tokenizer

    def load_config(self) -> PreTrainedConfig:
        """Read the configuration of the model, without its weights."""
        return load_config(self.source, revision=self._commit, **self._code)

    @property
    def pair(self) -> ModelPair:
        """Both models.

        Raises:
            RuntimeError: before `load`.
        """
        if self._pair is None:
            raise RuntimeError("Expected `load` to be called before the models are used.")
        return self._pair

    def load(self, pruned_folder: str | Path | None = None, reference: bool = True) -> None:
        """Read the weights; does nothing if they are loaded.

        Args:
            pruned_folder: a pruned model to use as the model under test. None uses the dense
                weights, which are then pruned in place.
            reference: read the dense model too, if the run keeps one; see `load_reference`.
        """
        if self._pair is not None:
            return
        if pruned_folder is not None:
            folder = str(pruned_folder)
            pruned, removed = self._read(folder, revision=None), read_removed(folder).blocks
            check_unembedding(pruned)
        elif self._dense is not None:
            pruned, removed = copy.deepcopy(self._dense).requires_grad_(True), []
        else:
            pruned, removed = self._read(self.source, revision=self._commit), []
            check_unembedding(pruned)
        self._pair = ModelPair(pruned, None, self.tokenizer, removed)
        if reference:
            if pruned_folder is None and self.reference and self._dense is None:
                # Both are still equal: copying is faster than reading again.
                self._dense = copy.deepcopy(pruned)
            self.load_reference()

    def load_reference(self) -> None:
        """Read the dense model if the run keeps one and has not read it yet."""
        if self.reference:
            if self._dense is None:
                self._dense = self._read(self.source, revision=self._commit)
            self.pair.dense = self._dense.requires_grad_(False)

    def discard_pruned(self) -> None:
        """Forget the pruned model. The next `load` copies the dense model instead of reading it."""
        self._pair = None

    def attach_adapters(self, lora: LoRA) -> None:
        """Add LoRA adapters to the pruned model and freeze its own weights."""
        self.adapters = Adapters(self.pair.pruned, lora)

    def merge_adapters(self) -> None:
        """Merge LoRA adapters into the weights, removed ones too; does nothing without adapters."""
        if self.adapters is not None:
            self.adapters.merge()
            self.adapters = None

    @cached_property
    def _version(self) -> dict[str, Any]:
        """Content of the source; computed once, as the weights are read once."""
        return source_version(self.source, revision=self._commit, **self._code)

    @cached_property
    def _all_weights(self) -> dict[str, Any] | None:
        if not self.full_hash:
            return None
        return source_version(self.source, revision=self._commit, **self._code, full=True)

    def recipe(self) -> dict[str, Any]:
        """Plain data that identifies the dense model and the numerics of its activations."""
        identity = {"source": self.source, "version": self._version, "full": self._all_weights}
        return {**identity, **self._numerics}

    def _read(self, source: str, revision: str | None) -> PreTrainedModel:
        return load_pretrained(source, revision=revision, **self._numerics, **self._code)[0]
