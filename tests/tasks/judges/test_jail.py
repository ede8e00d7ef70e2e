"""The script that `sandbox` starts; the tests of `sandbox` cover its isolation."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunelit.tasks.judges import jail


def start(plan: dict[str, Any]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", jail.__file__, json.dumps(plan)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs the namespaces of Linux")
def test_what_cannot_be_built_is_said_and_nothing_runs(tmp_path: Path) -> None:
    plan = {
        "root": str(tmp_path / "missing"),
        "paths": [],
        "python": sys.executable,
        "files": {"program.py": "open('witness', 'w')"},
        "scratch": 1 << 20,
        "calls": "",
        "limits": {},
    }
    done = start(plan)
    assert done.returncode == jail.FAILED
    # By the kernel that allows namespaces, or by one that does not.
    assert b"mount: No such file or directory" in done.stderr or b"unshare" in done.stderr
    assert done.stdout == b""
    assert not any(tmp_path.iterdir())


def test_it_needs_nothing_but_the_standard_library() -> None:
    source = Path(jail.__file__).read_text(encoding="utf-8")
    names = [line.split()[1] for line in source.splitlines() if line.startswith(("import", "from"))]
    assert names
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_a_call_that_fails_names_itself() -> None:
    with pytest.raises(OSError, match="rmdir: No such file or directory"):
        jail.call("rmdir", "/no/such/folder")
