"""Files that are spoiled at random: a run has the right results, or one sentence says why not.

`--fuzz N` tries N cases. Each has a number, by which the same one is made again.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from .mutations import Mutation
from .situations import SITUATIONS, Situation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
NAMES = list(SITUATIONS)
LONGEST = 420  # characters of a sentence
_LEFT = re.compile(r"\.partial|\.old$|\.lock$|(^|/)tmp")


@dataclass
class Outcome:
    """The end of a run: its status, and what it printed."""

    status: int
    out: str
    err: str


class Server:
    """A process that imported the libraries, and forks for every run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs = 0
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "PRUNELIT_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MPLBACKEND": "agg",
            "TOKENIZERS_PARALLELISM": "false",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        program = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(program, text=True, env=environment, **pipes)  # type: ignore[call-overload]

    def run(self, folder: Path, arguments: list[str], variables: dict[str, str]) -> Outcome:
        """Run prunelit in a folder."""
        self._runs += 1
        log = self.folder / f"run{self._runs}"
        request = {"folder": str(folder), "arguments": arguments, "variables": variables}
        self._process.stdin.write(json.dumps({**request, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        texts = []
        for name in ("out", "err"):
            path = Path(f"{log}.{name}")
            texts.append(path.read_text(errors="replace"))
            path.unlink()
        return Outcome(status, *texts)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Workplace:
    """Folders of the situations as they were written, and their results."""

    def __init__(self, folder: Path, material: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self._material = material
        self._known: dict[str, list[Any]] = {}

    def results(self, situation: Situation) -> list[Any]:
        """Write a situation and run it, once; return its results."""
        name = situation.write.__name__
        if name not in self._known:
            folder = self.folder / name
            folder.mkdir()
            shutil.copytree(self._material / "dense", folder / "dense")
            situation.write(folder, self._run)
            trial = self.folder / "trial"
            shutil.copytree(folder, trial)
            self._run(trial, *situation.command, variables=situation.variables)
            self._known[name] = read_results(trial)
            assert self._known[name]
            shutil.rmtree(trial)
        return self._known[name]

    def _run(
        self,
        folder: Path,
        *arguments: str,
        status: int = 0,
        variables: dict[str, str] | None = None,
    ) -> Outcome:
        outcome = self.server.run(folder, list(arguments), variables or {})
        assert outcome.status == status, outcome.err
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


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, material: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path_factory.mktemp("fuzz"), material)
    yield place
    place.server.close()


def test_spoiled_files(
    workplace: Workplace, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    numbers = request.config.getoption("--fuzz-case") or range(request.config.getoption("--fuzz"))
    complaints = []
    for number in numbers:
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
    outcome = workplace.server.run(folder, situation.command, situation.variables)
    found = [
        *(check_success if outcome.status == 0 else check_refusal)(
            situation, mutation, outcome, folder, file, usual
        )
    ]
    if outcome.status != 0 and (new := all_files(folder) - before - {situation.leaves}):
        found.append(f"it left {sorted(new)[:4]}")
    if left := [path for path in all_files(folder) - before if _LEFT.search(path)]:
        found.append(f"it left {left[:4]}")
    shutil.rmtree(folder)
    if not found:
        return []
    last = outcome.err.strip().splitlines()[-1:]
    about = f"case {number}, {file.name} of {name!r}, {mutator.__name__}: {mutation.words}"
    return [f"{about}\n    {'; '.join(found)}\n    status {outcome.status}, {last}"]


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
    if "Traceback" in outcome.err:
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


def check_refusal(
    situation: Situation,
    mutation: Mutation,
    outcome: Outcome,
    folder: Path,
    file: Path,
    usual: list[Any],
) -> Iterator[str]:
    """Find what is wrong with a run that did not end with status 0."""
    if outcome.status == -14:
        yield "it did not end"
    elif outcome.status != 2:
        yield "no status 2"
    if mutation.harmless:
        yield "it was refused though right"
    lines = [line for line in outcome.err.splitlines() if line.startswith("prunelit: error: ")]
    if len(lines) != 1 or not outcome.err.rstrip().endswith(lines[0]):
        yield f"{len(lines)} sentences, or not the last line"
        return
    sentence = lines[0].removeprefix("prunelit: error: ")
    if len(sentence) > LONGEST:
        yield f"{len(sentence)} characters"
    for noise in ("Traceback", "usage:", "bug of prunelit", "Union", "subtypes"):
        if noise in outcome.err:
            yield noise
    words = [file.name, file.parent.name, file.stem.replace("_", " "), *mutation.names]
    if file.suffix == ".yaml" and (not mutation.names or "init_args" in mutation.names[-1:]):
        return  # a byte of it may be part of any key, and without arguments any may be missing
    if not any(word and (word in outcome.err or repr(word) in outcome.err) for word in words):
        yield f"it names none of {words}"
