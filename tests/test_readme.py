"""The code and the commands of README.md and of the documentation are true."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit import read_results
from prunelit.models.report_file import read_report

ROOT = Path(__file__).parents[1]
# CONTRIBUTING.md has a test of its own, `contracts/test_adding.py`.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """Lines of shell that start prunelit, and commands inside a sentence or a table."""
    lines = [
        line.partition("  #")[0].strip()
        for block in blocks(text, "bash")
        for line in re.sub(r" *\\\n *", " ", block).splitlines()
    ]
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`(prunelit (?:fit|validate|compare|sweep) [^`]+)`", outside)
    return [line for line in [*lines, *inline] if line.startswith("prunelit ")]


COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})
PYTHON = [
    pytest.param(block, id=name, marks=[pytest.mark.model] if "pypi:" in block else [])
    for name, text in TEXTS.items()
    for block in blocks(text, "python")
]


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Write the files that the pages show to one folder."""
    for text in TEXTS.values():
        named = re.findall(r"```(?:python|yaml)\n(# (\w+\.(?:py|yaml))\n.*?)```", text, re.DOTALL)
        shown = re.findall(
            r"^`(\w[\w/]*\.\w+)`[^\n]*:\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE
        )
        for name, block in [*((name, block) for block, name in named), *shown]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def test_plugins(
    plugins: Path,
    material: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[[Path, dict[str, Any]], Path],
    forked: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    config = make_config(plugins)
    config["data"]["tasks"] = [
        {
            "class_path": "my_task.LastConfidence",
            "init_args": {"path": str(material / "text.jsonl")},
        }
    ]
    alarm = {"metric": "confidence", "level": 1}
    config["trainer"]["callbacks"] = [{"class_path": "my_alarm.Alarm", "init_args": alarm}]
    path = save_config(plugins, config)
    ran = forked(
        plugins,
        *("fit", "--config", str(path), "--pruning", "my_callback.TwoSteps"),
        *("--pruning.pruner", "my_pruner.SquaredWanda", "--pruning.pruner.sparsity.ratio", "0.25"),
    )
    assert ran.returncode == 0, ran.stderr
    report = read_report(plugins / "run" / "pruned")
    assert report is not None
    assert report["recipe"]["callback"]["class_path"] == "my_callback.TwoSteps"
    assert report["recipe"]["pruner"]["class_path"] == "my_pruner.SquaredWanda"
    assert report["sparsity"] == 0.25
    (file,) = plugins.rglob("results.jsonl")
    found = {result.model: result for result in read_results(file)}
    assert found.keys() == {"dense", "pruned", "difference"}
    assert all(0 < found[model].value < 1 for model in ("dense", "pruned"))
    assert f"confidence/confidence of dense is {found['dense'].value:.2f}" in ran.stderr


def test_own_data_runs_as_it_is_shown(
    plugins: Path, material: Path, forked: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (plugins / "my_text.txt").write_text((material / "text.jsonl").read_text(encoding="utf-8"))
    small = ("--data.calibration.sequences", "2", "--data.calibration.length", "16")
    source = ("--model.source", str(material / "dense"))
    ran = forked(plugins, "fit", "--config", "my_run.yaml", *source, *small)
    assert ran.returncode == 0, ran.stderr
    found = read_results(plugins / "runs" / "mine" / "results.jsonl")
    sizes = {result.task: result.n for result in found}
    assert sizes["multiple_choice"] == sizes["collection_retrieval"] == 2
    assert sizes["retrieval"] == sizes["generation"] == 1
    assert sizes["perplexity"] >= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(
    plugins: Path,
    material: Path,
    tmp_path: Path,
    cli: Callable[..., None],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = command.replace("FILE", "configs/wanda.yaml").replace("NAME", "wanda")
    words = [re.sub(r"(^|=|\[)(?=configs/)", rf"\1{ROOT}/", word) for word in shlex.split(command)]
    if words[1] in ("new", "report", "worse"):  # the options are right, only the files are missing
        monkeypatch.chdir(tmp_path)  # the checkout may have them
        with pytest.raises(SystemExit) as ended:
            cli(*words[1:])
        sentence = capsys.readouterr().err
        assert ended.value.code == 2
        assert ("does not exist" if words[1] == "new" else "runs/wanda/version_0") in sentence
        assert "arguments" not in sentence
        return
    if not {"--help", "--print_config"} & set(words):
        words.append("--print_config")
    monkeypatch.chdir(plugins)
    monkeypatch.syspath_prepend(str(plugins))
    if "decision.yaml" in words:
        source, file = str(material / "dense"), str(material / "questions.jsonl")
        cli("new", "--model", source, "--classify", file, "--no-measure", "--overwrite")
        capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli(*words[1:])
    assert ended.value.code in (0, None), capsys.readouterr().err
    assert "seed_everything" in capsys.readouterr().out


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, "page", "exec"), names)
    if "save_pretrained" in block:
        # The dense model has a few zeros already; they do not count.
        assert 0.499 < names["report"].sparsity < 0.5
        assert 0.5 < names["result"]["embedding_cosine"] < 1
        assert read_report(tmp_path / "my-pruned-model") is not None


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) >= 20
    assert len(PYTHON) >= 6


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_every_method_has_a_line() -> None:
    """A new YAML needs a line on its page."""
    methods = TEXTS["docs/reference/methods.md"]
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    runs = {"hierarchy", "iterative", "large", "multi_node", "perturbations", "recovery", "search"}
    runs |= {"experts", "methods", "width"}
    assert {name for name in names - runs if f"`{name}`" not in methods} == set()
