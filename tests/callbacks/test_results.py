"""Files and tables that a run writes, read back."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from prunelit.callbacks.results import printed_tables
from prunelit.report.results import Result, read_results, scalar_name
from prunelit.report.tables import brief_lines, show
from prunelit.tasks import TaskReport


@pytest.fixture(scope="module")
def board(fitted: Path) -> Path:
    return fitted / "run" / "board" / "only"


@pytest.fixture(scope="module")
def rows(board: Path) -> list[Result]:
    return read_results(board / "results.jsonl")


@pytest.fixture(scope="module")
def events(board: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(board), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_every_task_has_its_rows(rows: list[Result]) -> None:
    metrics: dict[str, set[str]] = {}
    for row in rows:
        metrics.setdefault(row.task, set()).add(row.metric)
    assert list(metrics) == [
        *("deviation", "perplexity", "multiple_choice", "retrieval", "rollout")
    ]
    assert {"embedding_cosine", "logit_mse", "kl_dense_pruned"} <= metrics["deviation"]
    assert metrics["perplexity"] == {"nll", "perplexity"}
    assert {"acc", "acc_norm", "agreement", "mcnemar_p"} <= metrics["multiple_choice"]
    assert {"mrr", "recall@1", "ndcg@10"} <= metrics["retrieval"]
    assert {"exact_match", "contains", "diverged"} <= metrics["rollout"]
    assert {row.n for row in rows if row.task == "deviation"} == {5}
    assert {row.n for row in rows if row.task in ("multiple_choice", "rollout")} == {7}


def test_the_uses_of_a_triad_are_of_the_same_items(rows: list[Result]) -> None:
    tasks = ("multiple_choice", "retrieval", "rollout")
    assert len({row.details["rows_sha256"] for row in rows if row.task in tasks}) == 1


def test_the_folder_holds_results_and_figures(board: Path) -> None:
    names = {str(path.relative_to(board)) for path in board.rglob("*.*")}
    assert {"results.jsonl", "figures/scores.png", "figures/sparsity.png"} <= names
    for name in ("scores", "sparsity"):
        assert (board / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_verbose_prints_every_table(board: Path, rows: list[Result], capsys: Any) -> None:
    text = "\n".join(brief_lines(rows))
    assert "recall@10" not in text
    for table in printed_tables([TaskReport(rows)]):
        show(table)
    assert "recall@10" in capsys.readouterr().out


def test_a_task_with_a_table_of_its_own_is_not_in_the_table_of_results() -> None:
    text = TaskReport([Result("text", "perplexity", "dense", 44.0, 1.0, 3)])
    moved = TaskReport(
        [Result("moved", "kl_dense_pruned", "pair", 0.5, 0.1, 3)], table=Table(title="moved")
    )
    common, own = printed_tables([moved, text])
    assert common.title == "Dense against pruned (value ± standard error)"
    assert common.row_count == 1
    assert own is moved.table
    assert printed_tables([moved]) == [own]


def test_every_result_is_a_scalar_of_tensorboard(
    rows: list[Result], events: EventAccumulator
) -> None:
    tags = set(events.Tags()["scalars"])
    for row in rows:
        name = scalar_name(row)
        assert name in tags
        assert events.Scalars(name)[-1].value == pytest.approx(
            row.value, rel=1e-6, abs=1e-7, nan_ok=True
        )
    assert {tag for tag in tags if tag.startswith("val/")} == {scalar_name(row) for row in rows}


def test_the_figures_are_images_of_tensorboard(events: EventAccumulator) -> None:
    assert set(events.Tags()["images"]) == {"scores", "retained", "sparsity"}
    image = events.Images("sparsity")[-1]
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert min(image.width, image.height) > 100


def test_the_texts_are_a_table_of_tensorboard(events: EventAccumulator) -> None:
    (entry,) = events.Tensors("val/rollout/texts/text_summary")
    lines = entry.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| prompt | target | dense | pruned |"
    assert len(lines) == 2 + 7
    assert lines[2].startswith("| What is the capital of France? | Paris | ")


def test_hyperparameters_stand_beside_the_final_metrics(events: EventAccumulator) -> None:
    def content(tag: str) -> Any:
        data = events.SummaryMetadata(tag).plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(data)

    session = content("_hparams_/session_start_info").session_start_info
    values = {key: (v.string_value or v.number_value) for key, v in session.hparams.items()}
    assert values["pruner"] == "Wanda"
    assert values["sparsity"] == "Unstructured"
    assert values["sparsity.ratio"] == 0.5
    assert values["model"].endswith("dense")
    scalars = set(events.Tags()["scalars"])
    assert {"sparsity", "val/multiple_choice/acc", "val/perplexity/perplexity_dense"} <= scalars
    assert {"stored_parameters", "stored_bytes"} <= scalars
    assert events.Scalars("sparsity")[-1].value == 0.5


def test_the_options_are_in_the_yaml_beside_them(fitted: Path) -> None:
    options = yaml.safe_load((fitted / "run" / "board" / "only" / "hparams.yaml").read_text())
    assert options["pruner"] == "Wanda"
    assert options["sparsity.ratio"] == 0.5


def test_the_gains_are_measured(fitted: Path, board: Path) -> None:
    gains = json.loads((board / "gains.json").read_text())
    assert gains["parameters"]["dense"] == gains["parameters"]["pruned"] > 0
    assert gains["file_bytes"]["pruned"] > gains["file_bytes"]["dense"]  # the masks
    assert gains["speed"]["decode"]["low"] <= gains["speed"]["decode"]["high"]
    assert gains["loads_in"].startswith("stock transformers")
    assert "Gains: parameters none; memory none; reading " in (fitted / "stdout").read_text()


def test_the_run_closes_with_the_table(fitted: Path) -> None:
    printed = (fitted / "stdout").read_text()
    assert "Achieved sparsity 0.5000" in printed
    for text in ("task", "score", "dense", "pruned", "kl_dense_pruned", "acc", "mrr"):
        assert text in printed
    assert "recall@10" not in printed
    lines = printed.splitlines()
    first = next(
        n for n, line in enumerate(lines) if line.startswith(("Loses", "Cannot", "Keeps", "No "))
    )
    assert first <= 25
    assert max(map(len, lines[:-1])) <= 80
    page = fitted / "run" / "board" / "only" / "report.html"
    assert printed.splitlines()[-1] == f"Page: {page}"
    html = page.read_text(encoding="utf-8")
    assert "What got worse" in html
    assert str(fitted / "run" / "board" / "only" / "config.yaml") in html
    assert "## Gains" in (fitted / "run" / "pruned" / "README.md").read_text(encoding="utf-8")
    said = (fitted / "stderr").read_text()
    assert f"The pruned model is in {fitted / 'run' / 'pruned'}." in said
    assert f"Results: {fitted / 'run' / 'board' / 'only' / 'results.jsonl'}" in said
    assert f"tensorboard --logdir {fitted / 'run'}" in said


def test_without_a_logger_results_lie_in_the_root(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_config(tmp_path)
    config["trainer"]["logger"] = False
    del config["pruning"]
    cli("validate", "--config", str(save_config(tmp_path, config)))
    assert "Nothing is pruned, since `pruning` is not given" in caplog.text
    rows = read_results(tmp_path / "run" / "results.jsonl")
    # Without a pruning callback both models are the dense one.
    assert {row.value for row in rows if row.model == "difference"} == {0}
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        *("scores.png", "scores.csv", "retained.png", "retained.csv"),
    }


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_numbers_of_the_uses_are_those_of_the_rows(board: Path, rows: list[Result]) -> None:
    found = lines(board / "figures" / "scores.csv")
    assert [(line["metric"], line["model"]) for line in found] == [
        *(("acc", "dense"), ("acc", "pruned"), ("mrr", "dense"), ("mrr", "pruned")),
        *(("contains", "dense"), ("contains", "pruned")),
    ]
    for line in found:
        key = line["task"], line["metric"], line["model"]
        (row,) = [row for row in rows if (row.task, row.metric, row.model) == key]
        assert (float(line["value"]), float(line["standard_error"])) == (
            *(row.value, row.standard_error),
        )
        assert int(line["n"]) == row.n
        assert line["chance"] == str(row.details.get("chance", row.details.get("chance_mrr", "")))


def test_the_numbers_of_the_sparsity_are_those_of_the_report(board: Path, fitted: Path) -> None:
    report = json.loads((fitted / "run" / "pruned" / "pruning.json").read_text())
    found = lines(board / "figures" / "sparsity.csv")
    assert len(found) == 3 * 7
    for line, tensor in zip(found, report["tensors"], strict=True):
        assert line["name"] == tensor["name"]
        assert float(line["sparsity"]) == tensor["sparsity"]


UNSOUND = """
from prunelit.errors import InputError
from prunelit.tasks import Generation

