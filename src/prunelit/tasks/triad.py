"""Retrieval and generation on the rows of a multiple-choice task."""

from typing import Any

from prunelit.tasks import Generation, MultipleChoice, Retrieval, Task

# Cut a text where the model goes on with a question of its own.
_STOP = ["\n\n", "Question:"]
# Templates for generation, for the scorings whose own template does not ask the plain question.
_TEMPLATES = {
    "letter": "Question: {context}\nAnswer:",
    "partial": "Sentence: {context}\nThe word or words that fill the blank _:",
}


def triad_tasks(task: MultipleChoice) -> list[Task]:
    """Build the retrieval task and the generation task on the same rows.

    Retrieval searches the right choice among the choices of all rows. Generation asks the question
    without examples and without a list of choices. Its answer is right if it contains the right
    choice as whole words. With the scoring `continuation` it uses the template of `task`.

    Args:
        task: gives the rows and their format.

    Returns:
        Tasks with the names `<name>_retrieval` and `<name>_generation`.

    Example:
        >>> from prunelit.tasks import MultipleChoice
        >>> from prunelit.tasks.triad import triad_tasks
        >>> task = MultipleChoice("prunelit:facts.jsonl", name="facts")
        >>> [other.name for other in triad_tasks(task)]
        ['facts_retrieval', 'facts_generation']
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
