"""Hooks that fill the probes of a block while it runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunelit.activations import Probe, sum_ranks_
from prunelit.errors import InputError
from prunelit.models.architecture import linear_modules
from prunelit.models.experts import ExpertMap, called_one_by_one
from prunelit.models.replay import Stream
from prunelit.models.residual import Structure, residual_steps


class Trial:
    """Find which probes of a block read the same tensor, and how often each module runs.

    Hooks are attached until `remove` is called. If the block runs more than once, the last run
    counts. Experts must compute what their maps do.

    Args:
        block: a decoder block.
        probes: the probes to place in it.

    Attributes:
        leaders: for each probe that reads the same tensor as an earlier one, the earlier one.
        calls: number of calls of each module in one run.
        inputs: shape of the last input of each module, and the tokens among which it read rows.
    """

    def __init__(self, block: nn.Module, probes: dict[str, Probe]) -> None:
        self.leaders: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.inputs: dict[str, tuple[torch.Size, int]] = {}
        self._kinds = {name: type(probe.statistic) for name, probe in probes.items()}
        self._seen: list[tuple[Tensor, str]] = []
        modules = watched_modules(block, probes)
        maps = [module for module in modules.values() if isinstance(module, ExpertMap)]
        self._called = ExitStack()
        self._called.enter_context(called_one_by_one(maps, checked=True))
        self._watched = [name for name, probe in probes.items() if probe.at == "input"]
        self._handles = [
            block.register_forward_pre_hook(self._begin),
            block.register_forward_hook(self._end),
        ]
        self._handles += [
            module.register_forward_pre_hook(partial(self._note, name))
            for name, module in modules.items()
            if probes[name].at == "input"
        ]

    def remove(self) -> None:
        """Detach the hooks."""
        for handle in self._handles:
            handle.remove()
        self._called.close()
        self._seen.clear()

    def find_unread(self) -> list[str]:
        """Find the modules whose input a probe waits for, and that the last run did not call."""
        return [name for name in self._watched if not self.calls[name]]

    def _begin(self, _module: nn.Module, _args: Any) -> None:
        self.leaders.clear()
        self.calls.clear()
        self._seen.clear()

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        _check_given(name, args)
        self.calls[name] += 1
        self.inputs[name] = (args[0].shape, rows_read(module, args[0], args))
        leader = next((other for tensor, other in self._seen if tensor is args[0]), None)
        if leader is None:
            # The tensors are kept until the block ends, so that their identities stay unique.
            self._seen.append((args[0], name))
        elif self._kinds[leader] is self._kinds[name]:
            self.leaders[name] = leader

    def _end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._seen.clear()


class Feed:
    """Give the probes of one block all tokens, batch by batch.

    Args:
        block: a decoder block.
        index: its place in the model.
        probes: the probes to fill.
        trial: a trial run of the same probes. If given, probes that read the same tensor share one
            statistic, and `observe` may stop the block after the last tensor that is read.

    Attributes:
        modules: those that the probes watch, by name.
    """

    def __init__(
        self, block: nn.Module, index: int, probes: dict[str, Probe], trial: Trial | None = None
    ) -> None:
        leaders = {} if trial is None else trial.leaders
        for name, leader in leaders.items():
            probes[name].statistic = probes[leader].statistic
        distinct = {name: probe for name, probe in probes.items() if name not in leaders}
        self._block = block
        self._index = index
        self._inside = {name: probe for name, probe in distinct.items() if probe.at != "residual"}
        self._around = {name: probe for name, probe in distinct.items() if probe.at == "residual"}
        self.modules = watched_modules(block, probes)
        self._maps = [one for one in self.modules.values() if isinstance(one, ExpertMap)]
        self._last: int | None = None  # after so many reads the rest of the block is not needed
        if trial is not None and all(probe.at == "input" for probe in distinct.values()):
            self._last = sum(trial.calls[name] for name in distinct)
        self._reads = 0
        self._structure: Structure | None = None  # known after the first batch
        self._checked = trial is not None  # experts compute what their maps do

    def observe(self, stream: Stream) -> Tensor | None:
        """Run the block on one batch and update the statistics.

        Args:
            stream: the batch; it is not changed.

        Returns:
            (B, T, D), the output of the block; None if it was stopped before its end.
        """
        run = partial(stream.run, self._block, self._index)
        self._reads = 0
        # No mask where no token is padding: it would copy the activations.
        real = None if stream.tokens.all() else stream.tokens.reshape(-1)
        seen = {
            self.modules[name]: partial(_update_expert, probe, real)
            for name, probe in self._inside.items()
            if probe.at == "expert"
        }
        handles = [
            self._attach(name, probe, stream.tokens.shape, real)
            for name, probe in self._inside.items()
            if probe.at != "expert"
        ]
        try:
            with called_one_by_one(self._maps, seen, checked=not self._checked):
                output = run()
            self._checked = True
        except _AllReadError:
            return None
        finally:
            for handle in handles:
                handle.remove()
        if self._around:
            real, hidden = stream.tokens.to(output.device), stream.hidden.to(output.device)
            steps, self._structure = residual_steps(
                self._block, run, hidden, output, self._around, self._structure
            )
            for name, step in steps.items():
                before, after = map(stream.by_token, step)
                with torch.autocast(output.device.type, enabled=False):
                    self._around[name].statistic.update(before[real], after[real])
        return output

    def all_reduce_(self) -> None:
        """Sum the statistics, and the tokens that experts have read, over ranks, in place."""
        for probe in (self._inside | self._around).values():
            probe.statistic.all_reduce_()
        if self._maps:
            device = next(self._block.parameters()).device
            tokens = torch.tensor([p.tokens for p in self._inside.values()], device=device)
            sum_ranks_(tokens)
            for probe, number in zip(self._inside.values(), tokens.tolist(), strict=True):
                probe.tokens = number

    def _attach(
        self, name: str, probe: Probe, shape: torch.Size, real: Tensor | None
    ) -> RemovableHandle:
        module, hook = self.modules[name], partial(self._update, name, probe, shape, real)
        if probe.at == "input":
            return module.register_forward_pre_hook(hook)
        return module.register_forward_hook(hook)

    def _update(
        self,
        name: str,
        probe: Probe,
        shape: torch.Size,
        real: Tensor | None,
        module: nn.Module,
        args: Any,
        output: Any = None,
    ) -> None:
        if probe.at == "input":
            _check_given(name, args)
        x = args[0] if probe.at == "input" else output
        x = x if isinstance(x, Tensor) else x[0]
        # An expert reads some of the tokens.
        reached: Tensor | None = args[1] if isinstance(module, ExpertMap) else None
        check_rows(name, x.shape, rows_read(module, x, args), shape)
        x = x.reshape(-1, x.shape[-1])
        if real is not None:
            real = real.to(x.device)
            x = x[real if reached is None else real[reached]]
        probe.tokens += len(x)
        if len(x):
            # Mixed precision, if the caller asks for it, is for the forward passes only.
            with torch.autocast(x.device.type, enabled=False):
                probe.statistic.update(x)
        self._reads += 1
        if self._reads == self._last:
            raise _AllReadError


def _check_given(name: str, args: tuple[Any, ...]) -> None:
    if not args:
        raise InputError(
            f"{name!r} gets its input by keyword, so it cannot be observed: exclude it."
        )


def _update_expert(
    probe: Probe,
    real: Tensor | None,
    index: int,
    tokens: Tensor,
    shares: Tensor,
    outputs: Tensor,
) -> None:
    """Give a statistic what one expert put out, without padding."""
    if real is not None:
        kept = real.to(tokens.device)[tokens]
        shares, outputs = shares[kept], outputs[kept]
    if len(outputs):
        with torch.autocast(outputs.device.type, enabled=False):
            probe.statistic.update(index, shares, outputs)


def watched_modules(block: nn.Module, probes: Mapping[str, Probe]) -> dict[str, nn.Module]:
    """Find the modules of a block that probes watch, by name; fused experts have views."""
    maps = linear_modules(block)
    names = (name for name, probe in probes.items() if probe.at != "residual")
    return {name: maps.get(name) or block.get_submodule(name) for name in names}


def rows_read(module: nn.Module, x: Tensor, args: Sequence[Any]) -> int:
    """Count the tokens among which a module reads some rows; all but experts read each of them.

    Args:
        module: that is called.
        x: (..., I), its input or output.
        args: of the call.
    """
    return args[1].numel() if isinstance(module, ExpertMap) else x.numel() // x.shape[-1]


def check_rows(name: str, read: torch.Size, rows: int, tokens: torch.Size) -> None:
    """Refuse a tensor that was not chosen from one row for each token.

    Args:
        name: of the module that reads it.
        read: shape of the tensor.
        rows: see `rows_read`.
        tokens: shape of the batch, (B, T).

    Raises:
        InputError: giving both shapes.
    """
    if rows != tokens.numel():
        raise InputError(
            f"{name!r} reads a tensor of shape {tuple(read)} while the batch has {tuple(tokens)} "
            "tokens, so padding cannot be removed: exclude this module."
        )


class _AllReadError(Exception):
    """Stop a block whose probes have read all their inputs."""
