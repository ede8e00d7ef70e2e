"""Prompts in the model's own template, and their continuations, as one batch."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunelit.tasks import Generation, Retrieval
from prunelit.tasks.prompt_task import join_rollout


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    row = {"id": "a", "context": "One?", "choices": ["no", "yes"], "label": 1, "answer": "yes"}
    path.write_text(json.dumps(row))
    return str(path)


def test_prompts_begin_as_the_tokenizer_begins_a_text(
    questions: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    tokenizer.chat_template = "<end>{{ messages[0]['content'] }}!"
    expected = {False: "<end>Q: One?", True: "<end>Q: One?!"}
    for chat, text in expected.items():
        columns = {"context": "context", "target": "answer"}
        task = Generation(questions, columns=columns, template="Q: {context}", chat=chat)
        task.read()
        task.prepare(tokenizer)
        assert tokenizer.decode(task.collate([0])["input_ids"][0]) == text
        assert task.rollout_text(0, torch.tensor([5, -1])) == tokenizer.decode([5])


def test_embedded_texts_begin_as_the_tokenizer_begins_a_text(
    questions: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    task = Retrieval(questions, query_template="{text}", document_template="{text}")
    task.read()
    task.prepare(tokenizer)
    texts = [tokenizer.decode(task.collate([number])["input_ids"][0]) for number in range(3)]
    assert texts == ["<end>One?", "<end>no", "<end>yes"]


def test_prompts_and_rollouts_are_put_together() -> None:
    ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    tokens = torch.tensor([[1, 2], [3, -1]])
    text = join_rollout(ids, mask, tokens)
    assert text.input_ids.tolist() == [[0, 5, 6, 1, 2], [7, 8, 9, 3, 0]]
    assert text.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert text.steps.tolist() == [[True, True], [True, False]]
    # The last token of the prompt chooses the first one after it.
    assert text.prompt == 3
    assert text.positions == slice(2, 4)
