"""Sweeps from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit.core.weights
import prunelit.pruning.blockwise
from prunelit import InputError
from prunelit.callbacks import Results
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.pruners import ExpertDrop, Magnitude, SublayerDrop, Wanda
from prunelit.report.results import read_results
from prunelit.sparsity import Unstructured
from prunelit.tasks import Perplexity, Task
from prunelit.trainer import PruneTrainer

Table = Callable[[Path], list[dict[str, str]]]


@pytest.fixture
def start(tmp_path: Path, material: Path) -> Callable[..., tuple[PruneTrainer, PairedLM]]:
    """`start(variants, tasks)` sweeps from Python."""

    def sweep(
        variants: dict[str, Any], tasks: list[Task] | None = None, **arguments: Any
    ) -> tuple[PruneTrainer, PairedLM]:
        text = str(material / "text.jsonl")
        module = PairedLM(arguments.pop("source", str(material / "dense")), **arguments)
        data = PruneData(
            CalibrationText(text, sequences=5, length=16, batch_size=2),
            tasks or [Perplexity(text, length=20, limit=3)],
        )
        trainer = PruneTrainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
            max_epochs=0,
        )
        before = list(trainer.callbacks)  # type: ignore[attr-defined]
        try:
            trainer.sweep(module, data, variants=variants)
        finally:
            assert trainer.callbacks == before  # type: ignore[attr-defined]
        return trainer, module

    return sweep


def test_another_ratio_of_experts_is_cut_without_another_pass(
    start: Callable[..., tuple[PruneTrainer, PairedLM]],
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "mixture"
    for part in (make_model("mixtral"), tokenizer):
        part.save_pretrained(source)
    looks: list[int] = []
    work = prunelit.pruning.blockwise._LookPass.work

    def note(self: Any, index: int, block: Any) -> None:
        looks.append(index)
        work(self, index, block)

    monkeypatch.setattr("prunelit.pruning.blockwise._LookPass.work", note)
    start({f"drop_{k}": ExpertDrop(count=k) for k in (1, 2)}, source=str(source))
    assert looks == sorted(set(looks)) != []
    kept = [load_file(tmp_path / f"drop_{k}" / "pruned" / "model.safetensors") for k in (1, 2)]
    (name,) = [name for name in kept[0] if "layers.0" in name and "gate.weight" in name]
    assert [len(weights[name]) for weights in kept] == [3, 2]


def test_the_dense_model_is_read_once(
    start: Callable[..., tuple[PruneTrainer, PairedLM]],
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    load = prunelit.core.weights.load_placed

    def noting(source: str, *place: Any, **options: Any) -> Any:
        read.append(source)
        return load(source, *place, **options)

    monkeypatch.setattr(prunelit.core.weights, "load_placed", noting)
    variants = {
        "wanda": Wanda(Unstructured(0.5)),
        "attention": SublayerDrop(1),
        "magnitude": Magnitude(Unstructured(0.5)),
    }
    untouched = load(str(material / "dense"), None)[0].state_dict()
    other = [Perplexity(str(material / "text.jsonl"), length=20, limit=2)]
    # The second time all results are there. Other tasks read the pruned models.
    for tasks, reads in ((None, 1), (None, 1), (other, 4)):
        _, module = start(variants, tasks)
        assert read.count(str(material / "dense")) == 1
        assert len(read) == reads
        read.clear()
        assert module.pair.dense is not None
        for name, weight in module.pair.dense.state_dict().items():
            assert weight.equal(untouched[name])


def test_without_a_reference_each_variant_starts_from_dense_weights(
    table: Table, start: Callable[..., tuple[PruneTrainer, PairedLM]], tmp_path: Path
) -> None:
    start(
        {"attention": SublayerDrop(1), "magnitude": Magnitude(Unstructured(0.5))}, reference=False
    )
    weights = load_file(tmp_path / "magnitude" / "pruned" / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            assert int((weight == 0).sum()) == weight.numel() // 2, name
    rows = read_results(tmp_path / "magnitude" / "results.jsonl")
    assert {row.model for row in rows} == {"pruned"}
    lines = table(tmp_path / "figures" / "variants.csv")
    assert [line["variant"] for line in lines] == ["attention", "magnitude"]


def test_callbacks_come_back_after_an_error(
    start: Callable[..., tuple[PruneTrainer, PairedLM]], tmp_path: Path
) -> None:
    class Failing(Wanda):
        def prune_weight(self, *arguments: Any) -> torch.Tensor:
            raise RuntimeError("enough")

    variants = {"good": SublayerDrop(1), "bad": Failing(Unstructured(0.5))}
    with pytest.raises(RuntimeError, match="enough"):
        start(variants)
    # Finished variants stay.
    assert (tmp_path / "good" / "results.jsonl").is_file()
    assert (tmp_path / "good" / "pruned" / "pruning.json").is_file()
    assert not (tmp_path / "bad" / "pruned").exists()
    # The figures show the only finished variant.
    table = (tmp_path / "figures" / "variants.csv").read_text()
    assert "good" in table
    assert "bad" not in table


def test_something_else_than_a_pruner_is_refused(
    start: Callable[..., tuple[PruneTrainer, PairedLM]],
) -> None:
    with pytest.raises(InputError, match="variant 'half' to be a Pruner but got Unstructured"):
        start({"half": Unstructured(0.5)})


def test_other_data_is_refused(tmp_path: Path, material: Path) -> None:
    trainer = PruneTrainer(default_root_dir=tmp_path, logger=False, max_epochs=0)
    with pytest.raises(InputError, match="Expected a `PairedLM` and a `PruneData`"):
        trainer.sweep(PairedLM(str(material / "dense")), variants={"wanda": SublayerDrop(1)})


def test_the_trainers_own_results_callback_is_used(tmp_path: Path, material: Path) -> None:
    text = str(material / "text.jsonl")
    seen = []

    class Other(Results):
        def on_validation_end(self, *arguments: Any) -> None:
            super().on_validation_end(*arguments)
            seen.append(self.folder)

    results = Other()
    trainer = PruneTrainer(
        accelerator="cpu",
        callbacks=[results],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        max_epochs=0,
    )
    data = PruneData(CalibrationText(text, sequences=5, length=16), [Perplexity(text, length=20)])
    trainer.sweep(PairedLM(str(material / "dense")), data, variants={"one": SublayerDrop(1)})
    assert seen == [tmp_path / "one"]
    assert results.folder is None


def test_a_sweep_of_other_variants_adds_to_the_figures(
    table: Table,
    start: Callable[..., tuple[PruneTrainer, PairedLM]],
    tmp_path: Path,
    material: Path,
) -> None:
    text = str(material / "text.jsonl")
    one, two, three = (Magnitude(Unstructured(ratio)) for ratio in (0.25, 0.5, 0.75))
    start({"one": one, "two": two})
    start({"three": three})
    start({"two": Magnitude(Unstructured(0.6))})
    # The earlier pruned model and results of the variant are there too.
    old = read_results(tmp_path / "two" / "earlier_1" / "results.jsonl")
    new = read_results(tmp_path / "two" / "results.jsonl")
    folders = {name: Path(rows[0].pruned or "") for name, rows in {"old": old, "new": new}.items()}
    assert folders["old"] == tmp_path / "two" / "pruned"
    assert folders["new"].name == f"pruned-{new[0].recipe}"
    assert all((folder / "model.safetensors").is_file() for folder in folders.values())
    names = [line["variant"] for line in table(tmp_path / "figures" / "variants.csv")]
    assert list(dict.fromkeys(names)) == ["dense", "one", "two", "three"]
    earlier = table(tmp_path / "earlier_1" / "figures" / "variants.csv")
    assert {line["sparsity"] for line in earlier if line["variant"] == "two"} == {"0.5"}
    before = (tmp_path / "figures" / "variants.csv").read_bytes()
    # Other tasks cannot be compared with it.
    start({"four": one}, [Perplexity(text, length=20, limit=2)])
    names = [line["variant"] for line in table(tmp_path / "figures" / "variants.csv")]
    assert list(dict.fromkeys(names)) == ["dense", "four"]
    assert (tmp_path / "earlier_2" / "figures" / "variants.csv").read_bytes() == before
