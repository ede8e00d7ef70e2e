"""Base class of pruning methods. Hooks, loops and collectives belong to `prunelit.pruning`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from torch import nn
from transformers import PreTrainedModel

from prunelit.activations import Probe
from prunelit.arguments import Checked
from prunelit.errors import InputError
from prunelit.models.architecture import check_plain
from prunelit.models.replay import Stream
from prunelit.models.surgery import check_whole
from prunelit.models.variation import Variation

__all__ = ["Probe", "Pruner"]

_Self = TypeVar("_Self", bound="Pruner")


class Pruner(Checked, ABC):
    """A pruning method.

    Store every constructor argument as an attribute of the same name: prunelit reads them to save
    and compare recipes.

    Attributes:
        sparsifies: True if a weight that becomes 0 is removed and must stay 0 in training.
        shrinks: True if whole parts become 0, so that the pruned model can do without them.
        takes: kinds of parts that a method which shrinks takes out, such as neurons.
        by_block: True if blocks may lose different numbers of heads and neurons, so that no stock
            class describes what is left.
        drops_blocks: True if whole blocks become 0, which they stay until they are taken out.
        drops_sublayers: True if whole sublayers or blocks become 0.
        drops_experts: True if whole experts become 0, which routers choose until they
            are taken out.
        measure: see `settle`.
        tokens: number of tokens of the calibration text at which outputs are compared, spread
            evenly; None compares all.
        held_out: share of the calibration sequences that only the comparison of outputs reads, so
            that nothing was fitted to them; 0 compares outputs at the text that all else reads.
        replays: True if the method runs each block itself, see `prune_streams`. The text then
            passes the model one sequence at a time.
        narrows_stream: True if channels of the residual stream become 0, so that the hidden states
            of the pruned model have fewer numbers.
        amounts: names of the options that `look` and its probes do not depend on, such as the
            ratio. What they find is then kept on disk, and a run that differs in these options
            alone does not look again. None: nothing is kept.
        settled: names of the options that the first of `alternatives` do not depend on; what was
            measured of them is then kept on disk too.
        timed: names of the options that `times` depends on; nothing measures no times.
        seconds: what `times` gave, before the first of `alternatives`.
        expert_tokens: an expert of a mixture that reads fewer calibration tokens than this gets the
            statistics of all experts of its block together; at least 1.

    Example:
        >>> import torch
        >>> from prunelit.pruners import Pruner
        >>> class Head(Pruner):
        ...     def watch(self, block):
        ...         return {}  # no statistics are needed
        ...     def prune_block(self, block, probes):
        ...         block[0].weight[0] = 0
        >>> block = torch.nn.Sequential(torch.nn.Linear(2, 2)).requires_grad_(False)
        >>> Head().prune_block(block, {})
        >>> block[0].weight[0]
        tensor([0., 0.])
    """

    sparsifies = True
    shrinks = False
    takes: Sequence[str] = ()
    by_block = False
    drops_blocks = False
    drops_sublayers = False
    drops_experts = False
    measure: Literal["kl", "loss"] = "kl"
    tokens: int | None = None
    held_out: float = 0.0
    replays = False
    narrows_stream = False
    amounts: Sequence[str] = ()
    settled: Sequence[str] = ()
    timed: Sequence[str] = ()
    seconds: Sequence[float] = ()
    expert_tokens = 32

    @property
    def steps(self) -> Sequence["Pruner"]:
        """The methods that run one after another: this one; those of a `Sequence`."""
        return [self]

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that this method cannot prune; called before any heavy work.

        A method with checks of its own calls `super().check(model)` first. The model of a dry run
        has no values: its structure is what can be checked.

        Raises:
            InputError: names the option that does not fit, or the part that the model lacks.
        """
        check_plain(model)
        if self.shrinks:
            check_whole(model)

    def left_fields(self, model: PreTrainedModel) -> Sequence[dict[str, int]]:
        """Give the fields of the configuration that this method may leave, for a `Sequence`.

        What each method leaves alone may be taken by the configuration, and not both together.

        Args:
            model: with all its parts; may have no values.

        Returns:
            New values of fields by name, one for each outcome; one without any for most methods.
        """
        return [{}]

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        """Give the probes for a first pass over the whole model; `decide` gets them filled.

        Most methods need no such pass and give nothing. A method that needs one writes a generator:
        the driver asks for the probes of a block when the block is on its device. The driver also
        calls it once before any heavy work.

        Args:
            model: in evaluation mode, gradients off; must not be edited.

        Returns:
            For each block, in order, its probes by submodule name; or nothing.
        """
        return ()

    def kept(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        """Give probes like those of `look` that are large, to count their memory.

        Args:
            model: may have no values.

        Returns:
            For each block, its probes; nothing for most methods, which keep a few numbers a block.
        """
        return ()

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        """Take decisions about the whole model, before the first block is pruned.

        Args:
            model: in evaluation mode, gradients off; it may be edited in place. A block that waits
                elsewhere is read inside `with whole(block)`, see `prunelit.pruners.whole`.
            probes: one dict for each block, the probes of `look`, filled with all tokens of all
                ranks; empty if `look` gave nothing.

        Returns:
            True to look and decide once more, at the model as it is now.
        """
        return False

    def measured(self, model: PreTrainedModel) -> tuple[int, int]:
        """Say how often the output of the model is measured, and for how many variations in all.

        Args:
            model: may have no values: only its structure is read.

        Returns:
            (0, 0) for most methods; otherwise the driver calls `alternatives`.
        """
        return 0, 0

    def times(self, model: PreTrainedModel) -> list[float]:
        """Measure times on this machine, seconds; they are kept on disk under its name.

        The driver calls it before `alternatives` if there are names in `timed`.

        Args:
            model: see `alternatives`.
        """
        return []

    def alternatives(self, model: PreTrainedModel) -> Sequence[Variation]:
        """Give variations with which the driver measures the output; `settle` gets what it finds.

        Args:
            model: in evaluation mode; must not be edited.

        Returns:
            Changes of one block each; nothing to measure nothing.
        """
        return ()

    def settle(self, model: PreTrainedModel, changes: Sequence[float]) -> bool:
        """Take decisions by what was measured; may edit the model as `decide` may.

        Args:
            model: see `decide`.
            changes: for each of `alternatives`, what the attribute `measure` names: `kl`, the KL
                divergence of the model with it from the model before this method; or `loss`, the
                loss of the model with it. Means over `tokens` of the text of all ranks, in nats.

        Returns:
            True to ask for alternatives and measure once more, at the model as it is now.
        """
        return False

    def told(self) -> dict[str, Any]:
        """Give what `settle` found, for `compared` in `pruning.json`: numbers and lists by name."""
        return {}

    def scale(self: _Self, fraction: float) -> _Self:
        """Copy the method so that it removes only a fraction, for an earlier round.

        Args:
            fraction: share of the final removal, in (0, 1].

        Raises:
            InputError: if the method cannot remove a fraction.
        """
        raise InputError(
            f"{type(self).__name__} cannot prune in rounds: set one round, or write its method "
            "`scale`."
        )

    @abstractmethod
    def watch(self, block: nn.Module) -> dict[str, Probe]:
        """Give the probes of one block, by submodule name.

        Probes of the same kind that read the same input tensor share one statistic. The driver also
        calls this before any heavy work, when the weights may be elsewhere: read their shapes only.

        Args:
            block: a decoder block.

        Raises:
            InputError: if this method cannot prune the block.
        """

    @abstractmethod
    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Edit the weights of `block` in place.

        Args:
            block: a decoder block, on its own device; gradients are off.
            probes: the probes of `watch`, filled with all tokens of all ranks.
        """

    def prune_streams(
        self,
        block: nn.Module,
        probes: Mapping[str, Probe],
        streams: Sequence[Stream],
        index: int,
    ) -> None:
        """Edit the weights of `block` in place, with the text at its input; a method may run it.

        By default the same as `prune_block`, which most methods write. A method that `replays`
        writes this one. All ranks call it together, and must leave the same weights.

        Args:
            block: a decoder block, on its own device; gradients are off.
            probes: the probes of `watch`, filled with all tokens of all ranks.
            streams: the sequences of this rank, if the method `replays`. Rank r of n has the
                sequences r, r + n, r + 2 n and so on of the text.
            index: place of the block in the model.
        """
        self.prune_block(block, probes)

    def replayed(self, sequences: int) -> int:
        """Count the forward passes of one sequence that `prune_streams` makes; backward counts two.

        Args:
            sequences: number of those of the text.
        """
        return 0

    def finish(self, model: PreTrainedModel) -> None:
        """Finish the whole model; called once, after the last block."""
