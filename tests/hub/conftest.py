"""Real clients in a child process, and a small hub on loopback that they ask."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load, save

from .server import Files, Hub

# Variables of the user or of the other tests that would lead the clients elsewhere.
_FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_", "PRUNELIT_")


@dataclass
class Outcome:
    """What a case left: the status, the value or the sentence, and what was printed."""

    status: int
    value: Any
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a refusal."""
        assert self.status == 2, self.err
        assert "Traceback" not in self.err
        said = [line for line in self.err.splitlines() if line.startswith("prunelit: error: ")]
        (sentence,) = [self.value] if self.value else said
        assert "\n" not in sentence
        assert len(sentence) < 420, sentence
        return sentence.removeprefix("prunelit: error: ")


Ask = Callable[..., Outcome]


@pytest.fixture(scope="session")
def child(server: Hub) -> Iterator[subprocess.Popen[str]]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    own = {
        "HF_ENDPOINT": server.address,
        "HF_HOME": "home",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, str(Path(__file__).with_name("child.py"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**kept, **own}, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(server: Hub) -> Iterator[Hub]:
    """A hub without repositories."""
    server.repositories.clear()
    yield server
    server.reset()


@pytest.fixture
def ask(child: subprocess.Popen[str], tmp_path: Path) -> Ask:
    """`ask("model", "org/name", offline=True)` runs a function of `child.py` in a process.

    The processes of one test share a cache, which is empty at first. With `offline="datasets"` the
    library `datasets` alone does not ask the hub, as HF_DATASETS_OFFLINE has it.
    """

    def run(
        call: str, *arguments: Any, offline: bool | str = False, token: str = "", **options: Any
    ) -> Outcome:
        case = {"call": call, "arguments": arguments, "options": options}
        case |= {"folder": str(tmp_path), "offline": offline, "token": token}
        (tmp_path / "value.json").write_text("null")
        assert child.stdin is not None
        assert child.stdout is not None
        print(json.dumps(case), file=child.stdin, flush=True)
        status = int(child.stdout.readline())
        value = json.loads((tmp_path / "value.json").read_text())
        out, err = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return Outcome(status, value, out, err)

    return run


@pytest.fixture(scope="session")
def model_files(material: Path) -> Callable[..., Files]:
    """`model_files(norm=2.0, mark="!")` gives a tiny model with this final norm and template."""

    def files(norm: float = 1.0, mark: str = "") -> Files:
        found = {path.name: path.read_bytes() for path in (material / "dense").iterdir()}
        weights = load(found["model.safetensors"])
        weights["model.norm.weight"] = weights["model.norm.weight"] * 0 + norm
        found["model.safetensors"] = save(weights, {"format": "pt"})
        found["chat_template.jinja"] += mark.encode()
        return found

    return files


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a file of parquet."""
    stream = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(stream)
    return stream.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
