"""Multiple-choice rows read in two more ways: retrieval and generation."""

from typing import Any

from prunelit.tasks import Generation, MultipleChoice, Retrieval, Task

# A text is cut where a model that was asked a question begins with the next one.
_STOP = ["\n\n", "Question:"]


def readings(task: MultipleChoice) -> list[Task]:
    """Retrieval and generation on the rows of a multiple-choice task.

    Retrieval finds the right choice among the choices of all rows. Generation reads the question
    alone, without examples and without a list of choices, writes on, and is right where the text
    has the right choice in it as whole words: with the task's own template, or the default one
    where that is for letters. Where the task scores the rest of a sentence with a blank, the
    sentence is read up to the blank.

    Args:
        task: whose rows they are.

    Returns:
        `<name>_retrieval` and `<name>_generation`.
    """
    rows: dict[str, Any] = {
        name: getattr(task, name)
        for name in ("path", "split", "subset", "format", "columns", "limit")
    }
    whole = task.scoring != "partial"
    template = task.template if task.scoring == "continuation" else "Question: {context}\nAnswer:"
    retrieval = Retrieval(**rows, name=f"{task.name}_retrieval")
    generation = Generation(
        **rows,
        questions="whole" if whole else "blank",
        template=template if whole else "{context}",
        chat=False,
        stop=_STOP,
        name=f"{task.name}_generation",
    )
    return [retrieval, generation]
