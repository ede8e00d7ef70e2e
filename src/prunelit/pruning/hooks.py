"""Feeds the probes of a block while it runs."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunelit.errors import InputError
from prunelit.models.residual import residual_steps
from prunelit.statistics import Probe


@dataclass
class Inputs:
    """What a trial run told of the inputs of a block's probes."""

    followers: dict[str, str] = field(default_factory=dict)  # of a leader that reads the same
    calls: Counter[str] = field(default_factory=Counter)  # how often each module ran


@contextmanager
def noting_inputs(block: nn.Module, probes: dict[str, Probe]) -> Iterator[Inputs]:
    """Within it the block is run once, on anything."""
    inputs = Inputs()
    seen: list[tuple[Tensor, str]] = []  # holding the tensors keeps their identities unique

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.calls[name] += 1
            leader = next((other for tensor, other in seen if tensor is args[0]), None)
            if leader is None:
                seen.append((args[0], name))
            elif type(probes[leader].statistic) is type(probes[name].statistic):
                inputs.followers[name] = leader

        return hook

    handles = [
        block.get_submodule(name).register_forward_pre_hook(note(name))
        for name, probe in probes.items()
        if probe.at == "input"
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


class Feed:
    """Gives the probes of one block all tokens, batch by batch.

    Args:
        block: a decoder block.
        probes: what to observe there.
        inputs: of a trial run. Probes that read the same tensor then share one statistic, and
            `read` is free to leave out what comes after the last input that is read.
    """

    def __init__(
        self, block: nn.Module, probes: dict[str, Probe], inputs: Inputs | None = None
    ) -> None:
        inputs, early = inputs or Inputs(), inputs is not None
        for follower, leader in inputs.followers.items():
            probes[follower].statistic = probes[leader].statistic
        leaders = {name: probe for name, probe in probes.items() if name not in inputs.followers}
        self._block = block
        self._inside = {name: probe for name, probe in leaders.items() if probe.at != "residual"}
        self._around = {name: probe for name, probe in leaders.items() if probe.at == "residual"}
        early = early and all(probe.at == "input" for probe in leaders.values())
        self._last = sum(inputs.calls[name] for name in leaders) if early else None
        self._parallel: bool | None = None  # what the first batch told of this block

    def read(self, run: Callable[[], Tensor], hidden: Tensor, tokens: Tensor) -> Tensor | None:
        """Run the block on one batch.

        Args:
            run: runs it, and gives its output.
            hidden: (B, T, D), its input.
            tokens: (B, T) bool, False at padding.

        Returns:
            (B, T, D), its output; None where it was not run to its end.
        """
        try:
            with self._hooked(tokens):
                output = run()
        except _AllRead:
            return None
        if self._around:
            real, hidden = tokens.to(output.device), hidden.to(output.device)
            steps, self._parallel = residual_steps(
                self._block, run, hidden, output, self._around, self._parallel
            )
            for name, (before, after) in steps.items():
                with torch.autocast(output.device.type, enabled=False):
                    self._around[name].statistic.update(before[real], after[real])
        return output

    def all_reduce_(self) -> None:
        """Sum the statistics over ranks, in place."""
        for probe in (self._inside | self._around).values():
            probe.statistic.all_reduce_()

    @contextmanager
    def _hooked(self, tokens: Tensor) -> Iterator[None]:
        whole, reads = bool(tokens.all()), 0

        def feed(name: str, probe: Probe) -> Callable[..., None]:
            def hook(_module: nn.Module, args: Any, output: Any = None) -> None:
                nonlocal reads
                x = args[0] if probe.at == "input" else output
                x = x if isinstance(x, Tensor) else x[0]
                if x.numel() != tokens.numel() * x.shape[-1]:
                    raise InputError(
                        f"{name!r} reads {tuple(x.shape)} where the batch has "
                        f"{tuple(tokens.shape)} tokens, so padding cannot be told apart: "
                        "exclude it."
                    )
                x = x.reshape(-1, x.shape[-1])
                # A caller's mixed precision is for the forward passes.
                with torch.autocast(x.device.type, enabled=False):
                    probe.statistic.update(x if whole else x[tokens.reshape(-1).to(x.device)])
                reads += 1
                if reads == self._last:
                    raise _AllRead

            return hook

        def attach(name: str, probe: Probe) -> RemovableHandle:
            module = self._block.get_submodule(name)
            if probe.at == "input":
                return module.register_forward_pre_hook(feed(name, probe))
            return module.register_forward_hook(feed(name, probe))

        handles = [attach(name, probe) for name, probe in self._inside.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _AllRead(Exception):
    """Ends the run of a block whose probes have read all that they will."""
