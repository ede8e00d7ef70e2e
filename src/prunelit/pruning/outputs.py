"""Measure how the output of a model changes with variations of its blocks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from prunelit.activations import sum_ranks_
from prunelit.data.batches import Batch
from prunelit.errors import InputError
from prunelit.models.absent import scratch
from prunelit.models.architecture import decoder_blocks, final_hidden, unembed
from prunelit.models.forwards import replaced_forwards
from prunelit.models.replay import Form, Stream, capture
from prunelit.models.variation import Variation

CHUNK = 128  # tokens whose logits exist at a time


class Outputs:
    """Measures the output of a model with each of several variations.

    All variations of a batch pass one block after another, so that a measurement is one sweep over
    the blocks for each batch.

    Args:
        model: in evaluation mode; its output as it is now is the dense one.
        batches: calibration text of this rank; there may be none.
        compared: (B, T) bool for each batch, the tokens at which outputs are compared.
        form: in which blocks return the hidden state.
        measure: `kl`, KL(dense || variation) of the next token; or `loss`, the negative
            log-likelihood of the next token with the variation.
        tick: gets how many pieces of work are done, and how many there are: a block that ran, or a
            variation that was compared.

    Attributes:
        values: for each of the variations that were measured last, the mean over the compared
            tokens of all ranks, nats.
    """

    edits = False

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Batch],
        compared: Sequence[Tensor],
        form: Form,
        measure: Literal["kl", "loss"],
        tick: Callable[[int, int], None],
    ) -> None:
        self.values: list[float] = []
        self._model = model
        self._batches = batches
        self._compared = compared
        self._form = form
        self._measure = measure
        self._tick, self._done, self._all = tick, 0, 0
        # Hidden states of the dense model at the compared tokens of each batch.
        self._dense: dict[int, Tensor] = {}
        self._variations: Sequence[Variation] = ()
        self._stream: Stream | None = None
        self._varied: dict[int, Tensor] = {}

    def measure(self, variations: Sequence[Variation]) -> Iterator[None]:
        """Begin with each batch: the caller then hands every block to `work`.

        Ranks that share the blocks take the same number of turns.

        Args:
            variations: to measure.
        """
        self._variations = variations
        sums = torch.zeros(len(variations) + 1, dtype=torch.float64)  # the last one counts tokens
        blocks = decoder_blocks(self._model)[1]
        # With its variation, a block runs in place of the dense one; without it, none does.
        runs = [len(blocks) - one.block - (one.edit is None) for one in variations]
        each = len(blocks) + sum(runs) + len(variations)
        read = [bool(chosen.any()) for chosen in self._compared]  # others would run for nothing
        self._done, self._all = 0, each * sum(read)
        for number in range(_most(len(self._batches), self._model.device)):
            self._stream, self._varied = None, {}
            if number < len(self._batches) and read[number]:
                batch = self._batches[number]
                self._stream = capture(self._model, blocks, batch, self._form)
            yield
            if self._stream is not None:
                sums += self._compare(number)
        self._stream, self._varied = None, {}
        sums = sums.to(self._model.device)
        sum_ranks_(sums)
        self.values = (sums[:-1] / sums[-1]).tolist()

    def work(self, index: int, block: nn.Module) -> None:
        """Take the model, and the model with each of the variations, through a block."""
        stream = self._stream
        if stream is None:
            return
        for place, hidden in self._varied.items():
            self._varied[place] = self._run(block, index, hidden)
        for place, variation in enumerate(self._variations):
            if variation.block != index:
                continue
            if variation.edit is None:
                self._varied[place] = stream.hidden
                continue
            with scratch(block):
                variation.edit(block)
                self._varied[place] = self._run(block, index, stream.hidden)
        stream.hidden = self._run(block, index, stream.hidden)

    def _run(self, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
        assert self._stream is not None
        output = self._stream.run(block, index, hidden)
        self._count()
        return output

    def _count(self) -> None:
        self._done += 1
        self._tick(self._done, self._all)

    def _compare(self, number: int) -> Tensor:
        """Sum the measure over the compared tokens of a batch for all variations, and count them.

        Returns:
            (V + 1,)

        Raises:
            InputError: if an output is not finite.
        """
        stream = self._stream
        assert stream is not None
        batch, mask = self._batches[number], self._compared[number]
        if number not in self._dense:
            self._dense[number] = self._finish(batch, stream.hidden)[mask]
        dense = self._dense[number]
        labels = batch["input_ids"].roll(-1, 1)[mask].to(dense.device)
        sums = torch.zeros(len(self._variations) + 1, dtype=torch.float64)
        sums[-1] = len(dense)
        hiddens = {
            place: self._finish(batch, hidden)[mask] for place, hidden in self._varied.items()
        }
        with torch.autocast(dense.device.type, enabled=False):
            for start in range(0, len(dense), CHUNK):
                part = slice(start, start + CHUNK)
                p = unembed(self._model, dense[part]).log_softmax(-1)
                share = p.exp()
                for place, hidden in hiddens.items():
                    q = unembed(self._model, hidden[part]).log_softmax(-1)
                    if self._measure == "loss":
                        found = F.nll_loss(q, labels[part], reduction="none")
                    else:
                        found = -q.sub_(p).mul_(share).sum(-1)  # in place: V numbers a token
                    sums[place] += found.double().sum().cpu()
                    if start == 0:
                        self._count()
        if not sums.isfinite().all():
            raise InputError(
                "The logits on the calibration text are not finite: load the model in a wider "
                "dtype, such as float32."
            )
        return sums

    def _finish(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Apply what the model does after its last block, (B, T, D)."""

        def return_hidden(*_args: Any, **_kwargs: Any) -> Any:
            return self._form.wrap(hidden)

        blocks = decoder_blocks(self._model)[1]
        with replaced_forwards(dict.fromkeys(blocks, return_hidden)):
            return final_hidden(self._model, **move_data_to_device(batch, self._model.device))


def _most(count: int, device: torch.device) -> int:
    """Return the largest count of all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    counts = torch.tensor(count, device=device)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return int(counts)
