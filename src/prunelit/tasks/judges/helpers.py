"""The part of a prompt that the tests of a program may rely on."""

import ast
import warnings
from dataclasses import dataclass, field

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Helpers:
    """Names that the tests of a program do not take from the program, and those that they may.

    Args:
        statements: imports and complete functions of the prompt, one a string. A program that
            defines a function of them anew does not change its own tests.
        names: what a right program defines. Only these may stand for a builtin of the same name.
        functions: those of the names that are functions.
    """

    statements: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)


def find_helpers(context: str, solution: str = "") -> Helpers:
    """Find the helpers of a prompt.

    A function whose body is still to be written is none, nor is one that the solution replaces.
    Classes are left to the program, since its functions get and return their objects.

    Args:
        context: the code of the prompt; text that is no code has no helpers.
        solution: a right continuation; empty if there is none.
    """
    whole = _parse(context + solution)
    if whole is None or not solution.strip():
        *given, last = _parse(context) or [ast.Pass()]
        added = [last, *(_parse(solution) or [])]
    else:
        lines = context.count("\n")
        given = [node for node in whole if (node.end_lineno or 0) <= lines]
        added = whole[len(given) :]
    replaced = {name for node in added for name in _defined(node)}
    kept = [node for node in given + added if isinstance(node, (ast.Import, ast.ImportFrom))]
    kept += [
        node
        for node in given
        if isinstance(node, _FUNCTIONS) and node.name not in replaced and not _is_stub(node)
    ]
    names = {name for node in given for name in _defined(node)} | replaced
    functions = {node.name for node in given + added if isinstance(node, _FUNCTIONS)}
    return Helpers([ast.unparse(node) for node in kept], sorted(names), sorted(functions))


def _parse(code: str) -> list[ast.stmt] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in strings
        try:
            return ast.parse(code).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines, imports left out."""
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return [node.name]
    return [
        name.id
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    ]


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a body does nothing: a docstring, `...`, `pass`, NotImplementedError."""
    return all(
        isinstance(line, (ast.Pass, ast.Raise))
        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in node.body
    )
