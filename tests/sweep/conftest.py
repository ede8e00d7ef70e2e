"""One sweep on a tiny model, and readers of its files."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunelit.report.results import Result, read_results

Config = dict[str, Any]
Save = Callable[[Path, Config], str]

# A task whose items give curves along "decoding steps", as a trajectory does.
FOLLOWED = """
from dataclasses import replace

from prunelit.report.curves import Curve
from prunelit.tasks import Perplexity


class Followed(Perplexity):
    def report(self, table):
        nll = table["pruned/nll"].tolist()
        count = len(nll)
        curves = [
            Curve(f"teacher_forced/{name}", "step", list(range(count)), nll, nll, nll,
                  [count] * count, "none", [0.5] * count)
            for name in ("logit_mse", "logit_std_p", "kl_dense_pruned")
        ]
        return replace(super().report(table), curves=curves)
"""


def drop(count: int) -> Config:
    return {"class_path": "prunelit.pruners.SublayerDrop", "init_args": {"count": count}}


@pytest.fixture(scope="session")
def make_sweep(make_config: Callable[[Path], Config]) -> Callable[[Path], Config]:
    """`make_sweep(folder)`: the run of `make_config`, Wanda and two drops in place of Wanda."""

    def make(folder: Path) -> Config:
        (folder / "followed.py").write_text(FOLLOWED)
        config = make_config(folder)
        wanda = config.pop("pruning")["init_args"]["pruner"]
        # The order of a YAML file is that of its variants; the names are not in alphabetic order.
        config["variants"] = {
            "wanda": wanda,
            "attention_2": drop(2),
            "block": {"class_path": "prunelit.pruners.BlockDrop"},
            "attention_1": drop(1),
        }
        del config["trainer"]["logger"]["init_args"]["version"]
        text = config["data"]["tasks"][1]["init_args"]["path"]
        followed = {"path": text, "length": 20, "limit": 3, "name": "followed"}
        config["data"]["tasks"].append({"class_path": "followed.Followed", "init_args": followed})
        return config

    return make


@pytest.fixture(scope="session")
def save() -> Callable[[Path, Config], str]:
    """`save(folder, config)` as `save_config`, but variants keep their order; returns the path."""

    def write(folder: Path, config: Config) -> str:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), "utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def swept(
    tmp_path_factory: pytest.TempPathFactory,
    make_sweep: Callable[[Path], Config],
    save: Save,
    forked: Callable[..., Any],
) -> Path:
    """The folder of one `prunelit sweep`, to read only; `stdout` and `stderr` lie in it too."""
    folder = tmp_path_factory.mktemp("swept")
    done = forked(folder, "sweep", "--config", save(folder, make_sweep(folder)))
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture
def config(
    tmp_path: Path, make_sweep: Callable[[Path], Config], monkeypatch: pytest.MonkeyPatch
) -> Config:
    """Two variants and two quick tasks, for a test to change."""
    monkeypatch.chdir(tmp_path)
    config = make_sweep(tmp_path)
    config["data"]["tasks"] = config["data"]["tasks"][:2]
    config["variants"] = {name: config["variants"][name] for name in ("wanda", "attention_1")}
    return config


@pytest.fixture
def run(
    tmp_path: Path, config: Config, save: Save, cli: Callable[..., None]
) -> Callable[..., None]:
    """`run(*options)`: the sweep of `config`, in this process."""
    return lambda *options: cli("sweep", "--config", save(tmp_path, config), *options)


@pytest.fixture(scope="session")
def results() -> Callable[[Path, str], list[Result]]:
    """`results(folder, variant)` reads the rows of a variant."""
    return lambda folder, variant: read_results(
        folder / "run" / "board" / variant / "results.jsonl"
    )


@pytest.fixture(scope="session")
def table() -> Callable[[Path], list[dict[str, str]]]:
    """`table(path)` reads the lines of a CSV file."""
    return lambda path: list(csv.DictReader(path.read_text().splitlines()))
