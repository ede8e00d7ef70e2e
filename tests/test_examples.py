"""The scripts of examples/ run as they stand and print what docs/examples shows."""

import re
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[1]
SHOWN = ROOT / "docs" / "examples"
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
# Each takes most of a minute with the real model. Every run takes these two, and all of them with a
# tiny model.
OFTEN = ("own_data", "prune_and_compare")
RUN = """
import os, runpy
import matplotlib, torch

os.chdir(FOLDER)
os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT), 1)
matplotlib.use("Agg")
torch.set_num_threads(1)
runpy.run_path(SCRIPT, run_name="__main__")
"""
Run = Callable[[Path], str]


@pytest.fixture
def run(tmp_path: Path, start_process: Callable[..., BaseProcess]) -> Run:
    """`run(script)` runs a script in `tmp_path` and returns what it prints."""

    def run(script: Path) -> str:
        (tmp_path / "run.py").write_text(RUN)
        names = {"FOLDER": str(tmp_path), "SCRIPT": str(script)}
        process = start_process(tmp_path / "run.py", names)
        process.join(600)
        assert process.exitcode == 0
        return (tmp_path / "stdout").read_text(encoding="utf-8")

    return run


def words(output: str) -> list[str | float]:
    """Words and numbers, without the frames of tables and without times and memory of blocks.

    The number of items that would decide is left out: one answer more or less changes it by half.
    """
    output = re.sub(r"about\s+\d+ items", "about some items", output)
    lines = [line for line in output.splitlines() if "model.layers." not in line]
    found: list[str | float] = []
    for word in re.findall(r"[^\s\u2500-\u257f\[\](),]+", "\n".join(lines)):
        try:
            found.append(float(word))
        except ValueError:
            found.append(word)
    return found


@pytest.mark.model
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in OFTEN else pytest.mark.full)
        for path in SCRIPTS
    ],
)
def test_output_and_figure(script: Path, tmp_path: Path, run: Run) -> None:
    shown = SHOWN / f"{script.stem}.txt"
    found, expected = words(run(script)), words(shown.read_text(encoding="utf-8"))
    texts = [[word for word in part if isinstance(word, str)] for part in (found, expected)]
    assert texts[0] == texts[1], f"Store the output and the figure of {script} beside {shown}."
    # Another processor rounds differently, and a few of the answers change.
    numbers = [n for n in expected if isinstance(n, float)]
    assert [n for n in found if isinstance(n, float)] == pytest.approx(numbers, rel=0.1, abs=0.1)
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_tiny_model_in_place_of_the_real_one(
    script: Path,
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
) -> None:
    model.config.max_position_embeddings = 2048
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("The cat sat on a mat, and nobody came to see it. \n" * 80)
    text = script.read_text(encoding="utf-8")
    for name, path in (("MODEL", "dense"), ("TEXT", "text.txt")):
        text, count = re.subn(rf"^{name} = .*$", f'{name} = "{path}"', text, flags=re.MULTILINE)
        assert count == 1
    (tmp_path / "script.py").write_text(text)
    assert run(tmp_path / "script.py")
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 10_000


def test_every_script_is_short_and_shown() -> None:
    assert len(SCRIPTS) == 4
    for script in SCRIPTS:
        lines = script.read_text(encoding="utf-8").splitlines()
        assert 30 <= len(lines) <= 70, script.name
        assert f"python examples/{script.name}" in "\n".join(lines[:12])
        assert (SHOWN / f"{script.stem}.png").stat().st_size > 10_000
