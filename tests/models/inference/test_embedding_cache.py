"""A key finds the embeddings that were stored under it, and no others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from prunelit import InputError
from prunelit.models.inference.embedding_cache import EmbeddingCache, Fingerprints, content_key

KEY = bytes(range(16))


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def counted(value: torch.Tensor) -> tuple[Callable[[], torch.Tensor], list[int]]:
    calls: list[int] = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return value

    return compute, calls


def test_computed_once_and_bit_for_bit(cache: EmbeddingCache) -> None:
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    compute, calls = counted(value)
    found = [cache.fetch(KEY, 3, compute) for _ in range(2)]
    assert len(calls) == 1
    assert all(torch.equal(one, value) for one in [*found, cache.load(KEY)])
    # One complete file, and no temporary file.
    assert [path.suffix for path in cache.folder.rglob("*") if path.is_file()] == [".npy"]


def test_half_precision_is_kept_in_float32(cache: EmbeddingCache) -> None:
    value = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    assert cache.fetch(KEY, 1, lambda: value).dtype == torch.float32
    assert torch.equal(cache.load(KEY), value.float())


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "other", "rows", "nan", "byte", "columns", "key"]
)
def test_a_damaged_file_is_computed_anew_with_a_sentence(
    cache: EmbeddingCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    value = torch.ones(3, 5)
    cache.fetch(KEY, 3, lambda: value)
    (path,) = cache.folder.rglob("*.npy")
    content = path.read_bytes()
    if damage == "rows":
        EmbeddingCache(cache.folder)._write(path, torch.ones(2, 5).numpy())
    elif damage == "nan":
        EmbeddingCache(cache.folder)._write(path, torch.full((3, 5), torch.nan).numpy())
    elif damage == "columns":  # a whole array of another tool
        np.save(path, np.load(path)[:, :2])
    elif damage == "key":  # embeddings of other texts
        cache.fetch(KEY[::-1], 3, lambda: 2 * value)
        shutil.copy(cache._path(KEY[::-1]), path)
    elif damage == "byte":
        middle = content.index(b"\x80?")  # of the number 1
        path.write_bytes(content[:middle] + b"\x90" + content[middle + 1 :])
    else:
        path.write_bytes({"empty": b"", "cut": content[:-7], "other": b"no array"}[damage])
    compute, calls = counted(value)
    with caplog.at_level("INFO"):
        assert torch.equal(cache.fetch(KEY, 3, compute), value)
    assert calls
    assert f"{str(path)!r} in the cache of embeddings is damaged" in caplog.text
    assert path.read_bytes() == content


def test_missing_embeddings_are_an_error(cache: EmbeddingCache) -> None:
    with pytest.raises(InputError, match="`cache` folder that all machines of the run see"):
        cache.load(KEY)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, cache: EmbeddingCache) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Nothing can be written into"):
        EmbeddingCache(tmp_path / "file")
    # An existing folder may be read-only until something must be written.
    (cache.folder / KEY.hex()[:2]).write_text("")
    with pytest.raises(InputError, match="Nothing can be written into"):
        cache.fetch(KEY, 1, lambda: torch.ones(1, 2))


def test_a_read_only_folder_is_warned_of(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.warns(UserWarning, match="is read-only: the first text"):
        EmbeddingCache(cache.folder)


def test_the_key_depends_on_every_input() -> None:
    ids, mask = torch.tensor([[1, 2]]), torch.tensor([[1, 1]])
    recipe = {"pooling": "mean", "blocks": None}
    key = content_key("model", [ids, mask], recipe)
    assert len(key) == 16
    assert key == content_key("model", [ids.clone(), mask.clone()], dict(recipe))
    others = [
        content_key("other", [ids, mask], recipe),
        content_key("model", [ids + 1, mask], recipe),
        content_key("model", [ids, mask * 0], recipe),
        content_key("model", [ids.T, mask.T], recipe),
        content_key("model", [ids, mask], {**recipe, "pooling": "last"}),
        content_key("model", [ids, mask], {**recipe, "blocks": 2}),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        others.append(content_key("model", [ids, mask], recipe))
    assert len({key, *others}) == len(others) + 1


def test_fingerprints_are_of_the_weights_and_of_one_pass(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model, same, other = make_model("llama"), make_model("llama"), make_model("llama", seed=1)
    first = Fingerprints()
    assert first.get(model) == first.get(same) != first.get(other)
    before = first.get(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 0
    assert first.get(model) == before
    assert Fingerprints().get(model) != before
