"""The part of a prompt that the tests of a program may rely on."""

import pytest

from prunelit.tasks.judges.helpers import find_helpers

PROMPT = '''import math
from typing import List

LIMIT = 3

def poly(xs: list, x: float):
    """Evaluate a polynomial."""
    return sum(c * math.pow(x, i) for i, c in enumerate(xs))

class Node:
    pass

def find_zero(xs: List[float]):
    """Find a zero."""
'''


@pytest.mark.parametrize("solution", ["    return 0\n", "", "    import cmath\n    return ("])
def test_imports_and_complete_functions_are_helpers(solution: str) -> None:
    helpers = find_helpers(PROMPT, solution)
    first, second, function = helpers.statements
    assert (first, second) == ("import math", "from typing import List")
    assert function.startswith("def poly(xs: list, x: float):")
    assert helpers.names == ["LIMIT", "Node", "find_zero", "poly"]
    assert helpers.functions == ["find_zero", "poly"]


def test_a_function_that_the_solution_writes_anew_is_none() -> None:
    whole = PROMPT + "    return 0\n"
    # The whole program as a solution, and a prompt that shows a function with a fault.
    assert len(find_helpers(PROMPT, whole).statements) == 4  # imports of both, no function
    fault = "def twice(x):\n    return x\n"
    assert find_helpers(fault, "def twice(x):\n    return 2 * x\n").statements == []
    assert find_helpers(fault).statements == []
    stub = "".join(f"def f():\n    {body}\n" for body in ("raise ValueError", "...", "pass", "'x'"))
    assert find_helpers(stub, "\nx = 1\n").statements == []


def test_a_solution_names_what_a_prompt_of_words_asks_for() -> None:
    helpers = find_helpers("Write a function to add.", "import math\ndef sum(a, b): return a + b\n")
    assert helpers.names == ["sum"]
    assert find_helpers("It's text \0.").names == []
    assert find_helpers("def one():\n", "    return 1\n").names == ["one"]
    assert find_helpers("", "").names == []
