"""Prove, before any weight changes, that a model without some parts can be written."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.absent import find_returns, make_absent, zeroed
from prunelit.models.architecture import decoder_blocks, final_hidden, probe_ids, trunk
from prunelit.models.forwards import replaced_forwards
from prunelit.models.parts import sublayers
from prunelit.models.rebuilding import build_skeleton, fill, find_attribute, shapes_of
from prunelit.models.replay import Form
from prunelit.models.views import view

Changes = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """Parts to take out of a model.

    Args:
        blocks: indices of whole blocks.
        sublayers: by index of another block, the kinds of its sublayers.
    """

    blocks: Sequence[int] = ()
    sublayers: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def names(self, blocks: nn.ModuleList, index: int) -> tuple[str, ...]:
        """Names of the modules of a block that are left out."""
        kinds = self.sublayers.get(index, ())
        found = sublayers(blocks[index]) if kinds else {}
        return tuple(name for kind in kinds for name in found[kind].parts)


@dataclass(frozen=True)
class Removal:
    """Way to take parts out of a model.

    Args:
        changes: new values of fields of the configuration, by name.
        returns: by index of a block in the whole model, values that the modules that are left out
            return, by their names in the block.
        slices: parameters outside the blocks that hold a part for each block, by name; the value is
            the axis of the parts.
    """

    changes: Changes = field(default_factory=dict)
    returns: dict[int, dict[str, str]] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)


@torch.no_grad()
def find_removal(model: PreTrainedModel, parts: Parts) -> Removal:
    """Find out how parts can be taken out of a model, and prove it on a few tokens.

    The model that `from_pretrained` would build of the new configuration must give what this model
    gives if the blocks pass their input on and the sublayers add nothing. Weights and configuration
    of `model` stay as they are.

    Args:
        model: in evaluation mode; its blocks may wait in stores.
        parts: to take out.

    Raises:
        InputError: if there is no such configuration; it names the fields.
    """
    _check_own(model, parts)
    expected, returns = _run_without(model, parts)
    kept = [i for i in range(len(decoder_blocks(model)[1])) if i not in parts.blocks]
    first: _Difference | None = None
    for changes in _candidates(model, kept):
        found = _try_changes(model, parts, Removal(changes, returns), expected)
        if isinstance(found, Removal):
            return found
        first = first or found
    assert first is not None
    raise first.error(model, parts)


def _check_own(model: PreTrainedModel, parts: Parts) -> None:
    """Refuse parts whose weights are also those of another part."""
    prefix, blocks = decoder_blocks(model)
    starts = tuple(
        f"{prefix}.{index}.{part}"
        for index in (*parts.blocks, *parts.sublayers)
        for part in [f"{name}." for name in parts.names(blocks, index)] or [""]
    )
    gone: dict[int, str] = {}
    stays: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        (gone if name.startswith(starts) else stays).setdefault(id(weight), name)
    for key, name in gone.items():
        if key in stays:
            raise InputError(
                f"{name!r} cannot be dropped: it is one tensor with {stays[key]!r}, which stays. "
                "Prune weights instead, or drop other parts."
            )


def take_out(model: PreTrainedModel, parts: Parts, removal: Removal) -> None:
    """Replace sublayers and delete blocks, in place.

    Args:
        model: whole; its configuration is its own.
        parts: to take out.
        removal: the way to do it.
    """
    _, blocks = decoder_blocks(model)
    count = len(blocks)
    kept = [index for index in range(count) if index not in parts.blocks]
    for name, axis in removal.slices.items():
        path, _, last = name.rpartition(".")
        owner, before = model.get_submodule(path), model.get_parameter(name)
        by_block = before.detach().unflatten(axis, (count, -1))
        part = by_block[(slice(None),) * axis + (kept,)].flatten(axis, axis + 1)
        owner._parameters = {**owner._parameters, last: nn.Parameter(part, before.requires_grad)}
    for index, kinds in parts.sublayers.items():
        for kind in kinds:
            for name, module in make_absent(
                blocks[index], sublayers(blocks[index])[kind], removal.returns[index]
            ).items():
                setattr(blocks[index], name, module)
    for index in sorted(parts.blocks, reverse=True):
        del blocks[index]
    for place, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = place  # type: ignore[assignment]
    text = model.config.get_text_config(decoder=True)
    for name, value in removal.changes.items():
        setattr(text, name, value)


def _run_without(model: PreTrainedModel, parts: Parts) -> tuple[Tensor, dict[int, dict[str, str]]]:
    """Run a few tokens through a model with zeros in sublayers and blocks that pass on."""
    _, blocks = decoder_blocks(model)
    with ExitStack() as stack:
        stack.enter_context(passing(model, parts.blocks))
        returns = {
            index: stack.enter_context(_zeroed_on_call(blocks[index], parts.names(blocks, index)))
            for index in parts.sublayers
        }
        hidden = _run(model)
    for index, found in returns.items():
        if missing := [name for name in parts.names(blocks, index) if name not in found]:
            raise InputError(
                f"{type(blocks[index]).__name__} uses the weights of {missing[0]!r} without a call "
                "of it, so it cannot be left out: drop blocks or prune weights instead."
            )
    return hidden, returns


@contextmanager
def _zeroed_on_call(block: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Have zeros in modules of a block while it runs, and note what they return."""
    contexts = ExitStack()

    def begin(*_: Any) -> None:
        contexts.enter_context(zeroed(block, names))

    def end(*_: Any) -> None:
        contexts.close()

    handles = [block.register_forward_pre_hook(begin), block.register_forward_hook(end)]
    try:
        with find_returns(block, names) as found:
            yield found
    finally:
        contexts.close()
        for handle in handles:
            handle.remove()


