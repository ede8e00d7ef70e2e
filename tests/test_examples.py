"""The scripts of examples/ run as they stand and print what docs/examples shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = ROOT / "docs" / "examples"
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
# Each takes most of a minute. Every run takes these two.
OFTEN = ("own_data", "prune_and_compare")


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
def test_output_and_figure(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = SHOWN / f"{script.stem}.txt"
    found, expected = words(done.stdout), words(shown.read_text(encoding="utf-8"))
    texts = [[word for word in part if isinstance(word, str)] for part in (found, expected)]
    assert texts[0] == texts[1], f"Store the output and the figure of {script} beside {shown}."
    # Another processor rounds differently, and a few of the answers change.
    numbers = [n for n in expected if isinstance(n, float)]
    assert [n for n in found if isinstance(n, float)] == pytest.approx(numbers, rel=0.1, abs=0.1)
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 10_000


def test_every_script_is_short_and_shown() -> None:
    assert len(SCRIPTS) == 4
    for script in SCRIPTS:
        lines = script.read_text(encoding="utf-8").splitlines()
        assert 30 <= len(lines) <= 70, script.name
        assert f"python examples/{script.name}" in "\n".join(lines[:12])
        assert (SHOWN / f"{script.stem}.png").stat().st_size > 10_000
