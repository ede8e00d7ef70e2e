"""Multiple-choice rows read in two more ways: retrieval and generation."""

from typing import Any

from prunelit.tasks import Generation, MultipleChoice, Retrieval, Task

# A text is cut where a model that was asked a question begins with the next one.
_STOP = ["\n\n", "Question:"]
# Where a task's own template is about what it scores.
_TEMPLATES = {
    "letter": "Question: {context}\nAnswer:",
    "partial": "Sentence: {context}\nThe word or words that fill the blank _:",
}


def readings(task: MultipleChoice) -> list[Task]:
    """Retrieval and generation on the rows of a multiple-choice task.

    Retrieval finds the right choice among the choices of all rows. Generation reads the question
    alone, without examples and without a list of choices, writes on, and is right where the text
    has the right choice in it as whole words. Its template is the task's own where that scores the
    choices as they are; otherwise it asks the question, or for what fills the blank.

    Args:
        task: whose rows they are.

    Returns:
        `<name>_retrieval` and `<name>_generation`.
    """
    rows: dict[str, Any] = {
        name: getattr(task, name)
        for name in ("path", "split", "subset", "format", "columns", "limit")
    }
    template = _TEMPLATES.get(task.scoring, task.template)
    retrieval = Retrieval(**rows, name=f"{task.name}_retrieval")
    generation = Generation(
        **rows,
        questions=True,
        template=template,
        chat=False,
        stop=_STOP,
        name=f"{task.name}_generation",
    )
    return [retrieval, generation]
