"""The command `prunelit`. It prints help and version without importing torch, which is slow."""

import os
import sys

# Other modules are imported when the working folder no longer hides those of libraries.

HELP = """\
usage: prunelit [-h] [--version] {fit,validate,sweep} --config FILE [options]

Prune a causal language model and see which of its uses survive.

subcommands:
  fit        Prune the model, write it, and compare it with the dense one.
  validate   Compare the pruned model that `fit` wrote with the dense one.
  sweep      Prune one model in several ways, write each, compare all with the dense one.

`prunelit fit --help` lists every option. `prunelit fit --config FILE --print_config` prints the
configuration of a run: that of the file, changed by the options after it.
"""


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


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        print(HELP, end="")
    elif arguments == ["--version"]:
        from importlib.metadata import version

        print(f"prunelit {version('prunelit')}")
    else:
        put_working_folder_last()
        check_ranks()
        from prunelit.core.signals import Stopped, stop_on_signals

        with stop_on_signals():  # from here on, since loading torch takes seconds
            try:
                from prunelit.cli import main as run

                run()
            except Stopped as stop:
                stop.tell("Start the same command again.")
                raise


if __name__ == "__main__":
    main()
