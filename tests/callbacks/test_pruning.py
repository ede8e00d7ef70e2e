"""The time at which weights are removed, and the pruned model that a validation measures."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy

from prunelit import InputError, load_pretrained, prune
from prunelit.callbacks import Pruning, Results
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.files import only_writer
from prunelit.pruners import BlockDrop, Budget, Heads, Hidden, Neuron, Pruner, SublayerDrop, Wanda
from prunelit.recipe import describe
from prunelit.report.results import read_results
from prunelit.sparsity import Unstructured
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*configure_optimizers` returned `None`:UserWarning"
)

Run = Callable[..., tuple[Pruning, PairedLM]]


@pytest.fixture
def run(tmp_path: Path, material: Path) -> Run:
    """`run("fit")` or `run("validate", ratio=0.3)`, each with new objects, as in a new process."""

    def start(
        stage: str,
        ratio: float = 0.5,
        callback: type[Pruning] = Pruning,
        pruner: Pruner | None = None,
        source: Path = material / "dense",
        full_hash: bool = False,
        results: bool = False,
        **arguments: Any,
    ) -> tuple[Pruning, PairedLM]:
        text = str(material / "text.jsonl")
        pruning = callback(pruner or Wanda(Unstructured(ratio)), **arguments)
        module = PairedLM(str(source), full_hash=full_hash)
        calibration = CalibrationText(text, sequences=5, length=16, batch_size=2)
        data = PruneData(calibration, [Perplexity(text, length=20, limit=3)])
        trainer = PruneTrainer(
            accelerator="cpu",
            callbacks=[pruning, *([Results()] if results else [])],
            default_root_dir=tmp_path,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
            max_epochs=0,
        )
        getattr(trainer, stage)(module, datamodule=data)
        return pruning, module

    return start


def weights(module: PairedLM) -> dict[str, torch.Tensor]:
    assert module.model is not None
    return module.model.state_dict()


def same(one: PairedLM, other: PairedLM) -> bool:
    return all(weight.equal(weights(other)[name]) for name, weight in weights(one).items())


def test_fit_prunes_as_the_library_does(run: Run, material: Path) -> None:
    pruning, module = run("fit")
    alone, tokenizer = load_pretrained(str(material / "dense"))
    data = PruneData(CalibrationText(str(material / "text.jsonl"), sequences=5, length=16))
    data.prepare(tokenizer)
    assert data.calibration_tokens is not None
    report = prune(alone, Wanda(Unstructured(0.5)), data.calibration_tokens, batch_size=2)
    assert all(w.equal(alone.state_dict()[name]) for name, w in weights(module).items())
    assert pruning.report is not None
    assert pruning.report["tensors"] == report.as_dict()["tensors"]
    # The reference is untouched.
    assert module.pair.dense is not None
    dense, _ = load_pretrained(str(material / "dense"))
    for name, weight in module.pair.dense.state_dict().items():
        assert weight.equal(dense.state_dict()[name])


def test_fit_writes_what_it_pruned(run: Run, tmp_path: Path, material: Path) -> None:
    pruning, module = run("fit")
    written, _ = load_pretrained(str(tmp_path / "pruned"))
    assert all(w.equal(written.state_dict()[name]) for name, w in weights(module).items())
    report = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    hashes = report.pop("content")
    assert hashes["model.safetensors"].startswith("sampled ")
    assert hashes["tokenizer.json"].startswith("sha256 ")
    assert report == pruning.report
    recipe = report["recipe"]
    assert recipe["callback"] == {
        "class_path": "prunelit.callbacks.Pruning",
        "init_args": {"schedule": None},
    }
    assert recipe["model"] == module.recipe()
    assert recipe["model"]["source"] == str(material / "dense")
    assert recipe["pruner"] == describe(Wanda(Unstructured(0.5)))
    assert {key: recipe["calibration"][key] for key in ("sequences", "tokens", "batches")} == {
        "sequences": 5,
        "tokens": 80,
        "batches": 3,
    }
    assert len(recipe["calibration"]["sha256"]) == 64


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize(
    "pruner", [BlockDrop(1), SublayerDrop(1), Neuron(0.25), Heads(0.5), Hidden(0.25)]
)
def test_the_measured_model_is_the_one_that_is_written(
    run: Run, stage: str, pruner: Pruner, tmp_path: Path
) -> None:
    first, module = run(stage, pruner=pruner)  # `validate` prunes in memory
    assert module.pair.dense is not None
    assert first.report is not None
    if stage == "validate":
        run("fit", pruner=pruner)
    second, again = run("validate", pruner=pruner)
    assert second.report is not None
    assert weights(module).keys() == weights(again).keys()
    assert same(module, again)
    assert module.pair.removed_blocks == again.pair.removed_blocks
    assert str(module.results) == str(again.results)
    sizes = [sum(p.numel() for p in m.parameters()) for m in module.pair.models().values()]
    assert sizes == [first.report["parameters"], first.report["stored_parameters"]]
    assert sizes[1] < sizes[0]
    for key in ("sparsity", "removed", "stored_parameters", "stored_bytes"):
        assert first.report[key] == second.report[key], key


def test_custom_code_is_written_where_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    pruner = SublayerDrop(1, "mlp")
    run("fit", pruner=pruner)
    assert not list((tmp_path / "pruned").glob("*.py"))
    _, module = run("fit", pruner=pruner, custom_code=True)  # the recipe is the same
    config = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "modeling_prunelit.PrunelitConfig"}
    assert (tmp_path / "pruned" / "modeling_prunelit.py").is_file()
    pruning, again = run("validate", pruner=pruner)
    assert pruning.written == tmp_path / "pruned"
    assert same(module, again)
    # A method for weights leaves a model that is uneven already as it is.
    run("fit", source=tmp_path / "pruned", output=str(tmp_path / "twice"), custom_code=True)
    assert (tmp_path / "twice" / "modeling_prunelit.py").is_file()


@pytest.mark.parametrize("pruner", [Wanda(Unstructured(0.5)), BlockDrop(1), Budget(0.9)])
def test_custom_code_is_refused_before_any_work_where_no_model_needs_it(
    run: Run, pruner: Pruner, tmp_path: Path
) -> None:
    name = type(pruner).__name__
    with pytest.raises(InputError, match=f"`custom_code` true but got {name}: transformers loads"):
        run("fit", pruner=pruner, custom_code=True)
    assert not list(tmp_path.glob("pruned*"))


def test_validate_takes_the_written_model_where_the_recipe_is_the_same(
    run: Run, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, fitted = run("fit")
    capfd.readouterr()
    caplog.clear()
    pruning, module = run("validate")
    assert "Using the pruned model in" in caplog.text
    assert "Achieved sparsity" not in capfd.readouterr().out
    assert same(module, fitted)
    assert [row.value for row in module.results] == [row.value for row in fitted.results]
    assert pruning.report is not None
    assert pruning.report["sparsity"] == 0.5


def test_validate_prunes_in_memory_where_the_recipe_is_another(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("fit")
    before = {path: path.read_bytes() for path in (tmp_path / "pruned").iterdir()}
    caplog.clear()
    pruning, module = run("validate", ratio=0.25)
    assert "Pruning in memory, since" in caplog.text
    assert "was pruned by another recipe" in caplog.text
    assert pruning.report is not None
    assert pruning.report["sparsity"] == 0.25
    assert float((weights(module)["model.layers.0.mlp.up_proj.weight"] == 0).float().mean()) == 0.25
    assert {path: path.read_bytes() for path in (tmp_path / "pruned").iterdir()} == before


def test_validate_prunes_in_memory_where_nothing_was_written(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pruning, _ = run("validate")
    assert "holds no pruned model; `fit` would write it" in caplog.text
    assert pruning.report is not None
    assert not (tmp_path / "pruned").exists()


def test_a_folder_without_a_recipe_is_not_taken(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "pruning.json").write_text("{}")
    run("validate")
    assert "was pruned by another recipe" in caplog.text


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_recipe_has_its_own_folder_and_validate_finds_it(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("fit")
    before = content(tmp_path / "pruned")
    _, fitted = run("fit", ratio=0.25)
    assert content(tmp_path / "pruned") == before
    (other,) = tmp_path.glob("pruned-*")
    assert json.loads((other / "pruning.json").read_text())["sparsity"] == 0.25
    assert f"The pruned model is in {other}." in caplog.text
    run("fit", ratio=0.25)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "pruned", other])
    for ratio, folder in ((0.25, other), (0.5, tmp_path / "pruned")):
        caplog.clear()
        _, again = run("validate", ratio=ratio)
        assert f"Using the pruned model in {folder}: its recipe is this one" in caplog.text
        assert same(again, fitted) == (ratio == 0.25)
    shutil.rmtree(tmp_path / "pruned")
    for stage in ("validate", "fit"):
        pruning, _ = run(stage, ratio=0.25)
        assert pruning.written == other


def test_a_chosen_folder_with_another_recipe_is_refused_with_both_values(
    run: Run, tmp_path: Path
) -> None:
    run("fit", output=str(tmp_path / "mine"))
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"pruner\.sparsity\.ratio: 0\.25 now, 0\.5 there"):
        run("fit", ratio=0.25, output=str(tmp_path / "mine"))
    assert content(tmp_path) == before


def edit_weights(folder: Path) -> None:
    """Change one value, and keep size and time of the file."""
    path = folder / "model.safetensors"
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns


def edit_report(folder: Path) -> None:
    path = folder / "pruning.json"
    path.write_text(path.read_text().replace('"sparsity": 0.5', '"sparsity": 0.4', 1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit_weights, "model.safetensors"),
        (edit_report, "pruning.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json"),
        (lambda folder: (folder / "masks.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}"), "masks"),
    ],
    ids=["weights", "report", "removed", "added", "masks"],
)
def test_a_pruned_model_that_was_changed_is_refused(
    run: Run, tmp_path: Path, change: Callable[[Path], object], named: str
) -> None:
    run("fit")
    change(tmp_path / "pruned")
    before = content(tmp_path)
    for stage in ("validate", "fit"):
        with pytest.raises(InputError, match=f"was changed after it was written: {named}"):
            run(stage)
    assert content(tmp_path) == before


def test_a_note_in_the_folder_of_the_pruned_model_is_no_change(run: Run, tmp_path: Path) -> None:
    run("fit")
    (tmp_path / "pruned" / "README.md").write_text("my best one")
    pruning, _ = run("validate")
    assert pruning.written == tmp_path / "pruned"


def test_the_output_folder_can_be_chosen(run: Run, tmp_path: Path) -> None:
    run("fit", output=str(tmp_path / "elsewhere" / "model"))
    assert (tmp_path / "elsewhere" / "model" / "pruning.json").is_file()
    assert not (tmp_path / "pruned").exists()


class Untouched(Pruning):
    def apply(self, *arguments: Any) -> Any:
        raise AssertionError("pruning started")


def test_a_foreign_folder_is_refused_before_weights_are_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"exists and holds no pruning\.json"):
        run("fit", callback=Untouched)
    assert [path.name for path in (tmp_path / "pruned").iterdir()] == ["thesis.txt"]


class Twice(Pruning):
    """A schedule of a user: half of the ratio in the first round."""

    def __init__(self, pruner: Wanda, output: str | None = None, first: float = 0.25) -> None:
        super().__init__(pruner, output)
        self.first = first

    def apply(self, trainer: Trainer, module: PairedLM, data: PruneData) -> Any:
        pruner, self.pruner = self.pruner, Wanda(Unstructured(self.first))
        super().apply(trainer, module, data)
        self.pruner = pruner
        return super().apply(trainer, module, data)


def test_a_callback_of_ones_own_prunes_differently_and_says_so(run: Run) -> None:
    _, once = run("validate")
    pruning, twice = run("validate", callback=Twice)
    assert pruning.report is not None
    assert pruning.report["sparsity"] == 0.5
    assert pruning.report["recipe"]["callback"]["class_path"].endswith(".Twice")
    assert not same(once, twice)


def test_a_strategy_that_shards_weights_is_refused(run: Run) -> None:
    class Sharding(Strategy): ...

    class Disguised(Pruning):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            own = trainer.strategy
            Sharding.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
            trainer._accelerator_connector.strategy = Sharding()  # type: ignore[abstract]
            try:
                super().setup(trainer, pl_module, stage)
            finally:
                trainer._accelerator_connector.strategy = own

    with pytest.raises(InputError, match="`ddp` but got Sharding: set `model"):
        run("fit", callback=Disguised)


def test_other_arguments_of_a_callback_are_another_recipe(run: Run, tmp_path: Path) -> None:
    pruning, _ = run("fit", callback=Twice, first=0.25)
    again, _ = run("validate", callback=Twice, first=0.25)
    assert again.report == pruning.report
    other, _ = run("validate", callback=Twice, first=0.4)
    assert other.report is not None
    assert pruning.report is not None
    assert other.report["recipe"]["callback"]["init_args"] == {"first": 0.4}
    assert other.report["recipe"] != pruning.report["recipe"]


@pytest.fixture
def dense(material: Path, tmp_path: Path) -> Path:
    """A copy of the dense model to change."""
    return Path(shutil.copytree(material / "dense", tmp_path / "dense"))


def test_other_dense_weights_with_the_same_size_and_time_are_another_recipe(
    run: Run, tmp_path: Path, dense: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("fit", source=dense)
    edit_weights(dense)
    again, _ = run("validate", source=dense)
    assert "another recipe (model.version.model.safetensors: sampled " in caplog.text
    assert again.written is None


def test_a_copy_of_the_dense_model_with_other_times_is_the_same_recipe(
    run: Run, tmp_path: Path, dense: Path
) -> None:
    run("fit", source=dense)
    moved = dense.rename(tmp_path / "moved")
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    again, _ = run("validate", source=moved)
    assert again.written == tmp_path / "pruned"
    # All weights are compared if both runs hashed them.
    run("fit", source=moved, full_hash=True)
    again, _ = run("validate", source=moved, full_hash=True)
    assert again.written == tmp_path / "pruned"
    (tmp_path / "moved" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError):
        run("validate", source=tmp_path / "moved")


def test_the_source_as_output_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    run("fit")
    base = tmp_path / "pruned"
    (tmp_path / "link").symlink_to(base)
    before = content(tmp_path)
    places = {
        base: (None, str(tmp_path / "link"), str(base / "again"), str(tmp_path)),
        tmp_path / "link": (None, str(base)),
    }
    for source, outputs in places.items():
        for output in outputs:
            for stage in ("fit", "validate"):
                with pytest.raises(InputError, match="apart from the model that is pruned"):
                    run(stage, source=source, output=output, callback=Untouched)
    assert content(tmp_path) == before


def test_results_name_the_recipe_and_the_pruned_model_and_replace_no_others(
    run: Run, tmp_path: Path
) -> None:
    run("fit", results=True)
    first = read_results(tmp_path / "results.jsonl")
    assert {row.pruned for row in first} == {str(tmp_path / "pruned")}
    run("validate", results=True)  # the same results
    assert not list(tmp_path.glob("earlier_*"))
    for ratio, kept in ((0.25, 1), (0.3, 2)):
        before = content(tmp_path / "figures")
        run("validate", results=True, ratio=ratio)
        (row, *_) = read_results(tmp_path / "results.jsonl")
        assert row.pruned is None
        assert row.recipe != first[0].recipe
        earlier = tmp_path / f"earlier_{kept}"
        assert sorted(content(earlier / "figures").values()) == sorted(before.values())
    again = read_results(tmp_path / "earlier_1" / "results.jsonl")
    assert [(row.recipe, row.pruned) for row in again] == [(r.recipe, r.pruned) for r in first]


def test_the_folder_that_a_run_writes_is_its_own(run: Run, tmp_path: Path) -> None:
    run("fit")
    (first,) = tmp_path.iterdir()
    with only_writer(first):  # another run prunes by the recipe of `pruned`
        pruning, _ = run("fit", ratio=0.25)
        with pytest.raises(InputError, match=f"Another run is writing '{first}'"):
            run("fit")
    second = pruning.written
    assert second is not None
    assert second != first
    with only_writer(second), pytest.raises(InputError, match=f"is writing '{second}'"):
        run("fit", ratio=0.25)
    run("fit", ratio=0.25)
    assert sorted(tmp_path.iterdir()) == sorted([first, second])


def test_results_without_a_logger_have_one_writer(run: Run, tmp_path: Path) -> None:
    with only_writer(tmp_path / "results.jsonl"), pytest.raises(InputError, match="is writing '"):
        run("validate", results=True, callback=Untouched)
    run("validate", results=True)
