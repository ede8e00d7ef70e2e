"""`prunelit new`: files go in, a configuration that the other commands take comes out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Write = Callable[[str, Any], str]
Cli = Callable[..., None]
ASKED = [{"question": f"What is {n}?", "answer": str(n)} for n in range(4)]


@pytest.fixture
def files(write: Write, folder: Path, collection: str, labelled: list[dict[str, Any]]) -> list[str]:
    """The options that name a model and a file for each use."""
    text = [{"text": f"{n} some words of a text that nobody wrote " * 20} for n in range(20)]
    text[3] = {"text": f"See: {labelled[2]['Message']} and more"}
    paths = {
        "--search": collection,
        "--classify": write("intents.csv", labelled),
        "--answer": write("qa.jsonl", ASKED),
        "--text": write("text.jsonl", text),
    }
    return ["--model", str(folder), *(part for pair in paths.items() for part in pair)]


def test_the_files_are_measured_and_other_commands_take_the_result(
    files: list[str], folder: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").unlink()
    margins = ["--keep", "tickets=0.8,default=0.9", "--margin", "classification=0.1"]
    cli("new", *files, "-o", "decision.yaml", *margins)
    printed = capsys.readouterr().out
    for part in (
        "intents (classification): 'Message' is the text, 'Intent' one of 2 labels; 6 texts",
        "Warning: intents: 1 of 12 texts are in the calibration text",
        "qa: the model has no chat template, so it reads plain questions.",
        "Written: decision.yaml, decision.fit.yaml, decision.sweep.yaml, decision.search.yaml.",
        "items needed: for the verdict `keeps` in 80 of 100 runs, if nothing is lost and",
        "The 3 tasks are judged together (Holm).",
        "10% of the items flip: 5% get worse and 5% get better.",
        "qa: the dense model is not above chance",
        "  prunelit fit --config decision.yaml --config decision.fit.yaml",
    ):
        assert part in printed, part
    for subcommand, more in (
        ("fit", ["--config", "decision.fit.yaml"]),
        ("sweep", ["--config", "decision.sweep.yaml"]),
        ("search", ["--config", "decision.search.yaml"]),
        ("compare", ["--model.candidate", "other"]),
    ):
        with pytest.raises(SystemExit) as left:
            cli(subcommand, "--config", "decision.yaml", *more, "--print_config")
        shown, complaint = capsys.readouterr()
        assert left.value.code == 0, complaint
        config = yaml.safe_load(shown)
        assert config["keep"] == {"default": 0.9, "tickets": 0.8}
        assert config["margin"] == {"classification": 0.1}
        tasks = config["data"]["tasks"]
        names = [task["init_args"]["name"] for task in tasks]
        assert names == ["tickets", "intents", "qa", "deviation", "perplexity"]
        assert tasks[2]["init_args"]["chat"] is False
        assert config["data"]["calibration"]["split"] == "train[:75%]"
        place = "runs/decision" + ("" if subcommand == "compare" else f"/{subcommand}")
        assert config["trainer"]["default_root_dir"] == place


def test_a_run_of_the_files(files: list[str], cli: Cli) -> None:
    cli("new", *files[:2], *files[4:], "-o", "decision.yaml", "--no-measure")
    quick = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    cli("fit", "--config", "decision.yaml", "--config", "decision.fit.yaml", *quick)
    verdicts = json.loads(Path("runs/decision/fit/verdicts.json").read_text())
    assert {one["task"] for one in verdicts["tasks"]} == {"intents", "qa"}


def test_the_files_are_checked_without_torch(files: list[str]) -> None:
    arguments = ["new", *files, "--no-measure"]
    code = (
        f"import sys\nsys.argv = ['prunelit', *{arguments}]\n"
        "from prunelit.__main__ import main\nmain()\n"
        "assert not {'torch', 'datasets', 'sklearn'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("decision.yaml").is_file()


def test_files_are_not_replaced_without_a_word(
    files: list[str], cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path("decision.sweep.yaml")
    mine.write_text("mine")
    with pytest.raises(SystemExit) as left:
        cli("new", *files, "--no-measure")
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("prunelit: error: 'decision.sweep.yaml' exists: ")
    assert (mine.read_text(), Path("decision.yaml").exists()) == ("mine", False)
    cli("new", *files, "--no-measure", "--overwrite")
    assert "wanda_50" in yaml.safe_load(mine.read_text())["variants"]


def test_a_configuration_in_another_folder_has_absolute_paths(files: list[str], cli: Cli) -> None:
    cli("new", *files, "--no-measure", "-o", "runs/far.yaml")
    tasks = yaml.safe_load(Path("runs/far.yaml").read_text())["data"]["tasks"]
    assert [Path(task["init_args"]["path"]).is_absolute() for task in tasks] == [True] * 5


def test_names_are_data(
    write: Write, labelled: list[dict[str, Any]], folder: Path, cli: Cli
) -> None:
    column = "{{ 7 * 7 }}: # 'it'\u2028\"x\""
    rows = [{column: row["Message"], "label": row["Intent"]} for row in labelled]
    path = write("a: b #c\n'd'.jsonl", rows)
    cli("new", "--model", str(folder), "--classify", path, "--no-measure")
    (task,) = yaml.safe_load(Path("decision.yaml").read_text())["data"]["tasks"]
    assert task["init_args"]["path"] == path
    assert task["init_args"]["text"] == column


def test_without_text_the_method_needs_none(
    write: Write, labelled: list[dict[str, Any]], folder: Path, cli: Cli
) -> None:
    path = write("intents.csv", labelled)
    cli("new", "--model", str(folder), "--classify", path, "--no-measure")
    pruner = yaml.safe_load(Path("decision.fit.yaml").read_text())["pruning"]["pruner"]
    assert pruner["class_path"].endswith("Magnitude")
    assert "calibration" not in yaml.safe_load(Path("decision.yaml").read_text())["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--answer", "qa.jsonl"], "The following arguments are required: --model"),
        (["--model", "."], "Expected at least one of `--search`"),
        (["--model", ".", "--answer", "qa.jsonl"], "Expected the folder of a model, with a config"),
        (["--model", "{model}", "--answer", "no.csv"], "'no.csv' does not exist"),
        (["--model", "{model}", "--answer", "qa.jsonl", "-o", "x.txt"], "ends in .yaml but got"),
        (["--model", "{model}", "--answers", "qa.jsonl"], "Unrecognized arguments: --answers"),
        (["--model", "{model}", "--answer", "qa.jsonl", "--keep", "q=0.9"], "`keep` names 'q'"),
        (["--model", "{model}", "--answer", "qa.jsonl", "--margin", "qa=2"], "`margin` above 0"),
        (["--model", "{model}", "--text", "few.txt"], "more text in 'few.txt' to measure a model"),
    ],
)
def test_a_mistake_is_one_sentence(
    write: Write,
    folder: Path,
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write("qa.jsonl", ASKED)
    write("few.txt", "a few words " * 40)
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as left:
        cli("new", *(part.format(model=folder) for part in arguments))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("prunelit: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(Path().iterdir()) == before
