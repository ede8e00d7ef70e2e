"""The command `prunelit`. It prints help and version without importing torch, which is slow."""

import sys

from prunelit.core.startup import put_working_folder_last

# Other modules are imported when the working folder no longer hides those of libraries.

HELP = """\
usage: prunelit [-h] [--version] {fit,validate,compare,sweep,search} --config FILE [options]
       prunelit new --model MODEL [--search DIR] [--classify FILE] [--answer FILE] [--text FILE]
       prunelit report RUN... [-o FILE] [options]
       prunelit worse RUN --task NAME [--limit 10]

Prune a causal language model and see which of its uses survive.

subcommands:
  new        Look at your files, write a configuration of them, measure the dense model.
  fit        Prune the model, write it, and compare it with the dense one.
  validate   Compare the pruned model that `fit` wrote with the dense one.
  compare    Compare any other model (--model.candidate) with the dense one; needs no FILE.
  sweep      Prune one model in several ways, write each, compare all with the dense one.
  search     Find the largest setting of each method that still keeps each use.
  report     Write the page of one or several runs: verdicts, reasons, what got worse.
  worse      Print the items of a task that were right and became wrong.

`prunelit fit --help` lists every option. `prunelit fit --config FILE --print_config` prints the
configuration of a run: that of the file, changed by the options after it.
"""


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
        _check(arguments)
        from prunelit.core.command import NEW, READERS

        if arguments[0] in READERS:
            from prunelit.report.page.commands import run_command

            run_command(arguments)
            return
        from prunelit.core.signals import Stopped, stop_on_signals

        with stop_on_signals(last=True):  # from here on, since loading torch takes seconds
            try:
                if arguments[0] == NEW:
                    from prunelit.core.new.command import run_command

                    run_command(arguments[1:])
                else:
                    from prunelit.cli import main as run

                    run()
            except Stopped as stop:
                stop.pass_on()
                more = " with `--overwrite`" if arguments[0] == NEW else ""
                stop.tell(f"Start the same command again{more}.")
                raise


def _check(arguments: list[str]) -> None:
    """End a command that cannot be right, without importing torch."""
    from prunelit.core.command import check_arguments, check_ranks
    from prunelit.errors import explain

    try:
        check_ranks()
        check_arguments(arguments)
    except (ValueError, OSError) as error:
        text, status = explain(error)
        print(text, file=sys.stderr)
        sys.exit(status)


if __name__ == "__main__":
    main()
