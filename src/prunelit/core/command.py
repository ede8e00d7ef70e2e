"""Check a command before it imports libraries, which takes seconds.

Internal: nothing here is public.
"""

import os
from collections.abc import Sequence

from prunelit.core.config_files import check_configs, config_paths
from prunelit.errors import InputError

SUBCOMMANDS = ("fit", "validate", "compare", "sweep", "search")  # methods of the trainer
READERS = ("report", "worse")  # of files of a run; they need no torch
NEW = "new"  # reads files without torch, then measures the dense model


def check_ranks() -> None:
    """Refuse ranks that are no numbers, which libraries read when they are imported.

    Raises:
        InputError: naming the variable.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK"):
        if not os.environ.get(name, "0").isdecimal():
            raise InputError(
                f"Expected the variable {name} as a whole number but got {os.environ[name]!r}: "
                "unset it."
            )


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse an unknown subcommand and configuration files that cannot be read.

    Raises:
        InputError: naming the subcommand or the file.
    """
    first = arguments[0]
    known = (NEW, *SUBCOMMANDS, *READERS)
    if not first.startswith("-") and first not in known:
        raise InputError(
            f"Expected one of {', '.join(map(repr, known))} but got {first!r}: see "
            "`prunelit --help`."
        )
    check_configs(config_paths(arguments))
