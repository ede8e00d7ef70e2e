import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_report_prints_verdicts_and_the_path(
    make_run: Any, tmp_path: Path, cli: Callable[..., None], capsys: Any
) -> None:
    folder = make_run(tmp_path / "run")
    cli("report", str(folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Loses multiple choice (0.56 [")
    assert lines[-1] == f"Page: {folder / 'report.html'}"
    assert "Do not ship" in (folder / "report.html").read_text()
    cli("report", str(folder), "-o", str(tmp_path / "new" / "p.html"), "--keep", "0.1")
    assert capsys.readouterr().out.startswith("Keeps multiple choice")
    assert "Ship: " in (tmp_path / "new" / "p.html").read_text()


def test_report_leaves_the_files_of_a_run_as_its_end_does(
    make_run: Any, tmp_path: Path, cli: Callable[..., None], capsys: Any
) -> None:
    folder = make_run(tmp_path / "run")
    cli("report", str(folder), "--keep", "0.1")
    verdicts = (folder / "verdicts.json").read_text()
    assert json.loads(verdicts)["tasks"][0]["margin"] == 0.1
    card = (folder / "pruned" / "README.md").read_text()
    assert "# Ship: " in card
    assert "Ship: " in (folder / "report.html").read_text()
    page = str(tmp_path / "p.html")
    cli("report", str(folder), "-o", page)  # the run stays as it is
    assert (folder / "verdicts.json").read_text() == verdicts
    assert (folder / "pruned" / "README.md").read_text() == card
    assert json.loads((tmp_path / "p.json").read_text())["uses"]["retrieval"] == "loses"
    other = make_run(tmp_path / "other")
    cli("report", str(folder), str(other))
    assert f"Page: {folder / 'comparison.html'}" in capsys.readouterr().out
    assert "Ship: " in (folder / "report.html").read_text()
    found = json.loads((folder / "comparison.json").read_text())
    assert [*found["runs"]] == [str(folder), str(other)]
    assert found["runs"][str(folder)]["uses"]["retrieval"] == "loses"
    cli("report", str(folder), str(make_run(tmp_path / "third", rows="cd" * 32)), "-o", page)
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["comparable"]["verdict"], found["runs"]) == ("no", {})


def test_a_model_of_another_recipe_in_the_same_place_gets_no_card(
    make_run: Any, tmp_path: Path, cli: Callable[..., None]
) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "pruned" / "pruning.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe_id": "r2"}))
    cli("report", str(folder))
    assert not (folder / "pruned" / "README.md").exists()
    assert "The pruned model is not on this machine" in (folder / "report.html").read_text()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe_id": "r1"}))
    cli("report", str(folder))
    assert "Do not ship" in (folder / "pruned" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--fail_on", "loses"], 3),
        (["--fail_on=cannot_tell"], 3),
        (["--fail_on", "loses", "--keep", "0.1"], 0),
        (["--fail_on", "loses", "--keep", "0.55"], 0),
        (["--fail_on", "cannot_tell", "--keep", "0.55"], 3),
    ],
)
def test_a_pipeline_can_stop(
    make_run: Any, tmp_path: Path, cli: Callable[..., None], options: list[str], status: int
) -> None:
    folder = str(make_run(tmp_path / "run"))
    if status == 0:
        return cli("report", folder, *options)
    with pytest.raises(SystemExit) as left:
        cli("report", folder, *options)
    assert left.value.code == status
    return None


def test_worse_prints_items_that_were_right_and_became_wrong(
    make_run: Any, tmp_path: Path, cli: Callable[..., None], capsys: Any
) -> None:
    folder = str(make_run(tmp_path / "run", text="\x1b[31mRome\u202e " + "word " * 200))
    cli("worse", folder, "--task", "answers", "--limit", "2")
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == (
        "answers: 18 of 40 items were right and became wrong; 2 of 40 items were wrong and became "
        "right."
    )
    assert "1. item 0 (the texts part after 0 equal tokens)" in text
    assert "pruned: It is »no pruned [U+001B][31mRome[U+202E]" in text.replace("\n", " ")
    assert "16 more: `--limit 18` prints all." in text
    assert not {"\x1b", "\u202e"} & {*text}
    assert max(map(len, lines[1:])) <= 80


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report"], "The following arguments are required: RUN: see `prunelit report --help`."),
        (["report", "{run}", "--kep", "1"], "Unrecognized arguments: --kep 1"),
        (["report", "{run}", "--keep", "2x"], "Expected `keep` as a number"),
        (["report", "{run}", "--keep", "fnid=0.5"], "expected one of 'answers'"),
        (["report", "{run}", "--fail_on", "los"], "invalid choice: 'los'"),
        (["report", "{run}", "{run}"], "is given twice"),
        (["report", "{run}", "-o", "{run}"], "Expected a file for the page but"),
        (["report", "{run}", "{run}/results.jsonl"], "is given twice"),
        (["report", "{run}", "-o", "page.json"], "Expected a page that ends in .html but got"),
        (["report", "{run}", "-o", "{run}/results.jsonl"], "Expected a page that ends in .html"),
        (["report", "{run}", "-o", "{run}/pruned/pruning.html"], "would replace"),
        (["report", "nowhere"], "'nowhere' does not exist"),
        (["worse", "{run}"], "The following arguments are required: --task"),
        (["worse", "{run}", "--task", "chose"], "similar names are choose"),
        (["worse", "{run}", "--task", "text"], "The task 'text' has no items"),
        (["worse", "{run}", "--task", "find", "--limit", "0"], "Expected `--limit` of at least 1"),
        (["worse", "{run}", "--task", "find", "--limit", "x"], "invalid int value: 'x'"),
    ],
)
def test_mistakes_are_one_sentence(
    make_run: Any,
    tmp_path: Path,
    cli: Callable[..., None],
    capsys: Any,
    arguments: list[str],
    sentence: str,
) -> None:
    folder = str(make_run(tmp_path / "run"))
    with pytest.raises(SystemExit) as left:
        cli(*(argument.replace("{run}", folder) for argument in arguments))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("prunelit: error: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_neither_imports_torch(make_run: Any, tmp_path: Path) -> None:
    folder = str(make_run(tmp_path / "run"))
    program = (
        "import sys\n"
        "from prunelit.__main__ import main\n"
        "for arguments in (['report'], ['worse', '--task', 'find']):\n"
        "    sys.argv = ['prunelit', *arguments, sys.argv[-1]]\n"
        "    main()\n"
        "assert not {'torch', 'matplotlib', 'transformers'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", program, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
