"""The same numbers on any number of ranks, and embeddings that are made once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from prunelit import InputError
from prunelit.models.inference import embedding, embedding_cache
from prunelit.report.results import Result
from prunelit.tasks import CollectionRetrieval, ItemTable, ModelPair, collection_retrieval

N, Q = 37, 7
Prepare = Callable[..., tuple[CollectionRetrieval, int]]
Measure = Callable[..., ItemTable]
Run = Callable[..., list[Result]]


def values(rows: list[Result]) -> dict[tuple[str, str], float]:
    return {(row.metric, row.model): row.value for row in rows}


def on_ranks(world: int, work: Callable[[int], Any], patch: pytest.MonkeyPatch) -> list[Any]:
    """Return `work(rank)` of each rank. Ranks are threads; a gather waits for all of them."""
    barrier, sent = threading.Barrier(world, timeout=60), [None] * world
    own = threading.local()

    def gather(out: list[Any], mine: Any) -> None:
        sent[own.rank] = mine
        barrier.wait()
        out[:] = sent
        barrier.wait()

    def start(rank: int) -> Any:
        own.rank = rank
        return work(rank)

    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda: world)
    patch.setattr(dist, "all_gather_object", gather)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(start, range(world)))


@pytest.mark.parametrize("world", [2, 3, 20])  # of 12 batches: even, uneven and none for some
def test_ranks_change_nothing(
    folder: Path,
    pair: ModelPair,
    world: int,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Prepare,
    measure: Measure,
    run: Run,
) -> None:
    expected = run(pair, cache=str(folder / "one"))

    def work(rank: int) -> list[Result]:
        task, size = prepare(pair, cache=str(folder / "many"))
        return task.report(measure(task, size, pair, rank, world)).results

    assert len(prepare(pair)[0].chunks(Q + N)) == 12
    assert all(rows == expected for rows in on_ranks(world, work, monkeypatch))
    # Each batch of each model was embedded once, by one rank.
    files = [{p.name for p in (folder / n).rglob("*.npy")} for n in ("one", "many")]
    assert files[0] == files[1]
    assert len(files[0]) == 24


def test_a_cache_that_ranks_do_not_share_is_refused(
    folder: Path,
    pair: ModelPair,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Prepare,
    measure: Measure,
) -> None:
    def work(rank: int) -> str:
        task, size = prepare(pair, cache=str(folder / f"own-{rank}"))
        table = measure(task, size, pair, rank, 2)
        with pytest.raises(InputError) as refused:
            task.report(table)
        return str(refused.value)

    assert all("that all machines" in message for message in on_ranks(2, work, monkeypatch))


def test_embeddings_are_made_once(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    seen: list[PreTrainedModel] = []
    original = embedding.final_hidden

    def counted(model: PreTrainedModel, *inputs: torch.Tensor) -> torch.Tensor:
        seen.append(model)
        return original(model, *inputs)

    monkeypatch.setattr(embedding, "final_hidden", counted)
    first = run(pair)
    assert len(seen) == 24
    seen.clear()
    # Another run with other metrics has the same texts, models and batches.
    assert values(run(pair)) == values(first)
    run(pair, centre=False, recall_at=[5])
    assert not seen
    # A pruned model that changed is embedded anew, the dense one is not.
    with torch.no_grad():
        pair.pruned.model.layers[0].mlp.up_proj.weight[:, 0] = 0
    changed = run(pair)
    assert seen == [pair.pruned] * 12
    assert values(changed) != values(first)
    seen.clear()
    run(pair, pooling="mean")
    assert len(seen) == 24


def test_the_default_cache_is_a_folder_of_prunelits_own(
    folder: Path, pair: ModelPair, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("PRUNELIT_CACHE", str(folder / "caches"))
    monkeypatch.setattr(collection_retrieval, "default_folder", embedding_cache.default_folder)
    run(pair, cache=None)
    assert len(list((folder / "caches" / "embeddings").rglob("*.npy"))) == 24
