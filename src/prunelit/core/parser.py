"""Parser of the command line that says in one sentence what is wrong."""

import os
import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from prunelit.core.config_files import config_paths
from prunelit.core.option_errors import explain_types, rephrase
from prunelit.errors import InputError, name_own_code, shorten
from prunelit.recipe import public_path


class OneSentenceParser(LightningArgumentParser):
    """A parser that reports an error in one sentence, without the usage of every option."""

    owner: str | None = None  # path of the class that takes the options
    started = "."  # folder that the paths on the command line are relative to

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Print the innermost reason of an error and exit with status 2."""
        sentence = str(message)
        if ex is not None and (reason := innermost(ex)) is not ex:
            key = re.match(r'Parser key "[^"]*"[^:]*:', sentence)
            sentence = f"{key[0] if key else ''} {reason}"
        os.chdir(self.started)  # a parser works in the folder of a file while it reads it
        parser = getattr(ex, "subcommand_parser", self)
        known = [*parser.get_defaults().keys()]
        files = config_paths(sys.argv[1:])
        sentence = (
            name_own_code(ex)
            or explain_types(str(message), self.owner, files)
            or rephrase(sentence, self.owner, known, files)
        )
        sentence += _for_another_subcommand(sentence)
        print(f"prunelit: error: {shorten(sentence)}", file=sys.stderr)
        sys.exit(2)

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> Any:
        """Add the arguments of a class, and remember the class if the parser is for it alone."""
        if not args and "nested_key" not in kwargs:
            self.owner = public_path(theclass)
        return super().add_class_arguments(theclass, *args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file, and name it if it cannot be read."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise InputError(f"{str(path)!r} is not UTF-8 text: save it as UTF-8.") from error


def _for_another_subcommand(sentence: str) -> str:
    """Say which subcommand a configuration is for, if it has a key that this one lacks."""
    if found := re.search(r"not accept `(variants|grid|knobs)\b", sentence):
        return (
            f" `{found[1]}` belongs to `prunelit sweep` and `prunelit search`: run one of them, or "
            "use a configuration of `fit`."
        )
    if found := re.search(r"not accept `(uses|seeds)`", sentence):
        return f" `{found[1]}` belongs to `prunelit search`: run that, or leave it out."
    if "not accept `baseline`" in sentence:
        return (
            " It belongs to `prunelit fit`, `validate` and `compare`: leave it out here, and add "
            "`Quantize` to `variants`."
        )
    if "not accept `pruning`" in sentence:
        return (
            " `pruning` belongs to `prunelit fit` and `prunelit validate`: run one of them, or "
            "leave it out; `prunelit sweep` takes `variants`, as `prunelit search`, and `prunelit "
            "compare` a `model.candidate`."
        )
    return ""


def innermost(error: BaseException) -> BaseException:
    """Find the cause of an error that lists every type that jsonargparse tried for a value."""
    while "any of the Union subtypes" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return error
