"""Inputs of the statistics of a block, and layers that share one statistic."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import SquaredNorm
from prunelit.errors import InputError
from prunelit.models.architecture import (
    decoder_blocks,
    final_hidden,
    linear_modules,
    oriented_weight,
)
from prunelit.models.stores import Store, keep_in
from prunelit.pruners import Probe, Pruner, whole
from prunelit.pruning.blockwise import RankText, prune_blocks
from prunelit.pruning.peak_memory import PeakMemory
from prunelit.pruning.pooling import Reach

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


class Recorder(Pruner):
    """Prunes nothing and keeps what it was given, block by block."""

    def __init__(self) -> None:
        self.probes: list[Mapping[str, Probe]] = []
        self.finished: list[nn.Module] = []

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {
            name: Probe(SquaredNorm(oriented_weight(linear).shape[1]))
            for name, linear in linear_modules(block).items()
        }

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        self.probes.append(probes)

    def finish(self, model: PreTrainedModel) -> None:
        self.finished.append(model)

    def values(self) -> list[Tensor]:
        return [probe.statistic.value for probes in self.probes for probe in probes.values()]


class Doubled(SquaredNorm):
    def update(self, x: Tensor) -> None:
        super().update(2 * x)


class TwoKinds(Recorder):
    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {
            "self_attn.q_proj": Probe(SquaredNorm(32)),
            "self_attn.k_proj": Probe(Doubled(32)),
        }


class Outputs(Recorder):
    """The attention returns a tuple; the last name is the block itself."""

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        names = ("self_attn", "mlp", "mlp.down_proj", "")
        return {name: Probe(SquaredNorm(32), "output") for name in names}


def run(
    model: PreTrainedModel,
    pruner: Pruner,
    batches: list[Batch],
    sample: Batch | None = None,
) -> list[int]:
    """Prune, and give the index of each block in the order of work."""
    sample = sample or {key: value[-1:] for key, value in batches[0].items()}
    text, memory = RankText(batches, sample), PeakMemory(model.device)
    with torch.no_grad():
        costs = prune_blocks(model, pruner, text, memory, Reach(1))
        return [cost.index for cost in costs]


@pytest.mark.parametrize("left", [True, False])
def test_padding_enters_no_statistic(
    make_model: MakeModel, family: str, padded: Batch, left: bool
) -> None:
    model = make_model(family)
    # The mirror image of padding on the left is padding on the right.
    batch = padded if left else {key: value.flip(1) for key, value in padded.items()}
    alone = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
        alone.append({"input_ids": ids[mask][None]})
        alone[-1]["attention_mask"] = torch.ones_like(alone[-1]["input_ids"])
    in_batch, one_by_one = Recorder(), Recorder()
    run(model, in_batch, [batch])
    run(model, one_by_one, alone)
    for found, expected in zip(in_batch.values(), one_by_one.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_linear_maps_that_read_one_tensor_share_one_statistic(
    model: PreTrainedModel, padded: Batch
) -> None:
    recorder = Recorder()
    run(model, recorder, [padded])
    assert len(recorder.probes) == 3
    for probes in recorder.probes:
        of = {name.split(".")[1]: probe.statistic for name, probe in probes.items()}
        assert of["q_proj"] is of["k_proj"] is of["v_proj"]
        assert of["gate_proj"] is of["up_proj"]
        assert len(set(map(id, of.values()))) == 4
    assert len({id(probes["mlp.up_proj"].statistic) for probes in recorder.probes}) == 3


def test_shared_statistic_counts_each_token_once(make_model: MakeModel, padded: Batch) -> None:
    model, recorder = make_model("phi"), Recorder()
    run(model, recorder, [padded, padded])
    probes = recorder.probes[0]
    # Attention and MLP of Phi run in parallel on one tensor.
    assert probes["self_attn.q_proj"].statistic is probes["mlp.fc1"].statistic
    read: list[Tensor] = []
    block = model.model.layers[0]
    block.mlp.fc1.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
    with torch.no_grad():
        final_hidden(model, **padded)
    x = read[0][padded["attention_mask"].bool()].double().numpy()
    found = probes["mlp.fc1"].statistic.value.numpy()
    np.testing.assert_allclose(found, (x**2).mean(0), rtol=1e-5)


def test_other_kinds_of_statistic_are_not_shared(model: PreTrainedModel, padded: Batch) -> None:
    recorder = TwoKinds()
    run(model, recorder, [padded])
    query, key = recorder.values()[:2]
    torch.testing.assert_close(4 * query, key)


def test_outputs_are_observed_where_a_probe_asks_for_them(
    model: PreTrainedModel, padded: Batch
) -> None:
    recorder = Outputs()
    run(model, recorder, [padded])
    real = padded["attention_mask"].bool()
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor | tuple) -> None:
            x = output if isinstance(output, Tensor) else output[0]
            outputs[name] = x[real].double().numpy()

        return hook

    block = model.model.layers[1]
    for name in recorder.probes[1]:
        block.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        final_hidden(model, **padded)
    for name, probe in recorder.probes[1].items():
        expected = (outputs[name] ** 2).mean(0)
        np.testing.assert_allclose(probe.statistic.value.numpy(), expected, rtol=1e-5)
    # The output of the MLP is the output of its last linear map.
    assert torch.equal(
        recorder.probes[1]["mlp"].statistic.value,
        recorder.probes[1]["mlp.down_proj"].statistic.value,
    )


def test_blocks_are_worked_on_in_order_and_the_model_is_finished_once(
    model: PreTrainedModel, padded: Batch
) -> None:
    recorder = Recorder()
    moves: list[tuple[str, int, int]] = []

    class Noted(Store):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def fetch(self) -> None:
            moves.append(("fetch", self.index, len(recorder.probes)))

        def leave(self, edited: bool) -> None:
            moves.append(("keep" if edited else "forget", self.index, len(recorder.probes)))

    for index, block in enumerate(model.model.layers):
        keep_in(block, Noted(index))
    assert run(model, recorder, [padded]) == [0, 1, 2]
    # The model's own run, the blocks one by one, and the pass that prunes.
    looks = [(move, index, 0) for index in range(3) for move in ("fetch", "forget")]
    prunes = [(move, i, i + n) for i in range(3) for n, move in enumerate(("fetch", "keep"))]
    assert moves == [*looks, *looks, *prunes]
    assert recorder.finished == [model]


def test_rank_without_batches_sees_no_token(model: PreTrainedModel, padded: Batch) -> None:
    recorder = Recorder()
    run(model, recorder, [], sample=padded)
    assert len(recorder.probes) == 3
    with pytest.raises(ValueError, match="at least one calibration token"):
        recorder.values()


class LooksTwice(Recorder):
    """Doubles a weight of the first block after the first look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[list[Tensor]] = []

    def look(self, model: PreTrainedModel) -> Iterator[dict[str, Probe]]:
        for _ in decoder_blocks(model)[1]:
            yield {"mlp.down_proj": Probe(SquaredNorm(48))}

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self.looks.append([probe["mlp.down_proj"].statistic.value for probe in probes])
        block = decoder_blocks(model)[1][0]
        with whole(block, edited=True):
            block.get_submodule("mlp.up_proj").weight.mul_(2)
        return len(self.looks) < 2


def test_a_method_looks_at_the_model_as_often_as_it_asks(
    model: PreTrainedModel, padded: Batch
) -> None:
    method = LooksTwice()
    # Two looks and one pass that prunes, each in the order of the blocks.
    assert run(model, method, [padded]) == [0, 1, 2] * 3
    first, second = method.looks
    torch.testing.assert_close(second[0], 4 * first[0])
    assert not torch.equal(first[1], second[1])
    # The pass that prunes reads the model after both decisions.
    found = method.probes[0]["mlp.down_proj"].statistic.value
    torch.testing.assert_close(found, 16 * first[0])


def test_a_method_that_looks_needs_text(model: PreTrainedModel) -> None:
    class Looks(LooksTwice):
        def watch(self, block: nn.Module) -> dict[str, Probe]:
            return {}

    blocks = prune_blocks(model, Looks(), None, PeakMemory(model.device), Reach(1))
    with pytest.raises(InputError, match=r"`data\.calibration`: Looks needs it"):
        list(blocks)
