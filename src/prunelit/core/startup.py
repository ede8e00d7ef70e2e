"""First step of a command, before it imports any other module.

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