class Unsound(Generation):
    def report(self, table):
        raise InputError("These items cannot be summed up.")
"""


def test_a_task_that_cannot_be_summed_up_takes_no_other_with_it(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    (tmp_path / "unsound.py").write_text(UNSOUND)
    config = make_config(tmp_path)
    perplexity, rollout = (config["data"]["tasks"][place] for place in (1, -1))
    path = rollout["init_args"]["path"]
    unsound = {"class_path": "unsound.Unsound", "init_args": {"path": path, "max_new_tokens": 2}}
    config["data"]["tasks"] = [unsound, perplexity]
    save_config(tmp_path, config)
    done = forked(tmp_path, "validate", "--config", "config.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("These items cannot be summed up.")
    (file,) = tmp_path.rglob("results.jsonl")
    assert "The task 'generation' has no results: These items cannot be" in done.stderr
    assert f"Results of the other tasks: {file}" in done.stderr
    assert {row.task for row in read_results(file)} == {"perplexity"}
    # The journal of the failed task is kept for a later run.
    assert list(tmp_path.rglob("generation-*.jsonl"))


def test_a_task_that_cannot_be_summed_up_ends_training(
    tmp_path: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> None:
    (tmp_path / "unsound.py").write_text(UNSOUND)
    config = make_config(tmp_path)
    path = config["data"]["tasks"][-1]["init_args"]["path"]
    task = {"class_path": "unsound.Unsound", "init_args": {"path": path, "max_new_tokens": 2}}
    config["data"]["tasks"] = [task]
    text = config["data"]["calibration"]["path"]
    config["data"]["recovery"] = {"path": text, "sequences": 2, "length": 16, "batch_size": 1}
    config["model"]["recovery"] = {"lm": 1.0}
    # Early stopping would report that its metric is missing.
    stopping = "lightning.pytorch.callbacks.EarlyStopping"
    watched = {"class_path": stopping, "init_args": {"monitor": "val/generation/contains_pruned"}}
    config["trainer"] |= {"max_epochs": 1, "val_check_interval": 0.5, "callbacks": [watched]}
    save_config(tmp_path, config)
    done = forked(tmp_path, "fit", "--config", "config.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "prunelit: error: These items cannot be summed up."
