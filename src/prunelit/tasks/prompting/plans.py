"""Tokenise questions, find their common prefixes and group them into batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.models.inference.prefix_cache import shared_prefix_length
from prunelit.models.inference.token_tree import (
    Branch,
    Request,
    TokenTree,
    build_branch,
    build_tree,
)
from prunelit.tasks.prompting.choices import tokenise


@dataclass
class Plan:
    """Tokens of all questions.

    Args:
        pad_id: id of the padding token.
        roots: common prefixes of questions; the first is empty.
        root_of: for each question the number of its root.
        branches: for each question its tokens after the root.
        lengths: for each question the number of tokens of its longest sequence.
    """

    pad_id: int
    roots: list[list[int]] = field(default_factory=lambda: [[]])
    root_of: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def chunks(self, size: int, tokens: int) -> list[list[int]]:
        """Group questions of one root and of similar length, the longest first.

        Args:
            size: maximum number of questions per batch.
            tokens: maximum number of tokens of all stems in a batch. A single question may have
                more.
        """
        order = sorted(
            range(len(self.branches)),
            key=lambda i: (self.root_of[i], -len(self.branches[i].stem)),
        )
        chunks: list[list[int]] = []
        for index in order:
            last = chunks[-1] if chunks else []
            stems = sum(len(self.branches[i].stem) for i in [*last, index])
            alike = bool(last) and self.root_of[last[0]] == self.root_of[index]
            if not alike or len(last) == size or stems > tokens:
                chunks.append([])
            chunks[-1].append(index)
        return chunks

    def tree(self, indices: Sequence[int], tokens: int, packing: bool) -> TokenTree:
        """Build the token tree of the questions of a batch, which have one root."""
        root = self.roots[self.root_of[indices[0]]]
        branches = [self.branches[i] for i in indices]
        return build_tree(root, branches, self.pad_id, tokens, packing=packing)


def build_plan(
    tokenizer: PreTrainedTokenizerBase,
    pad_id: int,
    names: Sequence[str],
    preambles: Sequence[str],
    texts: Sequence[Sequence[tuple[str, str]]],
) -> Plan:
    """Tokenise questions and find their common prefixes.

    Args:
        tokenizer: of the model.
        pad_id: id of the padding token.
        names: of the questions, for errors.
        preambles: for each question the text before its prompts. Questions with the same text share
            a root.
        texts: for each question its pairs of prompt and continuation.

    Raises:
        InputError: naming the first question with a choice that adds no token to its prompt.
    """
    result = Plan(pad_id, root_of=[0] * len(texts))
    result.lengths = [0] * len(texts)
    branches: dict[int, Branch] = {}
    alike: dict[str, list[int]] = {}
    for index, text in enumerate(preambles):
        alike.setdefault(text, []).append(index)
    for text, indices in alike.items():
        pairs = [(text + prompt, rest) for index in indices for prompt, rest in texts[index]]
        found = iter(tokenise(tokenizer, pairs))
        requests = {index: [next(found) for _ in texts[index]] for index in indices}
        for index, own in requests.items():
            _check(own, names[index])
        every = [request for own in requests.values() for request in own]
        cut = shared_prefix_length([context for context, _ in every]) if len(indices) > 1 else 0
        if cut:
            result.roots.append(every[0][0][:cut])
        for index, own in requests.items():
            branches[index] = build_branch(own, cut)
            result.root_of[index] = len(result.roots) - 1 if cut else 0
            result.lengths[index] = max(len(c) + len(k) - 1 for c, k in own)
    result.branches = [branches[index] for index in range(len(texts))]
    return result


def _check(requests: Sequence[Request], name: str) -> None:
    if not all(context and continuation for context, continuation in requests):
        raise InputError(
            f"A choice of the row {name!r} adds no token to the prompt: set another `template` or "
            "`delimiter`."
        )