@contextmanager
def passing(model: PreTrainedModel, indices: Sequence[int]) -> Iterator[None]:
    """Let blocks of a model pass their input on, within the context.

    Args:
        model: any.
        indices: of the blocks.
    """
    if not indices:
        yield
        return
    _, blocks = decoder_blocks(model)
    form = _find_form(model, blocks[0])

    def pass_on(hidden: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return form.wrap(hidden)

    with replaced_forwards({blocks[index]: pass_on for index in indices}):
        yield


@torch.no_grad()
def check_zero_blocks(model: PreTrainedModel) -> None:
    """Refuse a model in which a block whose sublayers are 0 does not pass its input on.

    Such a block can be taken out, but it cannot stay as zeros until a later round or a training.

    Args:
        model: in evaluation mode.

    Raises:
        InputError: naming the class of the blocks.
    """
    _, blocks = decoder_blocks(model)
    with passing(model, range(len(blocks))):
        expected = _run(model)
    with ExitStack() as stack:
        for block in blocks:
            names = tuple(name for found in sublayers(block).values() for name in found.parts)
            stack.enter_context(_zeroed_on_call(block, names))
        found = _run(model)
    if not _are_close(found, expected, model.dtype):
        raise InputError(
            f"A {type(blocks[0]).__name__} whose weights are 0 does not pass its input on, so "
            "blocks of this family cannot be dropped in several rounds or before a training: use "
            "one round without training, or drop no blocks."
        )


def _are_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype.itemsize >= 4 else 3e-2
    worst = (found - expected).abs().max()
    return bool(worst <= tolerance * expected.abs().max().clamp(min=1.0))


def _find_form(model: PreTrainedModel, block: nn.Module) -> Form:
    """Run a model until its first block has ended."""

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _Reached(Form.of(output))

    handle = block.register_forward_hook(stop)
    try:
        _run(model)
    except _Reached as reached:
        return reached.form
    finally:
        handle.remove()
    raise AssertionError("the first block did not run")


class _Reached(Exception):
    def __init__(self, form: Form) -> None:
        self.form = form


def _run(model: PreTrainedModel) -> Tensor:
    ids = probe_ids(model, 1, 8)
    return final_hidden(model, ids, torch.ones_like(ids)).float()


@dataclass
class _Difference:
    """Difference between a model in memory and the one that its configuration would build.

    Args:
        changes: of the configuration.
        what: what differs.
    """

    changes: Changes
    what: str

    def error(self, model: PreTrainedModel, parts: Parts) -> InputError:
        """Return the error of a model that cannot be written without some parts."""
        config = model.config.get_text_config(decoder=True)
        fields = [
            f"`{name}`" if isinstance(value, list | dict) else f"`{name}: {value}`"
            for name, value in self.changes.items()
            if value != getattr(config, name, None)
        ]
        fields += [f"`{n}: {v}`" for n, v in config.to_dict().items() if "layer_idx" in n and v]
        removed = [f"block {index}" for index in parts.blocks]
        removed += [f"a sublayer of block {index}" for index in parts.sublayers]
        return InputError(
            f"{type(model).__name__} without {', '.join(removed)} cannot be written: with "
            f"{', '.join(fields) or 'the same fields'} in config.json, {self.what}. Prune weights "
            "or neurons instead, or drop other parts."
        )


def _try_changes(
    model: PreTrainedModel, parts: Parts, removal: Removal, expected: Tensor
) -> "Removal | _Difference":
    """Compare a model without parts with the one that a configuration builds.

    Returns:
        The way to take the parts out if both are equal.
    """
    try:
        small, new = _build_both(model, parts, removal)
        if slices := _find_slices(model, parts, small, new):
            removal = replace(removal, slices=slices)
            small, new = _build_both(model, parts, removal)
        own, other = shapes_of(small), shapes_of(new)
        if own != other:
            names = sorted(dict(set(own.items()) ^ set(other.items())))
            return _Difference(removal.changes, f"the tensor {names[0]!r} is another one")
        fill(new, small)
        found = _run(new)
        trunk(new)(input_ids=probe_ids(new, 1, 8), use_cache=True)  # generation needs it
    except Exception as error:  # noqa: BLE001 - code of the family, for a configuration of ours
        return _Difference(
            removal.changes, f"it cannot be built or run ({first_line(error).rstrip('.')})"
        )
    if _are_close(found, expected, model.dtype):
        return removal
    worst = (found - expected).abs().max().item()
    why = f"the outputs differ by {worst:.3g}{find_attribute(small, new)}"
    return _Difference(removal.changes, why)


def _build_both(
    model: PreTrainedModel, parts: Parts, removal: Removal
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Build a model without parts, and a skeleton of its configuration."""
    small = view(model)
    small.config = copy.deepcopy(model.config)
    take_out(small, parts, removal)
    return small, build_skeleton(small, copy.deepcopy(small.config))


def _find_slices(
    model: PreTrainedModel, parts: Parts, small: PreTrainedModel, new: PreTrainedModel
) -> dict[str, int]:
    """Find parameters outside the blocks that have to lose the parts of removed blocks.

    Returns:
        The axis along which a parameter has a part for each block, by name.
    """
    count = len(decoder_blocks(model)[1])
    left = count - len(parts.blocks)
    other, found = shapes_of(new), {}
    for name, own in shapes_of(small).items():
        axes = [
            axis
            for axis, (size, wanted) in enumerate(zip(own, other.get(name, ()), strict=False))
            if size != wanted and size * left == wanted * count
        ]
        if len(axes) == 1:
            found[name] = axes[0]
    return found


def _candidates(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[Changes]:
    """Give configurations of a model without some blocks; the first ones are the most likely.

    Lists and tables with an entry for each block lose entries. Lists of indices of blocks, and
    numbers that count the first or the last blocks, may have to follow.
    """
    config = model.config.get_text_config(decoder=True)
    count = len(decoder_blocks(model)[1])
    if len(kept) == count:
        yield {}
        return
    fields = config.to_dict()
    base: Changes = {"num_hidden_layers": len(kept)}
    indices: Changes = {}
    numbers: list[Changes] = []
    for name, value in fields.items():
        if isinstance(value, dict) and _is_table(value) and _all_indices(value, count):
            base[name] = {kept.index(int(i)): own for i, own in value.items() if int(i) in kept}
        elif isinstance(value, list) and len(value) == count:
            base[name] = [value[i] for i in kept]
        elif isinstance(value, list) and _all_indices(value, count):
            indices[name] = [kept.index(i) for i in value if i in kept]
        elif type(value) is int and 0 < value < count:
            first = sum(i < value for i in kept)
            last = sum(i >= count - value for i in kept)
            numbers += [{name: new} for new in dict.fromkeys((first, last)) if new != value]
    yield base
    if indices:
        yield {**base, **indices}
    for change in numbers:
        yield {**base, **indices, **change}


def _is_table(value: dict[Any, Any]) -> bool:
    return all(isinstance(own, dict) for own in value.values())


def _all_indices(values: Any, count: int) -> bool:
    """Return True for different indices of blocks, as numbers or as text; at least one."""
    texts = [str(value) for value in values]
    different = bool(texts) and len(set(texts)) == len(texts)
    return different and all(text.isdigit() and int(text) < count for text in texts)
