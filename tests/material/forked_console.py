"""`prunelit` in a process that was forked from one which has imported everything.

`runpy.run_path` runs this file with the names FOLDER, ARGUMENTS, ENVIRONMENT, STREAMS and LIMITS.
With limits, figures are empty files.
"""

# pyright: reportUndefinedVariable=false, reportAttributeAccessIssue=false

import atexit
import os
import resource
import signal
import sys
from pathlib import Path

import matplotlib.figure
import torch

import prunelit.__main__
import prunelit.cli

os.setsid()
os.chdir(FOLDER)  # noqa: F821
os.environ.clear()
os.environ.update(ENVIRONMENT)  # noqa: F821
# The script, which Lightning starts for the other processes of a run.
sys.argv = [str(Path(sys.executable).with_name("prunelit")), *ARGUMENTS]  # noqa: F821
sys.stdout.flush()
sys.stderr.flush()
for path, stream in zip(STREAMS, (1, 2), strict=True):  # noqa: F821
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
torch.set_num_threads(1)
if LIMITS:  # noqa: F821
    seconds, memory = LIMITS  # noqa: F821
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(seconds)
    # Half of the time of a small run goes into figures.
    matplotlib.figure.Figure.savefig = lambda self, path, **_: Path(str(path)).touch()
try:
    prunelit.__main__.main()
finally:
    atexit._run_exitfuncs()
