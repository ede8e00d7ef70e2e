"""Docstrings say what the code does, in the plain word order that CONTRIBUTING.md asks for."""

import ast
import re
from pathlib import Path

import pytest

from .walk import PACKAGE

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
INVERTED = re.compile(r"(What|Where|How|Whether|Which|When|Of)\b")
FIRST_SENTENCE = re.compile(r".*?[.?!](?=\s|$)", re.DOTALL)


def hard_to_read(path: Path) -> list[str]:
    """List a sentence for each docstring of a file that should be rewritten."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, DOCUMENTED) or not (text := ast.get_docstring(node)):
            continue
        place = f"{path}:{1 if isinstance(node, ast.Module) else node.lineno}"
        sentence = FIRST_SENTENCE.match(text)
        question = sentence is not None and sentence[0].endswith("?")
        if (word := INVERTED.match(text)) and not question:
            found.append(f"{place}: begin the docstring with a verb or a noun, not {word[0]!r}.")
        if "Called by Lightning" in text:
            found.append(f"{place}: say what the method does, not 'Called by Lightning'.")
    return found


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    sentences = [sentence for path in PACKAGE.rglob("*.py") for sentence in hard_to_read(path)]
    assert not sentences, "\n".join(sorted(sentences))


@pytest.mark.parametrize(
    ("docstring", "part"),
    [
        ("What a run reads.", "not 'What'"),
        ("Of all blocks the first.", "not 'Of'"),
        ("Whether it ran. Did it?", "not 'Whether'"),
        ("Runs.\n\n    Called by Lightning.", "not 'Called by Lightning'"),
        ("What is left?", None),
        ("How much is left? Counts the weights.", None),
        ("Offload a block.", None),
        ("Read the rows. What is read is kept.", None),
    ],
)
def test_the_rule(docstring: str, part: str | None, tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(f'x = 1\n\n\ndef run():\n    """{docstring}"""\n')
    sentences = hard_to_read(path)
    assert len(sentences) == (part is not None)
    assert all(f"{path}:4: " in sentence and str(part) in sentence for sentence in sentences)
