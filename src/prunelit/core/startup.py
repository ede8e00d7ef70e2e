"""First steps of a command, before it imports libraries.

Internal: nothing here is public.
"""

import os
import sys


def put_working_folder_last() -> None:
    """Let the folder of the call hold a user's own classes, without hiding modules of libraries.

    `python -m` puts it first, and then a file such as `random.py` in it replaces that module.
    """
    folder = os.getcwd()
    sys.path[:] = [*(entry for entry in sys.path if entry not in ("", folder)), folder]


def check_ranks() -> None:
    """Refuse ranks that are no numbers, which libraries read when they are imported."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK"):
        if not os.environ.get(name, "0").isdecimal():
            print(
                f"prunelit: error: Expected the variable {name} as a whole number but got "
                f"{os.environ[name]!r}: unset it.",
                file=sys.stderr,
            )
            sys.exit(2)
