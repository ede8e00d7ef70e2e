"""Batches that are under way together: their order, their errors and their threads."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.core.conveyor import Conveyor, Flights
from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.stores import Store, keep_in, one_at_a_time, whole
from prunelit.models.views import view
from prunelit.tasks import Perplexity

Work = Callable[[], Any]


class Noted(Store):
    """Writes down what comes and goes; weights that are away are NaN."""

    def __init__(self, block: nn.Module, name: str, log: list[str]) -> None:
        super().__init__()
        self._name, self._log = name, log
        self._kept = {weight: weight.data for weight in block.parameters()}
        self.leave(edited=False)

    def fetch(self) -> None:
        self._log.append(self._name)
        for weight, data in self._kept.items():
            weight.data = data

    def leave(self, edited: bool) -> None:
        for weight, data in self._kept.items():
            weight.data = data.new_full((), torch.nan).expand(data.shape)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def dense(make_model: Callable[..., PreTrainedModel], log: list[str]) -> PreTrainedModel:
    return stored(make_model("llama"), "d", log)


@pytest.fixture
def pruned(make_model: Callable[..., PreTrainedModel], log: list[str]) -> PreTrainedModel:
    return stored(make_model("llama", seed=1), "p", log)


def stored(model: PreTrainedModel, name: str, log: list[str]) -> PreTrainedModel:
    for number, block in enumerate(decoder_blocks(model)[1]):
        keep_in(block, Noted(block, f"{name}{number}", log))
    return model


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def read(model: PreTrainedModel, ids: Tensor, passes: int = 1) -> Tensor:
    with torch.no_grad():
        for _ in range(passes):
            found = final_hidden(model, ids, torch.ones_like(ids))
    return found


def reading(model: PreTrainedModel, ids: Tensor, passes: int = 1) -> Work:
    return lambda: read(view(model), ids, passes)


def is_away(*models: PreTrainedModel) -> bool:
    weights = [w for model in models for w in decoder_blocks(model)[1].parameters()]
    return all(bool(weight.isnan().all()) for weight in weights)


def test_a_block_comes_once_for_all(
    dense: PreTrainedModel, pruned: PreTrainedModel, input_ids: Tensor, log: list[str]
) -> None:
    batches = input_ids[:2], input_ids[2:3, :7], input_ids[3:]
    expected = [(read(dense, ids), read(pruned, ids)) for ids in batches]
    del log[:]
    steps: list[int] = []
    conveyor = Conveyor([dense, pruned], watch=lambda: steps.append(len(log)))
    works = [
        lambda ids=ids: (read(view(dense), ids), read(view(pruned), ids))  # type: ignore[misc]
        for ids in batches
    ]
    for found, wanted in zip(conveyor.run(works), expected, strict=True):
        assert all(map(torch.equal, found, wanted))
    assert log == ["d0", "d1", "d2", "p0", "p1", "p2"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert conveyor.brought == 6
    assert is_away(dense, pruned)


def test_a_batch_of_fewer_passes_waits_before_the_next_model(
    dense: PreTrainedModel, pruned: PreTrainedModel, input_ids: Tensor, log: list[str]
) -> None:
    def work(before: int, after: int) -> Work:
        return lambda: (read(view(dense), input_ids, before), read(view(pruned), input_ids, after))

    Conveyor([dense, pruned]).run([work(1, 4), work(3, 2), work(2, 1)])
    assert log == ["d0", "d1", "d2"] * 3 + ["p0", "p1", "p2"] * 4


def test_a_block_that_is_here_is_used_again(
    dense: PreTrainedModel, input_ids: Tensor, log: list[str]
) -> None:
    def work() -> list[Tensor]:
        block, found = decoder_blocks(view(dense))[1][1], []
        for _ in range(3):
            with whole(block):
                found.append(block.mlp(torch.ones(1, 1, 32)))
        return found

    one, other = Conveyor([dense]).run([work] * 2)
    assert all(torch.equal(value, one[0]) for value in one + other)
    assert log == ["d1"]


def test_nothing_to_do_is_done(dense: PreTrainedModel, log: list[str]) -> None:
    assert Conveyor([dense]).run([]) == []
    assert Conveyor([dense]).run([lambda: 3, lambda: 4]) == [3, 4]
    assert not log


def test_a_model_that_is_all_here_waits_for_nothing(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    conveyor = Conveyor([model])
    (found,) = conveyor.run([reading(model, input_ids)])
    assert torch.equal(found, read(model, input_ids))
    assert conveyor.brought == 0


def test_an_error_of_one_batch_ends_all(
    dense: PreTrainedModel, input_ids: Tensor, log: list[str]
) -> None:
    ended: list[str] = []

    def fails() -> None:
        read(view(dense), input_ids)
        raise ValueError("It has had enough.")

    def goes_on() -> None:
        with ExitStack() as stack:
            stack.callback(ended.append, "other")
            read(view(dense), input_ids, 9)

    with pytest.raises(ValueError, match="had enough") as caught:
        Conveyor([dense]).run([goes_on, fails, goes_on])
    assert caught.traceback[-1].name == "fails"
    assert ended == ["other", "other"]
    assert log == ["d0", "d1", "d2"]
    assert is_away(dense)


def test_an_error_before_any_block_starts_no_other_batch(dense: PreTrainedModel) -> None:
    started: list[int] = []
    with pytest.raises(ZeroDivisionError):
        Conveyor([dense]).run([lambda: 1 / 0, lambda: started.append(1)])
    assert not started


def test_a_store_that_fails_ends_all(
    dense: PreTrainedModel, input_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(self: Noted) -> None:
        raise OSError("The disk is gone.")

    monkeypatch.setattr(Noted, "fetch", fetch)
    with pytest.raises(OSError, match="disk is gone"):
        Conveyor([dense]).run([reading(dense, input_ids)] * 2)


@pytest.mark.parametrize("inside", [True, False])
def test_a_signal_ends_all(dense: PreTrainedModel, input_ids: Tensor, inside: bool) -> None:
    def interrupted() -> None:
        read(view(dense), input_ids)
        signal.raise_signal(signal.SIGINT)
        read(view(dense), input_ids, 10**6)

    def watch() -> None:
        if not inside:
            signal.raise_signal(signal.SIGINT)

    works = [reading(dense, input_ids, 10**6), interrupted if inside else reading(dense, input_ids)]
    with pytest.raises(KeyboardInterrupt):
        Conveyor([dense], watch).run(works)
    assert is_away(dense)


def test_a_batch_that_waits_for_another_lets_it_go_on(
    dense: PreTrainedModel, input_ids: Tensor, log: list[str]
) -> None:
    lock = threading.Lock()
    known: list[Tensor] = []

    def work() -> Tensor:
        with one_at_a_time(lock):
            if not known:
                known.append(read(view(dense), input_ids))
        return known[0] + read(view(dense), input_ids)

    found = Conveyor([dense]).run([work] * 4)
    assert all(torch.equal(one, found[0]) for one in found)
    assert log == ["d0", "d1", "d2"] * 2
    assert not lock.locked()


SETTING: ContextVar[int] = ContextVar("SETTING", default=0)


def settings() -> tuple[Any, ...]:
    return (
        SETTING.get(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_num_threads(),
    )


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_batch_has_the_settings_of_the_caller(
    inference: bool, gradients: bool, dtype: torch.dtype | None, model: PreTrainedModel
) -> None:
    SETTING.set(7)
    with (
        torch.inference_mode(inference),
        torch.set_grad_enabled(gradients),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        expected = settings()
        assert Conveyor([model]).run([settings] * 2) == [expected] * 2
        assert settings() == expected


def test_autocast_gives_the_same_bits(dense: PreTrainedModel, input_ids: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        expected = read(dense, input_ids)
        found = Conveyor([dense]).run([reading(dense, input_ids)] * 2)
    assert all(torch.equal(one, expected) for one in found)


def test_a_flight_has_so_many_batches(material: Any, tokenizer: Any) -> None:
    task = Perplexity(str(material / "text.jsonl"), length=20, limit=7, batch_size=1)
    task.read()
    task.prepare(tokenizer)
    flights = Flights(task.batches(7, 0, 2), 3)
    found = [[batch["indices"].tolist() for batch in flight] for flight in flights]
    assert found == [[[0], [2], [4]], [[6]]]
    assert len(flights) == 2
    other = [
        [b["indices"].tolist() for b in flight] for flight in Flights(task.batches(7, 1, 2), 3)
    ]
    assert other == [[[1], [3], [5]], [[]]]
