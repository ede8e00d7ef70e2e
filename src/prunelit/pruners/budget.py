"""Choose heads, neurons and blocks together, so that a model fits a size or a speed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError, check_positive, check_whole
from prunelit.models.architecture import check_length, decoder_blocks
from prunelit.models.experts import find_experts
from prunelit.models.fewer_experts import alive_experts, keep_experts_
from prunelit.models.heads import find_heads, head_changes
from prunelit.models.inference.speed import WRITTEN
from prunelit.models.inference.step_times import time_blocks
from prunelit.models.neurons import find_neurons, find_width_changes
from prunelit.models.parts import drop_, sublayers
from prunelit.models.removal import Parts, find_removal
from prunelit.models.stores import check_here, whole
from prunelit.models.variation import Variation
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.expert_drop import ExpertDrop
from prunelit.pruners.heads import Heads
from prunelit.pruners.model_choice import Choice, choose_model
from prunelit.pruners.neuron import Neuron
from prunelit.pruners.part_sizes import (
    Sizes,
    as_sizes,
    count_in_experts,
    count_in_heads,
    count_in_neurons,
    count_outside,
)


class Budget(Pruner):
    """Make a model as small as asked by what costs least: fewer heads, fewer neurons, fewer blocks.

    Each block is measured with each option in its place, in the dense model: the KL divergence of
    the next token from the dense model, as Puzzle scores its library of blocks (Bercovich et al.
    2025, arXiv:2411.19146, section 4.2 of the version of ICML). The KL divergence of a model is
    foretold as the sum over its blocks, and heads and neurons of one block as the sum of both. Of
    all models that fit, the one that costs least is taken. What was foretold and what was got are
    printed. What was measured is kept on disk, so that another size needs no new measurement.

    Heads and neurons are the same number in every block, so that the folder is that of a stock
    class. With `uniform` False each block has its own numbers: the sum is less, and transformers
    loads the folder after `import prunelit`.

    With `tokens_per_second` the size is time: that of a step of writing on this machine, measured
    for each width and for what is outside of the blocks, and added up. Times are kept on disk under
    the name of the machine.

    In a mixture, `experts` adds the number of experts to the choice, the same in every block. The
    experts that go are those of `ExpertDrop`, and a block without them is measured with the router
    of the smaller model. Of a model that loses experts, the divergence that was got is not known
    before they are taken out, so it is not printed.

    Heads and neurons that go are those of `Heads` and `Neuron`, with their defaults. What these
    read of each block is kept: D x D numbers a block for heads of the width D in all.

    Args:
        parameters: share of the parameters of the model that may be left, with those outside of
            the blocks, in (0, 1).
        bytes: number of bytes of the parameters instead of `parameters`.
        heads: numbers of groups of heads to remove in each block; nothing leaves all heads.
        neurons: shares of the neurons to remove in each MLP; nothing leaves all neurons.
        blocks: the largest number of blocks to drop; None is a quarter of them.
        tokens: number of tokens at which outputs are compared, spread evenly; None compares all.
            The other tokens are context.
        held_out: share of the calibration sequences, the last ones, that only this comparison
            reads. Heads and neurons are chosen, and columns fitted, on the others: on the text that
            they were fitted to, options look better than they are. 0 reads all of it for both.
        uniform: leave the same number of heads and of neurons in every block; False lets each block
            have its own.
        tokens_per_second: tokens that the model is to write in a second, all sequences together,
            instead of `parameters`. It needs a whole model on one device, and one process.
        cached: tokens of a sequence before those that are timed.
        batch_size: number of sequences that are written at once.
        experts: numbers of experts to remove in each mixture; nothing leaves all experts. It needs
            `uniform`, and no speed: a token computes as many experts as before.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import Budget
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> before = model.num_parameters()
        >>> report = prune(model, Budget(0.8), torch.arange(64).view(4, 16))
        >>> model.num_parameters() <= 0.8 * before
        True
    """

    shrinks = True
    takes = ("heads", "neurons")
    drops_blocks = True
    drops_sublayers = True
    settled = ("parameters", "bytes", "uniform", "tokens_per_second", "cached", "batch_size")

    def __init__(
        self,
        parameters: float = 0.8,
        bytes: int | None = None,
        heads: Sequence[int] = (1,),
        neurons: Sequence[float] = (0.125, 0.25, 0.375, 0.5),
        blocks: int | None = None,
        tokens: int | None = 128,
        uniform: bool = True,
        tokens_per_second: float | None = None,
        cached: int = 128,
        batch_size: int = 1,
        experts: Sequence[int] = (),
        held_out: float = 0.25,
    ) -> None:
        if not 0 < parameters < 1:
            raise InputError(f"Expected `parameters` in (0, 1) but got {parameters}.")
        if (blocks is not None and blocks < 0) or (bytes is not None and bytes < 1):
            raise InputError(
                f"Expected `blocks` of at least 0 and `bytes` of at least 1 but got {blocks} and "
                f"{bytes}."
            )
        if not 0 <= held_out < 1:
            raise InputError(f"Expected `held_out` in [0, 1) but got {held_out}.")
        if tokens is not None:
            check_whole("tokens", tokens, 1)
        check_whole("cached", cached, 1)
        check_whole("batch_size", batch_size, 1)
        if tokens_per_second is not None:
            check_positive("tokens_per_second", tokens_per_second)
            if bytes is not None:
                raise InputError("Expected `bytes` or `tokens_per_second` but got both.")
        if experts and (not uniform or tokens_per_second is not None):
            raise InputError(
                "Expected `uniform` true and no `tokens_per_second` with `experts`: all mixtures "
                "have one number of experts, and a token computes as many of them as before."
            )
        if any(count < 1 for count in (*heads, *experts)) or any(
            not 0 < share < 1 for share in neurons
        ):
            raise InputError(
                "Expected numbers of at least 1 in `heads` and `experts` and shares in (0, 1) in "
                f"`neurons` but got {list(heads)}, {list(experts)} and {list(neurons)}."
            )
        self.parameters = parameters
        self.bytes = bytes
        self.heads = list(heads)
        self.neurons = list(neurons)
        self.blocks = blocks
        self.tokens = tokens
        self.held_out = float(held_out)
        self.uniform = uniform
        self.tokens_per_second = tokens_per_second
        self.cached = cached
        self.batch_size = batch_size
        self.experts = list(experts)
        self.drops_experts = bool(experts)
        self.by_block = not uniform
        self.timed = () if tokens_per_second is None else ("cached", "batch_size")
        # The first option of both kinds leaves a block as it is.
        self._heads: list[Heads | None] = [None, *(Heads(count=count) for count in self.heads)]
        self._neurons: list[Neuron | None] = [None, *(Neuron(share) for share in self.neurons)]
        self._experts = [None, *(ExpertDrop(count=count) for count in self.experts)]
        self._probes: list[dict[str, Probe]] = []
        self._chosen: Choice | None = None
        self._got: float | None = None
        self._speeds: dict[str, float] = {}  # tokens a second

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        for option in self._options():
            option.check(model)
        blocks = decoder_blocks(model)[1]
        if self._most_blocks(model) >= len(blocks):
            raise InputError(
                f"Expected `blocks` below the {len(blocks)} blocks of the model but got "
                f"{self.blocks}."
            )
        sizes = {sum(weight.numel() for weight in block.parameters()) for block in blocks}
        if len(sizes) > 1:
            raise InputError(
                f"Expected blocks of one size but those of {type(model).__name__} have "
                f"{min(sizes):,} to {max(sizes):,} parameters: use `Sequence` with the methods and "
                "numbers of your choice."
            )
        if self.tokens_per_second is not None:
            self._check_timed(model)
            return
        sizes = self._counts(model)
        if sizes.most >= (whole := sum(weight.numel() for weight in model.parameters())):
            raise InputError(
                f"Expected `bytes` below the {whole * model.dtype.itemsize:,} of the model in "
                f"{str(model.dtype).removeprefix('torch.')} but got {self.bytes:,}: lower the "
                "target."
            )
        if (least := self._least(model, sizes)) > sizes.most:
            raise InputError(
                f"Expected options that leave at most {sizes.most:,} parameters but the smallest "
                f"model of them has {least:,}: remove more by `heads`, `neurons` or `blocks`, or "
                "raise the target."
            )

    def left_fields(self, model: PreTrainedModel) -> list[dict[str, int]]:
        return [{}, *(own for one in self._heads if one for own in one.left_fields(model))]

    def _check_timed(self, model: PreTrainedModel) -> None:
        """Refuse a model whose time on one device says nothing, or whose steps have none."""
        what = "The time of a step of writing"
        check_here(model, what)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise InputError(
                f"{what} is measured in one process but there are {dist.get_world_size()}, which "
                "would measure different times: run on one device, or set a number of parameters."
            )
        check_length(model.config, self.cached + WRITTEN, "a sequence of `cached` and what follows")

    def _least(self, model: PreTrainedModel, sizes: Sizes) -> int:
        """Give the size of the smallest model of all options."""
        left = len(decoder_blocks(model)[1]) - self._most_blocks(model)
        return sizes.outside + left * sizes.least()

    def look(self, model: PreTrainedModel) -> Iterator[dict[str, Probe]]:
        kinds = [options[1] for options in (self._heads, self._neurons) if len(options) > 1]
        scored = iter(option.look(model) if (option := self._experts[-1]) else ())
        for block in decoder_blocks(model)[1]:
            yield {
                name: probe for kind in kinds if kind for name, probe in kind.watch(block).items()
            } | next(scored, {})

    def kept(self, model: PreTrainedModel) -> Iterator[dict[str, Probe]]:
        return self.look(model)

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self._probes, self._chosen, self._speeds = probes, None, {}
        names = [find_experts(block) for block in decoder_blocks(model)[1]]
        for option in self._experts[1:]:
            assert option is not None
            scored = zip(names, probes, strict=True)
            option.decide(model, [{name: own[name] for name in mine} for mine, own in scored])
        return False

    def measured(self, model: PreTrainedModel) -> tuple[int, int]:
        return 2, len(self._variations(model)) * len(decoder_blocks(model)[1]) + 1

    def times(self, model: PreTrainedModel) -> list[float]:
        check_here(model, "The time of a step of writing")
        groups = next((own.groups for own in find_heads(model) if own), 0) if self.heads else 0
        changes = [head_changes(model, groups - count) for count in self.heads]
        widths = {own.width for own in find_neurons(decoder_blocks(model)[1][0])}
        for option in self._neurons[1:]:
            assert option is not None
            narrow = {width: width - option.removed(width) for width in widths}
            changes.append(find_width_changes(model, narrow))
        return time_blocks(model, changes, self.cached, self.batch_size)

    def alternatives(self, model: PreTrainedModel) -> Sequence[Variation]:
        if self.tokens_per_second is not None and self._chosen is None:
            sizes = self._sizes(model)
            if (least := self._least(model, sizes)) > sizes.most:
                fastest = self.batch_size / (least * sizes.unit)
                raise InputError(
                    f"Expected options that write {self.tokens_per_second:g} tokens a second but "
                    f"the fastest model of them writes {fastest:.3g} on this machine: remove more "
                    "by `heads`, `neurons` or `blocks`, or lower `tokens_per_second`."
                )
        if self._chosen is not None:  # the model that was chosen, as it is
            return [Variation(0, lambda block: None)]
        return [
            Variation(index, None if option is None else partial(self._apply, index, option))
            for index in range(len(decoder_blocks(model)[1]))
            for option in self._variations(model)
        ]

    def settle(self, model: PreTrainedModel, changes: Sequence[float]) -> bool:
        if self._chosen is not None:
            self._got = changes[0]
            rank_zero_info(
                f"Budget: the KL divergence was foretold as {self._chosen.kl:.4g} nats a token; it "
                f"is {self._got:.4g}."
            )
            return False
        blocks, width = decoder_blocks(model)[1], len(self._variations(model))
        costs = [changes[start : start + width] for start in range(0, len(changes), width)]
        sizes, most = self._sizes(model), self._most_blocks(model)
        choice = self._chosen = choose_model(
            costs, sizes, self._counts(model), most, uniform=self.uniform
        )
        if self.tokens_per_second is not None:
            dense = sizes.outside + len(blocks) * sizes.block
            self._speeds = {
                key: self.batch_size / (size * sizes.unit)
                for key, size in (("speed_dense", dense), ("speed_foretold", choice.size))
            }
        gone = [index for index, own in enumerate(choice.options) if own is None]
        find_removal(model, Parts(gone))  # refuses what could not be written
        for index, (block, own) in enumerate(zip(blocks, choice.options, strict=True)):
            if own is None:
                drop_(block, *sublayers(block))
                continue
            with whole(block, edited=True):
                for option in (
                    self._heads[own[0]],
                    self._neurons[own[1]],
                    self._experts[choice.experts],
                ):
                    if option is not None:
                        option.prune_block(block, self._probes[index])
        rank_zero_info(self._tell(model, choice))
        return not choice.experts  # routers choose experts of zeros until they are taken out

    def told(self) -> dict[str, Any]:
        assert self._chosen is not None
        found: dict[str, Any] = {"kl_foretold": self._chosen.kl, "kl": self._got}
        return found | self._speeds

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `settle` made the blocks smaller."""

    def _options(self) -> list[Pruner]:
        every = (*self._heads, *self._neurons, *self._experts)
        return [one for one in every if one is not None]

    def _variations(self, model: PreTrainedModel) -> list[Pruner | None]:
        """List what is measured in each block; None is the model without the block."""
        return [*self._options(), *([None] if self._most_blocks(model) else [])]

    def _most_blocks(self, model: PreTrainedModel) -> int:
        return len(decoder_blocks(model)[1]) // 4 if self.blocks is None else self.blocks

    def _apply(self, index: int, option: Pruner, block: nn.Module) -> None:
        """Make a block smaller that vanishes after its measurement."""
        option.prune_block(block, self._probes[index])
        if isinstance(option, ExpertDrop):
            for name, experts in find_experts(block).items():
                alive = alive_experts(experts)
                keep_experts_(block, name, alive.nonzero().flatten(), len(alive))

    def _sizes(self, model: PreTrainedModel) -> Sizes:
        """Give the sizes that must fit: times if there is a speed to reach, else parameters."""
        if self.tokens_per_second is None:
            return self._counts(model)
        return as_sizes(self.seconds, len(self.heads), self.batch_size / self.tokens_per_second)

    def _counts(self, model: PreTrainedModel) -> Sizes:
        """Count parameters."""
        first = decoder_blocks(model)[1][0]
        return Sizes(
            count_outside(model),
            sum(weight.numel() for weight in first.parameters()),
            [0, *(count_in_heads(model, count) for count in self.heads)],
            [0 if one is None else count_in_neurons(first, one.removed) for one in self._neurons],
            self._target(model),
            experts=[0, *(count_in_experts(first, count) for count in self.experts)],
            both=[
                [
                    0 if one is None else count_in_neurons(first, one.removed, count)
                    for count in (0, *self.experts)
                ]
                for one in self._neurons
            ],
        )

    def _target(self, model: PreTrainedModel) -> int:
        """Largest number of parameters that may be left."""
        if self.bytes is not None:
            return self.bytes // model.dtype.itemsize
        return int(self.parameters * sum(weight.numel() for weight in model.parameters()))

    def _tell(self, model: PreTrainedModel, choice: Choice) -> str:
        before = sum(weight.numel() for weight in model.parameters())
        kept = [own for own in choice.options if own is not None]
        parts = [f"{len(kept)} of {len(choice.options)} blocks"]
        removed = [[0, *self.heads][heads] for heads, _ in kept]
        if any(removed):
            groups = next(found.groups for found in find_heads(model) if found is not None)
            parts.append(f"{_span(groups - own for own in removed)} of {groups} groups of heads")
        width = max((own.width for own in find_neurons(decoder_blocks(model)[1][0])), default=0)
        narrow = [option.removed(width) for _, n in kept if (option := self._neurons[n])]
        if narrow:
            narrow += [0] * (len(kept) - len(narrow))
            parts.append(f"{_span((1 - own / width for own in narrow), '.1%')} of the neurons")
        if count := [0, *self.experts][choice.experts]:
            parts.append(f"{count} experts of each mixture fewer")
        told = (
            f"Budget: {', '.join(parts)} are left, {choice.parameters:,} of {before:,} parameters "
            f"({choice.parameters / before:.1%})."
        )
        if self._speeds:
            told += (
                f" It writes {self._speeds['speed_foretold']:.3g} tokens a second and the dense "
                f"model {self._speeds['speed_dense']:.3g}, by the times of their parts on this "
                "machine."
            )
        return told


def _span(values: Iterable[float], form: str = "") -> str:
    """Write a number, or the smallest and the largest of several."""
    least, most = min(values := [*values]), max(values)
    return f"{least:{form}}" if least == most else f"{least:{form}} to {most:{form}}"
