"""Files that are spoiled at random: a run has the right results, or one sentence says why not.

`--fuzz N` tries N cases. Each has a number, by which the same one is made again.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from .mutations import Mutation
from .situations import SITUATIONS, Situation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
Outcome = CompletedProcess[str]
NAMES = list(SITUATIONS)
PARTS = 4  # of the kinds of files, which run at once
LIMITS = (30, 2 << 30)  # of a run: seconds, and bytes beside those of the libraries
LONGEST = 420  # characters of a sentence
_LEFT = re.compile(r"\.partial|\.old$|\.lock$|(^|/)tmp")


class Workplace:
    """Folders of the situations as they were written, and their results."""

    def __init__(self, folder: Path, material: Path, forked: Callable[..., Outcome]) -> None:
        self.folder = folder
        self._material = material
        self._forked = forked
        self._known: dict[str, list[Any]] = {}

    def results(self, situation: Situation) -> list[Any]:
        """Write a situation and run it, once; return its results."""
        name = situation.write.__name__
        if name not in self._known:
            folder = self.folder / name
            folder.mkdir()
            shutil.copytree(self._material / "dense", folder / "dense")
            situation.write(folder, self._succeed)
            trial = self.folder / "trial"
            shutil.copytree(folder, trial)
            self._succeed(trial, *situation.command, variables=situation.variables)
            self._known[name] = read_results(trial)
            assert self._known[name]
            shutil.rmtree(trial)
        return self._known[name]

    def run(self, folder: Path, *arguments: str, variables: dict[str, str]) -> Outcome:
        """Run prunelit in a folder, within limits."""
        variables = {"PRUNELIT_CACHE": str(self.folder / "cache"), **variables}
        return self._forked(folder, *arguments, variables=variables, limits=LIMITS)

    def _succeed(
        self,
        folder: Path,
        *arguments: str,
        status: int = 0,
        variables: dict[str, str] | None = None,
    ) -> Outcome:
        outcome = self.run(folder, *arguments, variables=variables or {})
        assert outcome.returncode == status, outcome.stderr
        return outcome


def read_results(folder: Path) -> list[Any]:
    """Read the numbers of a run; those of a sweep in the order of its variants."""
    rows = [
        json.loads(line)
        for path in sorted(folder.rglob("results.jsonl"))
        for line in path.read_text().splitlines()
    ]
    keys = ("task", "metric", "model", "value", "n")
    return [[row[key] for key in keys] for row in rows]


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, material: Path, forked: Callable[..., Outcome]
) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("fuzz"), material, forked)


@pytest.mark.parametrize("part", range(PARTS))
def test_spoiled_files(
    part: int, workplace: Workplace, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    numbers = request.config.getoption("--fuzz-case") or range(request.config.getoption("--fuzz"))
    complaints = []
    for number in numbers:
        if number % len(NAMES) * PARTS // len(NAMES) == part:
            complaints += try_case(number, workplace, tmp_path / "case")
    assert not complaints, "\n".join([f"{len(complaints)} cases", *complaints])


def try_case(number: int, workplace: Workplace, folder: Path) -> list[str]:
    """Spoil a file and run; return what is wrong with the outcome."""
    name = NAMES[number % len(NAMES)]
    situation, random = SITUATIONS[name], Random(number)
    usual = workplace.results(situation)
    shutil.copytree(workplace.folder / situation.write.__name__, folder, symlinks=True)
    (file,) = sorted(folder.glob(random.choice(situation.files)))
    mutator = random.choice(situation.mutators)
    mutation = mutator(random, file.read_bytes())
    if mutation.content is None:
        file.unlink()
    else:
        file.write_bytes(mutation.content)
    before = all_files(folder)
    outcome = workplace.run(folder, *situation.command, variables=situation.variables)
    if outcome.returncode == 0:
        found = [*check_success(situation, mutation, outcome, folder, file, usual)]
    else:
        found = [*check_refusal(mutation, outcome, file)]
    if outcome.returncode != 0 and (new := all_files(folder) - before - {situation.leaves}):
        found.append(f"it left {sorted(new)[:4]}")
    if left := [path for path in all_files(folder) - before if _LEFT.search(path)]:
        found.append(f"it left {left[:4]}")
    shutil.rmtree(folder)
    if not found:
        return []
    last = outcome.stderr.strip().splitlines()[-1:]
    about = f"case {number}, {file.name} of {name!r}, {mutator.__name__}: {mutation.words}"
    return [f"{about}\n    {'; '.join(found)}\n    status {outcome.returncode}, {last}"]


def all_files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "cache" not in path.parts and path.suffix != ".pyc"
    }


def check_success(
    situation: Situation,
    mutation: Mutation,
    outcome: Outcome,
    folder: Path,
    file: Path,
    usual: list[Any],
) -> Iterator[str]:
    """Find what is wrong with a run that ended with status 0."""
    results = read_results(folder)
    if "Traceback" in outcome.stderr:
        yield "a traceback"
    if mutation.wrong:
        yield "a mistake was overlooked"
    if (situation.exact or mutation.harmless) and results != usual:
        yield f"other results: {results[:2]}, not {usual[:2]}"
    if not results:
        yield "no results"
    sizes = {row[0]: row[4] for row in results}
    expected = {row[0]: row[4] for row in usual}
    if file.suffix == ".yaml":
        if set(sizes.values()) - {1, *expected.values()}:
            yield f"{sizes} items, not {expected}"
        tree = yaml.safe_load(file.read_bytes())
        data = tree.get("data", tree) if isinstance(tree, dict) else None
        tasks = data.get("tasks") if isinstance(data, dict) else None
        if isinstance(tasks, list) and len(tasks) != len(sizes):
            yield f"results of {len(sizes)} tasks, not {len(tasks)}"
    else:
        if situation.count is not None:
            expected = dict.fromkeys(expected, situation.count(file.read_bytes()))
        if sizes != expected:
            yield f"{sizes} items, not {expected}"


def check_refusal(mutation: Mutation, outcome: Outcome, file: Path) -> Iterator[str]:
    """Find what is wrong with a run that did not end with status 0."""
    if outcome.returncode == -14:
        yield "it did not end"
    elif outcome.returncode != 2:
        yield "no status 2"
    if mutation.harmless:
        yield "it was refused though right"
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("prunelit: error: ")]
    if len(lines) != 1 or not outcome.stderr.rstrip().endswith(lines[0]):
        yield f"{len(lines)} sentences, or not the last line"
        return
    sentence = lines[0].removeprefix("prunelit: error: ")
    if len(sentence) > LONGEST:
        yield f"{len(sentence)} characters"
    for noise in ("Traceback", "usage:", "bug of prunelit", "Union", "subtypes"):
        if noise in outcome.stderr:
            yield noise
    words = [file.name, file.parent.name, file.stem.replace("_", " "), *mutation.names]
    if file.suffix == ".yaml" and (not mutation.names or "init_args" in mutation.names[-1:]):
        return  # a byte of it may be part of any key, and without arguments any may be missing
    if not any(word and (word in outcome.stderr or repr(word) in outcome.stderr) for word in words):
        yield f"it names none of {words}"
