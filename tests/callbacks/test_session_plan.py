"""The plan of a session."""

from pathlib import Path

import pytest

from prunelit import CalibrationText, InputError
from prunelit.callbacks.session import open_session
from prunelit.callbacks.session_plan import find_settings
from prunelit.core.datamodule import PruneData
from prunelit.core.knobs import read_knobs
from prunelit.core.module import PairedLM
from prunelit.pruners import SublayerDrop, Wanda
from prunelit.report.page.records import write_record
from prunelit.report.results import Result, write_results
from prunelit.report.variants import Point, Variant
from prunelit.sparsity import Unstructured
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer

KNOBS = read_knobs(
    {"wanda": Wanda(Unstructured(0.5)), "drop": SublayerDrop(1)}, "wanda=0.2,0.4;drop=1,9"
)


def record(folder: Path, name: str, point: Point | None) -> None:
    results = [Result("text", "perplexity", "pruned", 2.0, 0.1, 9, {})]
    (folder / name).mkdir()
    write_results(results, folder / name / "results.jsonl")
    write_record(folder / name, Variant(name, results, {}, 0.5, point=point), None)


def test_settings_that_an_earlier_run_measured(tmp_path: Path) -> None:
    path = "sparsity.ratio"
    record(tmp_path, "wanda_0.3", Point("wanda", path, 0.3, "id"))
    record(tmp_path, "wanda_0.2_text2", Point("wanda", path, 0.2, "id", 1))  # another text
    record(tmp_path, "wanda_0.25", Point("wanda", "other.path", 0.25, "id"))
    record(tmp_path, "other_name", Point("wanda", path, 0.35, "id"))
    record(tmp_path, "ria_0.3", Point("ria", path, 0.3, "id"))
    record(tmp_path, "alone", None)
    found = find_settings(tmp_path, KNOBS)
    assert found == {"wanda_0.3": (KNOBS["wanda"], 0.3)}


@pytest.fixture
def trainer(tmp_path: Path) -> PruneTrainer:
    return PruneTrainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        max_epochs=0,
    )


def test_a_plan_prunes_nothing(trainer: PruneTrainer, material: Path, tmp_path: Path) -> None:
    text = str(material / "text.jsonl")
    calibration = CalibrationText(text, sequences=5, length=16)
    data = PruneData(calibration, [Perplexity(text, length=20, limit=3)])
    module = PairedLM(str(material / "dense"))
    wanda, drop = KNOBS["wanda"], KNOBS["drop"]
    needed = {"wanda_0.2": wanda.build(0.2), "drop_1": drop.build(1)}
    extra = {"wanda_0.3": wanda.build(0.3)}
    places = {"wanda_0.2": (wanda, 0.2), "drop_1": (drop, 1), "wanda_0.3": (wanda, 0.3)}
    with open_session(trainer, module, data, needed) as session:
        session.plan(needed, places, extra)
        # A setting that is not needed does not hide that the method reads text.
        assert session.reads_text("wanda")
        assert session.known == set()
        with pytest.raises(InputError, match=r"Variant 'drop_9' cannot be pruned\."):
            session.plan({"drop_9": drop.build(9)}, {"drop_9": (drop, 9)})
    assert not list(tmp_path.rglob("pruning.json"))
