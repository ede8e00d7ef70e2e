"""Run the command line many times: the libraries are imported once, and every run is a fork.

    python fork_server.py < requests > answers

A request is a line of JSON: `folder` to run in, `arguments` of prunelit, `variables` of the
environment, and `log`, the beginning of the names of the files that get stdout and stderr. The
answer is the exit status in a line; it is negative if a signal ended the run.
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 30  # of a run
MEMORY = 2 << 30  # bytes that a run may add to those of the server


def run(request: dict[str, Any]) -> NoReturn:
    """Run the command line in this process, which is a fork of the server."""
    import matplotlib.figure

    import prunelit.__main__
    import prunelit.cli

    # Half of the time goes into the options of other subcommands and into figures.
    kind, cli = request["arguments"][0], prunelit.cli.PruneLitCLI
    known = cli.subcommands()
    cli.subcommands = staticmethod(lambda: {kind: known[kind]})  # type: ignore[method-assign]
    matplotlib.figure.Figure.savefig = lambda self, path, **_: Path(path).touch()  # type: ignore[method-assign]
    os.setsid()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    for number, name in ((0, None), (1, "out"), (2, "err")):
        path = os.devnull if name is None else f"{request['log']}.{name}"
        os.dup2(os.open(path, os.O_RDONLY if name is None else os.O_CREAT | os.O_WRONLY), number)
    os.chdir(request["folder"])
    os.environ.update(request["variables"])
    sys.argv = ["prunelit", *request["arguments"]]
    status = 0
    try:
        prunelit.__main__.main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the test reads it
        traceback.print_exc()
        status = 1
    if request.get("modules"):
        Path(f"{request['log']}.modules").write_text("\n".join(sys.modules))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Answer requests until there are no more."""
    import torch

    import prunelit.cli  # noqa: F401

    torch.set_num_threads(1)
    known: set[str] = set()
    for line in sys.stdin:
        request = json.loads(line)
        kind = request["arguments"][0]
        request["modules"] = kind not in known  # of the first run: the next ones need not import
        process = os.fork()
        if process == 0:
            run(request)
        _, ended = os.waitpid(process, 0)
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # what the run left running
        modules = Path(f"{request['log']}.modules")
        if modules.exists():
            known.add(kind)
            for name in modules.read_text().splitlines():
                with suppress(ImportError):
                    importlib.import_module(name)
            modules.unlink()
            names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
            # The allocator of pyarrow has a thread that is ready for forks.
            others = [name for name in names[1:] if not name.startswith("jemalloc")]
            assert not others, f"A fork of a process with the threads {others} may never end."
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    main()
