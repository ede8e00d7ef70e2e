"""The shipped multiple-choice files make the prompts of lm-evaluation-harness 0.4.13.

Rows are written by hand in the form of the hub, see `tests/golden/lm_eval/make.py`.
"""

import json
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

from prunelit.tasks import MultipleChoice, Task

GOLDEN = Path(__file__).parents[1] / "golden" / "lm_eval"
FOLDER = Path(__file__).parents[2] / "configs" / "tasks"
ROWS = json.loads((GOLDEN / "hub_rows.json").read_text(encoding="utf-8"))
EXPECTED = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))


def load(name: str, path: str, **more: Any) -> MultipleChoice:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    file = "mmlu" if name.startswith("mmlu") else name
    config = yaml.safe_load((FOLDER / f"{file}.yaml").read_text(encoding="utf-8"))
    config["init_args"] |= {"path": path, **more}
    return parser.instantiate(parser.parse_object({"task": config})).task


def write(path: Path, name: str) -> str:
    file = path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    return str(file)


def test_every_shipped_file_is_compared() -> None:
    shipped = {
        path.stem
        for path in FOLDER.glob("*.yaml")
        if "MultipleChoice" in path.read_text(encoding="utf-8")
    }
    assert shipped == {"mmlu" if name.startswith("mmlu") else name for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts(tmp_path: Path, name: str) -> None:
    more = {}
    if f"{name}_dev" in ROWS:
        # Examples of all subjects in one file, as on the hub.
        names = [other for other in ROWS if other.endswith("_dev")]
        files = [Path(write(tmp_path, other)).read_text(encoding="utf-8") for other in names]
        (tmp_path / "dev.jsonl").write_text("".join(files), encoding="utf-8")
        more = {"few_shot": {"count": 5, "split": "dev", "path": str(tmp_path / "dev.jsonl")}}
    task = load(name, write(tmp_path, name), **more)
    task.read()
    requests = [
        [[before + prompt, rest] for prompt, rest in own]
        for before, own in zip(task._preambles, task._texts, strict=True)
    ]
    assert requests == EXPECTED[name]["requests"]
    assert [question.label for question in task._questions] == EXPECTED[name]["labels"]
    assert len(requests) == len(ROWS[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_acc_norm_divides_by_the_length_that_the_harness_counts(tmp_path: Path, name: str) -> None:
    task = load(name, write(tmp_path, name), **({} if name != "mmlu" else {"few_shot": None}))
    if task.scoring != "continuation":
        return
    task.read()
    own = [[len(choice) for choice in question.choices] for question in task._questions]
    # The harness counts its request without its delimiter, one space.
    requests = EXPECTED[name]["requests"]
    assert own == [[len(rest) - 1 for _, rest in of_row] for of_row in requests]
