"""Reasons for which a right program may fail its tests, since the sandbox does not carry all."""

import ast

METHOD = "a method or operator of a class that the tests do not name"
OBJECT = "more of an object of the tests than to call, iterate or read it"
CLASS = "a class of the program as a base, in `case` or in `type(x) is`"
SWALLOWED = "an error of the tests that the program swallows in a `with`"
OWN_NAME = "a name of the tests that the program uses"
CONTAINER = "a container that the program holds and the tests change"
PLAIN = "a subclass of a plain class, whose objects come as plain values"
FILES = "a file or device outside of the program's own folder"
INTERPRETER = "a part of the interpreter that the tests and the program do not share"
NOT_CARRIED = (METHOD, OBJECT, CLASS, SWALLOWED, OWN_NAME, CONTAINER, INTERPRETER, PLAIN, FILES)

# Names by which tests change or watch their own interpreter, while the program has another one.
_NAMES = {
    *("patch", "assertLogs", "assertNoLogs", "assertWarns", "assertWarnsRegex", "catch_warnings"),
    *("stdin", "stderr", "environ", "putenv", "chdir", "open", "seed", "pickle", "__context__"),
    *("setrecursionlimit", "getsource", "getsourcelines", "getrefcount", "tracemalloc", "weakref"),
    *("getcontext", "setcontext", "localcontext", "setlocale", "wait_for", "timeout"),
}


def find_reason(code: str) -> str | None:
    """Return why a right program may fail these tests, as far as their text shows it.

    Args:
        code: of the tests.
    """
    try:
        nodes = [*ast.walk(ast.parse(code))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if any(isinstance(node, ast.AsyncWith) for node in nodes):
        return METHOD
    if any(isinstance(node, ast.MatchClass) or _is_identity(node) for node in nodes):
        return CLASS
    named = {
        *(node.id for node in nodes if isinstance(node, ast.Name)),
        *(node.attr for node in nodes if isinstance(node, ast.Attribute)),
        *(node.name for node in nodes if isinstance(node, ast.alias)),
    }
    return None if named.isdisjoint(_NAMES) else INTERPRETER


def _is_identity(node: ast.AST) -> bool:
    """Return whether code compares a class by `is`, such as `type(x) is Node`."""
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], (ast.Is, ast.IsNot))
        and isinstance(node.left, ast.Call)
        and isinstance(node.left.func, ast.Name)
        and node.left.func.id == "type"
    )
