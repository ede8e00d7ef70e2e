"""The text that a pruned model is trained on, and its batches in each epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.core.calibration_text import check_text
from prunelit.data.batches import Batch
from prunelit.data.rows import Documents


@checked
@dataclass
class RecoveryText:
    """Text that a pruned model is trained on to recover; use other text for the tasks.

    Its documents are tokenised, joined in a random order and cut into sequences of one length.

    Args:
        path: text rows, see `prunelit.data.load_rows`.
        split: of the data set.
        column: name of the column that holds the text.
        sequences: S, number of sequences. An epoch uses each of them once.
        length: L, tokens per sequence, the BOS token included.
        batch_size: sequences per rank and step. An incomplete batch at the end of an epoch is
            left out.
        seed: of the order of the documents, and of the order of the sequences in each epoch.
        bos: begin every sequence with a BOS token. None does what the tokenizer does for a text.
        documents: how a text file is divided, see `prunelit.data.load_texts`.
        subset: configuration of a data set on the hub.

    Example:
        >>> from prunelit import RecoveryText
        >>> text = RecoveryText("text.jsonl", split="train[70%:]", sequences=64, batch_size=8)
        >>> text.sequences // text.batch_size  # steps per epoch on one rank
        8
    """

    path: str
    split: str = "train"
    column: str = "text"
    sequences: int = 512
    length: int = 256
    batch_size: int = 4
    seed: int = 0
    bos: bool | None = None
    documents: Documents = "whole"
    subset: str | None = None

    def __post_init__(self) -> None:
        check_text(self)


class EpochBatches:
    """This rank's batches of recovery text, in an order drawn from the seed and the epoch.

    Every rank gets the same number of whole batches. The state counts the batches given out, so
    that a run resumed within an epoch continues with the next batch.

    Args:
        tokens: (S, L).
        batch_size: sequences per batch.
        seed: of the order.
        rank: of this process.
        world: number of processes.
        epoch: returns the current epoch.
    """

    def __init__(
        self,
        tokens: Tensor,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        epoch: Callable[[], int],
    ) -> None:
        self._tokens = tokens
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world = world
        self._epoch = epoch
        self._given = (0, 0)  # epoch, batches

    def __len__(self) -> int:
        return len(self._tokens) // (self._batch_size * self._world)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch()
        begun, given = self._given
        start = given if begun == epoch and given < len(self) else 0
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * epoch)
        order = torch.randperm(len(self._tokens), generator=generator)
        for number in range(start, len(self)):
            first = (number * self._world + self._rank) * self._batch_size
            ids = self._tokens[order[first : first + self._batch_size]]
            self._given = (epoch, number + 1)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and its number of batches given out, for a checkpoint."""
        return {"epoch": self._given[0], "batches": self._given[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the state that a checkpoint holds."""
        self._given = (state["epoch"], state["batches"])
