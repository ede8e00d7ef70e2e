"""Compare dense and pruned after every sublayer, in the three spaces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError, check_positive, check_whole
from prunelit.metrics.spaces.buffers import Buffers, rows_per_chunk
from prunelit.metrics.spaces.deviation import (
    check_not_nan,
    deviations,
    embedding_deviations,
    logit_space_deviations,
)
from prunelit.metrics.spaces.embedding import embedding_pair
from prunelit.metrics.spaces.logit_gram import LogitGram
from prunelit.models.architecture import decoder_blocks, unembed
from prunelit.models.inference.generation import rollout
from prunelit.models.model_pair import ModelPair
from prunelit.models.replay import End, Form, apply_final_norm, capture
from prunelit.models.sublayers import block_steps, counterfactual, find_layout
from prunelit.report.curves import Picture
from prunelit.report.quantities import LEADING
from prunelit.report.results import Result
from prunelit.report.tables import grouped_table
from prunelit.report.task_report import TaskReport
from prunelit.report.transitions import KINDS, kind_picture, kl_picture, theory_picture
from prunelit.tasks.item_table import ItemTable, Streamed
from prunelit.tasks.prompt_task import PromptTask, RolloutBatch, join_rollout

VARIANTS = ("local", "cumulative")
CHUNK = 64  # tokens unembedded at a time
_TENSORS = 4  # intermediates of tokens compared without logits, which a cache should hold


class Transitions(PromptTask):
    """Residual stream after each sublayer, dense against pruned (arXiv:2603.24652).

    Both models read the dense model's greedy rollout. After each sublayer and its residual
    connection, the streams of both models are compared: as they are (embedding space), unembedded
    (logit space) and as next-token distributions (probability space).

    * *Local*: the pruned sublayer reads the input of the dense sublayer, keys and values included.
      The dense model's final norm and unembedding are applied to both streams. This is the effect
      of one sublayer alone.
    * *Cumulative*: the pruned model's own stream, final norm and unembedding.

    The sublayers are `attention` and `mlp`. If some blocks have another mixer in the place of
    attention, such as a state space, all are called `mixer`. A dropped sublayer passes its input
    on. In blocks where mixer and MLP read the same input (GPT-NeoX, Phi), each of them is one step
    from that input.

    Decoding step s is the position whose logits choose the s-th token of the rollout. The tokens
    before step 0 are the prompt tokens.

    The embedding space is compared at every token. So is the logit space where both models have the
    same unembedding in float32, without a cap: its Gram matrix takes the place of logits, see
    `prunelit.metrics.LogitGram`. Elsewhere the logit space is compared at the tokens of the
    probability space, and `logit_tokens` in the details of a result says so.

    Metrics are means over blocks and tokens of a prompt, then over prompts. Curves show each block.

    Args:
        tokens: maximum number of tokens per prompt and per rollout that are compared in probability
            space. They are evenly spaced, and the last token is one of them. None compares all, 0
            none. Every comparison costs several unembeddings.
        final_norm: apply the final norm before the unembedding, as a logit lens does. Otherwise the
            stream keeps the scale that it has in the block.
        temperature: of the softmax.
        logit_gram: use the Gram matrix. False computes the logit space from logits in float32.
        kwargs: options of `PromptTask`.

    Example:
        >>> from prunelit.tasks import Transitions
        >>> task = Transitions("prunelit:facts.jsonl", limit=8, tokens=2)
        >>> task.name, task.needs_reference
        ('transitions', True)
    """

    needs_reference = True
    needs_equal = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")

    def __init__(
        self,
        path: str,
        tokens: int | None = 4,
        final_norm: bool = True,
        temperature: float = 1.0,
        logit_gram: bool = True,
        batch_size: int = 8,
        name: str = "transitions",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)
        if tokens is not None:
            check_whole("tokens", tokens, 0)
        check_positive("temperature", temperature)
        self.tokens = tokens
        self.final_norm = final_norm
        self.temperature = temperature
        self.logit_gram = logit_gram

    def check(self, model: PreTrainedModel) -> None:
        self._layout = find_layout(model)
        head = model.get_output_embeddings()
        assert head is not None
        read, width = head.get_parameter("weight").shape[1], self._layout.width
        if not self.final_norm and read != width:
            raise InputError(
                f"Expected `final_norm: true` for {type(model).__name__}: its unembedding needs "
                f"{read} numbers per token but its blocks return {width}."
            )
        self._buffers = Buffers()

    def step(self, pair: ModelPair, batch: dict[str, Any]) -> dict[str, Tensor | Streamed]:
        assert pair.dense is not None
        ids, mask = batch["input_ids"], batch["attention_mask"]
        steps = self.max_new_tokens
        rolled = pair.ask("dense", rollout, pair.tokenizer, ids, mask, max_new_tokens=steps)
        text = join_rollout(ids, mask, rolled.tokens)
        every = _Places.of(list(text.phases.values()))
        asked = _Places.of([self._spread(there) for there in text.phases.values()])
        values: dict[str, Tensor] = {}
        shape = len(ids), len(self._layout.blocks)
        for index, name, places, found in self._blocks(pair, text, every, asked):
            for quantity, value in found.items():
                key = f"{name}/{quantity}"
                if key not in values:
                    absent = torch.full((*shape, 2 * places.room), torch.nan, dtype=torch.float64)
                    values[key] = absent
                values[key][places.row.cpu(), index, places.column.cpu()] = value.cpu()
        streamed: dict[str, Tensor | Streamed] = {}
        for key, value in values.items():
            name, _, quantity = key.rpartition("/")
            for phase, part in zip(text.phases, value.chunk(2, -1), strict=True):
                streamed[f"{name}/{phase}/{quantity}"] = Streamed(part)
                if quantity in LEADING:
                    streamed[f"item/{name}/{phase}/{quantity}"] = part.flatten(1).nanmean(1)
        return streamed

    def report(self, table: ItemTable) -> TaskReport:
        results = self._results(table)
        return TaskReport(
            results,
            table=grouped_table(results, "variant/sublayer/tokens"),
            curves=table.sketch_curves(),
            pictures=_pictures(table),
        )

    def _results(self, table: ItemTable) -> list[Result]:
        details = {
            **self.details(),
            "decoding": "greedy",
            "tokens": self.tokens,
            "final_norm": self.final_norm,
            "temperature": self.temperature,
            "logit_tokens": self._logit_tokens(table),
        }
        return table.item_results(self.name, details)

    def _logit_tokens(self, table: ItemTable) -> int | str | None:
        """Return the tokens that were compared in logit space, as `tokens` says it, or `every`."""
        embedding, logit = (
            sum(
                int(sketch.tokens.sum())
                for name, sketch in table.sketches.items()
                if name.endswith(f"/{space}_cosine")
            )
            for space in ("embedding", "logit")
        )
        return "every" if logit == embedding else self.tokens

    @torch.no_grad()
    def _blocks(
        self, pair: ModelPair, text: RolloutBatch, every: "_Places", asked: "_Places"
    ) -> Iterator[tuple[int, str, "_Places", dict[str, Tensor]]]:
        """Yield the deviations at N places, each (N,), for each block, variant and sublayer."""
        assert pair.dense is not None
        gram = pair.logit_gram() if self.logit_gram else None
        among = asked.among(every)
        batch = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        form, structures, names = self._layout.form, self._layout.blocks, self._layout.names
        lenses = [
            _Lens(model, form if self.final_norm else None) for model in (pair.dense, pair.pruned)
        ]
        own = decoder_blocks(pair.dense)[1]
        kept = pair.kept_blocks()
        theirs = decoder_blocks(pair.pruned)[1]
        dense = capture(pair.dense, own, batch, form)
        pruned = capture(pair.pruned, theirs, batch, form)
        for index, block in enumerate(own):
            structure = structures[index]
            steps = block_steps(dense, block, index, dense.hidden, structure)
            found: dict[str, dict[str, Tensor]] = {
                "local": {kind: before for kind, (before, _) in steps.sublayers.items()},
                "cumulative": dict.fromkeys(steps.sublayers, pruned.hidden),
            }
            if (other := kept.get(index)) is not None:
                block = theirs[other]
                found["local"] = counterfactual(pruned, block, other, steps, structure)
                mine = block_steps(pruned, block, other, pruned.hidden, structure)
                found["cumulative"] = {kind: after for kind, (_, after) in mine.sublayers.items()}
                pruned.hidden = mine.output
            ways = ({kind: out for kind, (_, out) in steps.sublayers.items()}, *found.values())
            # The streams of all sublayers of the block, one after the other: (K, N, D).
            stands = [
                torch.stack([h.flatten(0, 1)[every.flat] for h in own.values()]) for own in ways
            ]
            with torch.autocast(stands[0].device.type, enabled=False):
                streams = _compare_streams(lenses, stands, gram)
                spread = self._compare_logits(lenses, [hidden[:, among] for hidden in stands])
            for variant, own, of_logits in zip(VARIANTS, streams, spread, strict=True):
                rest = {key: value for key, value in of_logits.items() if key not in own}
                for places, values in ((every, own), (asked, rest)):
                    for number, kind in enumerate(steps.sublayers):
                        one = {key: value[number] for key, value in values.items()}
                        yield index, f"{variant}/{names[kind]}", places, one
            dense.hidden = steps.output

    def _compare_logits(
        self, lenses: "Sequence[_Lens]", stands: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Compute the deviations of logits and probabilities, see `_compare_streams`."""
        parts: list[list[dict[str, Tensor]]] = [[], []]
        if not stands[0].numel():
            return [{}, {}]
        for dense, *others in zip(*(x.flatten(0, 1).split(CHUNK) for x in stands), strict=True):
            logits = lenses[0].unembed(dense)
            for part, lens, other in zip(parts, lenses, others, strict=True):
                values = deviations(
                    None,
                    None,
                    logits,
                    lens.unembed(other),
                    temperature=self.temperature,
                    buffers=self._buffers,
                )
                part.append(values)
        return [_join(part, len(stands[0])) for part in parts]

    def _spread(self, there: Tensor) -> Tensor:
        """Keep at most `tokens` True values per row of (B, W), evenly spaced, with the last one."""
        if self.tokens is None:
            return there
        count = there.sum(1, keepdim=True)
        # Mark m chooses the value of rank floor(m * count / tokens) - 1: the last mark is the last.
        rank = there.long().cumsum(1) - 1
        marks = torch.arange(1, self.tokens + 1, device=there.device)
        wanted = (marks * count).div(self.tokens, rounding_mode="floor") - 1  # (B, tokens)
        return there & (rank[:, :, None] == wanted[:, None]).any(-1)


