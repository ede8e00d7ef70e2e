"""`prunelit` in a process that was forked from one which has imported everything.

`runpy.run_path` runs this file with the names FOLDER, ARGUMENTS, ENVIRONMENT and STREAMS.
"""

import atexit
import os
import sys

import torch

import prunelit.__main__

os.chdir(FOLDER)  # noqa: F821
os.environ.clear()
os.environ.update(ENVIRONMENT)  # noqa: F821
sys.argv = ["prunelit", *ARGUMENTS]  # noqa: F821
sys.stdout.flush()
sys.stderr.flush()
for path, stream in zip(STREAMS, (1, 2), strict=True):  # noqa: F821
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
torch.set_num_threads(1)
try:
    prunelit.__main__.main()
finally:
    atexit._run_exitfuncs()
