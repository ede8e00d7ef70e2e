"""`prunelit search` and `sweep --grid`: settings of a knob."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from prunelit.report.page.commands import run_command

Config = dict[str, Any]

# A task whose items are right as long as a matrix has few zeros, and one of another use.
FALLING = '''
import os
import signal

import torch

from prunelit.tasks import Task, TaskReport
from prunelit.tasks.retention import paired_scores, retained_results, score_details


class Falling(Task):
    """Right up to a share of zeros, above it wrong."""

    def __init__(self, name="falling", use="retrieval", up_to=0.25, again=1.0):
        super().__init__(name, batch_size=200)
        self.use = use
        self.up_to = up_to
        self.again = again

    def read(self):
        pass

    def prepare(self, tokenizer):
        return 200

    def collate(self, indices):
        return {"number": torch.tensor(indices)}

    def step(self, pair, batch):
        values = {}
        for name, model in pair.models().items():
            zeros = float((model.model.layers[0].mlp.up_proj.weight == 0).double().mean())
            if "DIES_ABOVE" in os.environ and zeros > float(os.environ["DIES_ABOVE"]):
                os.kill(os.getpid(), signal.SIGKILL)
            right = zeros <= self.up_to + 0.01 or zeros >= self.again
            values[f"{name}/acc"] = torch.full((len(batch["number"]),), float(right))
        return values

    def report(self, table):
        details = {**score_details(self.use, "acc"), "path": "falling", "split": "all"}
        columns = {name: table[name] for name in ("dense/acc", "pruned/acc")}
        scores = paired_scores(columns, "acc", 0.0)
        results = table.paired_results(self.name, ["acc"], details)
        return TaskReport(results + retained_results(self.name, scores, details), scores=scores)
'''
GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def without_main_score(config: Config) -> None:
    for task in config["data"]["tasks"]:
        task["init_args"]["use"] = None


def falling(name: str, use: str, **options: float) -> Config:
    return {"class_path": "falling.Falling", "init_args": {"name": name, "use": use, **options}}


@pytest.fixture
def config(
    tmp_path: Path, make_config: Callable[[Path], Config], monkeypatch: pytest.MonkeyPatch
) -> Config:
    """A search of one method for two uses."""
    (tmp_path / "falling.py").write_text(FALLING)
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path)
    config["variants"] = {"wanda": config.pop("pruning")["init_args"]["pruner"]}
    config["grid"] = {"wanda": GRID}
    del config["trainer"]["logger"]["init_args"]["version"]
    config["data"]["tasks"] = [
        falling("found", "retrieval", up_to=0.5),
        falling("written", "generation", up_to=0.2),
    ]
    return config


@pytest.fixture
def run(
    tmp_path: Path,
    config: Config,
    cli: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., None]:
    """`run(subcommand, *options)` runs the configuration in this process, with empty figures."""
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **options: Path(path).touch())
    monkeypatch.setattr(SummaryWriter, "add_figure", lambda *_, **options: None)

    def start(subcommand: str, *options: str) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        cli(subcommand, "--config", str(path), *options)

    return start


def measured(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in (folder / "run" / "board").glob("*/results.jsonl"))


def answers(folder: Path) -> dict[str, tuple[float | None, float | None]]:
    """Read the largest setting that keeps and the smallest that does not, by use."""
    data = json.loads((folder / "run" / "board" / "search.json").read_text())
    ends = ("largest_that_keeps", "smallest_that_does_not")
    return {
        one["use"]: tuple(None if one[end] is None else one[end]["setting"] for end in ends)
        for one in data["answers"]
    }


def drawn(folder: Path) -> list[dict[str, str]]:
    path = folder / "run" / "board" / "figures" / "score_by_setting.csv"
    return list(csv.DictReader(path.read_text().splitlines()))


def steps(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def test_the_largest_setting_of_each_use(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("search")
    assert answers(tmp_path) == {"retrieval": (0.5, 0.6), "generation": (0.2, 0.3)}
    board = tmp_path / "run" / "board"
    assert not (board / "wanda_0.1").exists()
    # 0.4, 0.6 and 0.5 for one use; the other one needs 0.2 and 0.3 too.
    assert measured(tmp_path) == [f"wanda_{setting}" for setting in (0.2, 0.3, 0.4, 0.5, 0.6)]
    captured = capsys.readouterr()
    out = captured.out
    before, _, after = out.partition("Largest setting that keeps each use")
    said = [*captured.err.splitlines(), *before.splitlines()]
    assert len(said) <= 25, said
    assert all(len(line) <= 80 for line in [*before.splitlines(), *after.splitlines()[:-1]])
    text = " ".join(out.split())
    for line in (
        "wanda ratio 0.4: keeps retrieval; loses generation.",
        "wanda keeps retrieval up to ratio 0.5 (1.00 [0.98, 1.02], margin 0.95); 0.6 loses",
        "wanda keeps generation up to ratio 0.2 (1.00 [0.98, 1.02], margin 0.95); 0.3 loses",
        "5 settings were tried. Holm's procedure holds the chance of a wrong verdict at 5% over",
    ):
        assert line in text, out
    page = (board / "report.html").read_text()
    assert "<h1>Largest setting that keeps each use</h1>" in page
    assert out.splitlines()[-1].endswith("board/report.html")
    lines = drawn(tmp_path)
    assert [line["setting"] for line in lines if line["use"] == "retrieval"] == [
        *("0.2", "0.3", "0.4", "0.5", "0.6")
    ]
    assert (board / "figures" / "score_by_setting.png").is_file()
    # The step is the setting; 0 is the dense model.
    own = steps(board / "overview" / "wanda", "by_ratio_percent/found/acc")
    assert own == [(0, 1), (20, 1), (30, 1), (40, 1), (50, 1), (60, 0)]
    # HPARAMS shows the own options of each variant.
    for setting in (0.2, 0.6):
        options = EventAccumulator(str(board / f"wanda_{setting}"))
        options.Reload()
        summary = options.SummaryMetadata("_hparams_/session_start_info")
        content = plugin_data_pb2.HParamsPluginData.FromString(summary.plugin_data.content)
        found = content.session_start_info.hparams
        assert found["pruner"].string_value == "Wanda"
        assert found["sparsity.ratio"].number_value == setting
    # A second search has nothing to measure, and a finer one measures what is new.
    before = {path: path.stat().st_mtime_ns for path in board.glob("*/results.jsonl")}
    run("search", "--grid", "wanda=0.2,0.25,0.5", "--uses", "[generation]")
    assert answers(tmp_path) == {"generation": (0.2, 0.25)}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(measured(tmp_path)) - {path.parent.name for path in before} == {"wanda_0.25"}
    assert len({line["setting"] for line in drawn(tmp_path)}) == 6


@pytest.mark.full
def test_what_keeps_again_above_is_no_answer(
    config: Config, run: Callable[..., None], tmp_path: Path
) -> None:
    config["data"]["tasks"] = [falling("found", "retrieval", up_to=0.1, again=0.38)]
    run("sweep", "--trainer.logger", "false", "--grid", "wanda=0.2,0.4")
    run("search", "--trainer.logger", "false", "--grid", "wanda=0.1,0.3")
    found = json.loads((tmp_path / "run" / "search.json").read_text())["answers"][0]
    assert found["largest_that_keeps"]["setting"] == 0.1
    assert found["uneven"] == [0.4]
    assert found["smallest_that_does_not"]["setting"] == 0.2
    assert "0.4 keeps it: the scores do not fall evenly." in found["sentence"]
    assert [one["setting"] for one in found["measured"]] == [0.1, 0.2, 0.4]


@pytest.mark.full
def test_other_calibration_text_shows_the_spread(
    config: Config, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["grid"] = {"wanda": [0.5, 0.6]}
    config["data"]["tasks"].pop()
    run("search", "--seeds", "2", "--trainer.logger", "false")
    texts = {
        name: json.loads((tmp_path / "run" / name / "pruned" / "pruning.json").read_text())[
            "recipe"
        ]["calibration"]
        for name in ("wanda_0.5", "wanda_0.5_text2", "wanda_0.6_text2")
    }
    assert texts["wanda_0.5_text2"] == texts["wanda_0.6_text2"] != texts["wanda_0.5"]
    out = " ".join(capsys.readouterr().out.split())
    assert "0.5: 1.00 to 1.00, 2 of 2 texts keep; 0.6: 0.00 to 0.00" in out
    assert "4 settings were tried" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "0.5: 1.00 to 1.00, 2 of 2 texts keep" in page


def test_a_killed_search_goes_on(
    config: Config, tmp_path: Path, run: Callable[..., None], forked: Callable[..., Any]
) -> None:
    config["grid"] = {"wanda": [0.4, 0.6]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = forked(tmp_path, "search", "--config", str(path), variables={"DIES_ABOVE": "0.55"})
    assert done.returncode == -9, done.stderr
    assert measured(tmp_path) == ["wanda_0.4"]
    before = (tmp_path / "run" / "board" / "wanda_0.4" / "variant.json").stat().st_mtime_ns
    run("search")
    after = (tmp_path / "run" / "board" / "wanda_0.4" / "variant.json").stat().st_mtime_ns
    assert after == before
    assert answers(tmp_path) == {"retrieval": (0.4, 0.6), "generation": (None, 0.4)}


@pytest.mark.distributed
def test_two_processes_find_what_one_finds(
    config: Config, tmp_path: Path, forked: Callable[..., Any]
) -> None:
    config["grid"] = {"wanda": [0.2, 0.5, 0.6]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    options = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--seeds", "2")
    for _ in range(2):  # the second one takes what the first one measured
        done = forked(tmp_path, "search", "--config", str(path), *options, ranks=2)
        assert done.returncode == 0, done.stderr
        assert answers(tmp_path) == {"retrieval": (0.5, 0.6), "generation": (0.2, 0.5)}
        assert done.stdout.count("Largest setting that keeps each use") == 1
    assert " ".join(done.stdout.split()).count("(measured already)") == 6


def test_a_sweep_measures_the_grid_and_a_search_takes_it(
    config: Config,
    run: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config["variants"]["drop"] = {"class_path": "prunelit.pruners.SublayerDrop"}
    run("sweep", "--grid", "wanda=0.2,0.55")
    out = capsys.readouterr().out
    assert "wanda_0.55 (2 of 3): loses retrieval, generation." in out
    # The settings have answers; the verdicts of a variant without a setting stand before them.
    assert out.index("Verdicts: ") < out.index("Largest setting that keeps each use")
    assert answers(tmp_path) == {"retrieval": (0.2, 0.55), "generation": (0.2, 0.55)}
    assert measured(tmp_path) == ["drop", "wanda_0.2", "wanda_0.55"]
    own = steps(tmp_path / "run" / "board" / "overview" / "wanda", "by_ratio_percent/found/kept")
    assert own == [(20, 1), (55, 0)]
    run("search", "--grid", "wanda=0.2,0.3")
    # The setting that is not in the grid counts too.
    assert answers(tmp_path) == {"retrieval": (0.3, 0.55), "generation": (0.2, 0.3)}
    assert "Not searched, as `grid` has no settings of them: drop." in caplog.text
    assert "drop</bdi>" not in (tmp_path / "run" / "board" / "report.html").read_text()
    # A sweep in the folder of a search adds to its answers.
    run("sweep", "--grid", "wanda=0.4")
    assert answers(tmp_path) == {"retrieval": (0.4, 0.55), "generation": (0.2, 0.3)}
    assert len({line["setting"] for line in drawn(tmp_path)}) == 4
    # `report` gives what the sweep gave, and other margins other answers.
    page = (tmp_path / "run" / "board" / "report.html").read_bytes()
    run_command(["report", str(tmp_path / "run" / "board")])
    assert (tmp_path / "run" / "board" / "report.html").read_bytes() == page


def test_a_search_can_end_with_status_3(
    run: Callable[..., None], config: Config, tmp_path: Path
) -> None:
    config["grid"] = {"wanda": [0.2]}
    run("search", "--fail_on", "loses")
    with pytest.raises(SystemExit) as left:
        run("search", "--fail_on", "loses", "--grid", "wanda=0.4", "--trainer.logger", "false")
    assert left.value.code == 3


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda c: c.update(grid={}), "Expected settings in `grid` to search"),
        (lambda c: c.pop("grid"), "Expected a value for `grid`: give it"),
        (lambda c: c.update(grid={"wnada": [0.1]}), "`grid` names 'wnada'"),
        (lambda c: c.update(grid={"wanda": [0.2, 0.1]}), "in ascending order but 0.1 follows 0.2"),
        (lambda c: c.update(grid={"wanda": [0.2, 1.0]}), "The setting 1 of 'wanda' in `grid`"),
        (lambda c: c.update(knobs={"wanda": "sparsity"}), "Expected a numeric option of 'wanda'"),
        (lambda c: c.update(uses=["cooking"]), "'generation', 'similarity' but got 'cooking'"),
        (lambda c: c.update(uses=[]), "at least one use in `uses`"),
        (
            lambda c: c.update(uses=["similarity"]),
            "`uses` names 'similarity', which no task measures: expected among 'retrieval', ",
        ),
        (
            lambda c: c.update(keep={"similarity": 0.9}),
            "`keep` names 'similarity', which is no task of this run and no use that a task",
        ),
        (lambda c: c.update(margin={"similarity": 0.9}), "`margin` names 'similarity'"),
        (lambda c: without_main_score(c), "Expected a task with a main score"),
        (lambda c: c.update(seeds=0), "Expected `seeds`"),
        (lambda c: c["model"].update(reference=False), "`model.reference` true for a search"),
        (lambda c: c.update(pruning=None), "not accept `pruning`"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    run: Callable[..., None],
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[Config], object],
    part: str,
) -> None:
    change(config)
    with pytest.raises(SystemExit) as left:
        run("search")
    assert left.value.code == 2
    err = capfd.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("prunelit: error: ")]
    assert part in line
    assert len(line) < 400
    assert not list(tmp_path.rglob("pruning.json"))