@dataclass(frozen=True)
class _Places:
    """Places of N tokens in a batch of B prompts with their rollouts.

    Args:
        row: (N,), number of the prompt.
        flat: (N,), place in a tensor (B T, D).
        column: (N,), place among the tokens of this kind: those of prompts, then of rollouts.
        room: number of columns for each of the two.
        chosen: (B, 2, T) bool, True for the N.
    """

    row: Tensor
    flat: Tensor
    column: Tensor
    room: int
    chosen: Tensor

    @classmethod
    def of(cls, phases: Sequence[Tensor]) -> "_Places":
        """Find the places of the tokens of prompts and of rollouts, two masks (B, T)."""
        chosen = torch.stack(list(phases), 1)
        row, phase, place = chosen.nonzero(as_tuple=True)
        number = (chosen.long().cumsum(-1) - 1)[row, phase, place]
        room = int(number.max()) + 1 if len(number) else 0
        flat = row * chosen.shape[-1] + place
        return cls(row, flat, phase * room + number, room, chosen)

    def among(self, others: "_Places") -> Tensor:
        """Return the (N,) places of these tokens in the order of others, which include them."""
        return self.chosen[others.chosen].nonzero()[:, 0]


class _Lens:
    """The end of a model, which any stream in it can be read through.

    Args:
        model: in evaluation mode.
        form: type in which blocks return the hidden state; None leaves out the final norm.
    """

    def __init__(self, model: PreTrainedModel, form: Form | None) -> None:
        self._model = model
        self._end = None if form is None else End.of(model, form)

    def embed(self, hidden: Tensor) -> Tensor:
        """Return the input of the unembedding, (N, D) to (N, D')."""
        return hidden if self._end is None else apply_final_norm(self._end, hidden)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return logits, (N, D) to (N, V)."""
        return unembed(self._model, self.embed(hidden))


def _compare_streams(
    lenses: Sequence[_Lens], stands: Sequence[Tensor], gram: LogitGram | None
) -> list[dict[str, Tensor]]:
    """Compute the deviations from the dense stream that need no logits.

    Args:
        lenses: of the dense and of the pruned model.
        stands: (K, N, D), the dense, the local and the cumulative stream. The first two are read
            through the dense model.
        gram: of the unembedding; None leaves out the logit space.

    Returns:
        Those of the local and of the cumulative stream, each (K, N).
    """
    flat = [hidden.flatten(0, 1) for hidden in stands]
    read: Sequence[Tensor] = ()
    if gram is not None:
        both = lenses[0].embed(torch.cat(flat[:2])).chunk(2)
        read = (*both, lenses[1].embed(flat[2]))
    parts: list[list[dict[str, Tensor]]] = [[], []]
    size = max(1, rows_per_chunk(flat[0]) // _TENSORS)
    for start in range(0, len(flat[0]), size):
        dense, *others = (x[start : start + size] for x in flat)
        found = [embedding_deviations(embedding_pair(dense, other)) for other in others]
        if gram is not None:
            h, *others = (x[start : start + size] for x in read)
            applied = gram.apply(h)
            for values, other in zip(found, others, strict=True):
                values |= logit_space_deviations(gram.compare(h, other, applied))
        for part, values in zip(parts, found, strict=True):
            part.append(values)
    return [_join(part, len(stands[0])) for part in parts]


def _join(parts: Sequence[dict[str, Tensor]], kinds: int) -> dict[str, Tensor]:
    """Join the values of chunks, (K, N), and refuse NaN."""
    values = {name: torch.cat([part[name] for part in parts]).view(kinds, -1) for name in parts[0]}
    check_not_nan(values)
    return values


def _pictures(table: ItemTable) -> Iterator[tuple[str, Picture]]:
    curves = {curve.tag: curve for curve in table.sketch_curves()}
    for kind in KINDS:
        if any(tag.startswith(f"{VARIANTS[0]}/{kind}/") for tag in curves):
            yield f"transitions_{kind}", kind_picture(curves, kind)
    if any(tag.endswith("/kl_dense_pruned") for tag in curves):
        yield "transitions_kl", kl_picture(curves)
    yield "transitions_theory", theory_picture(curves)
