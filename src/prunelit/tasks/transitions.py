"""Compare dense and pruned after every sublayer, in the three spaces."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError, check_positive
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.deviation import check_not_nan, deviations
from prunelit.models.architecture import decoder_blocks, unembed
from prunelit.models.inference.generation import rollout
from prunelit.models.model_pair import ModelPair
from prunelit.models.replay import apply_final_norm, capture
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

    Metrics are means over blocks and tokens of a prompt, then over prompts. Curves show each block.

    Args:
        tokens: maximum number of compared tokens per prompt and per rollout. They are evenly
            spaced, and the last token is one of them. None compares all. Every comparison costs
            several unembeddings.
        final_norm: apply the final norm before the unembedding, as a logit lens does. Otherwise the
            stream keeps the scale that it has in the block.
        temperature: of the softmax.
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
        batch_size: int = 8,
        name: str = "transitions",
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, batch_size=batch_size, name=name, **kwargs)
        if tokens is not None and tokens < 1:
            raise InputError(f"Expected `tokens` of at least 1 but got {tokens}.")
        check_positive("temperature", temperature)
        self.tokens = tokens
        self.final_norm = final_norm
        self.temperature = temperature

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
        chosen = [self._spread(there) for there in text.phases.values()]
        row, slot = torch.cat(chosen, 1).nonzero(as_tuple=True)  # positions, prompt then decode
        width = text.input_ids.shape[1]
        place = slot % width
        # Column j holds the j-th compared token of a prompt or of a rollout.
        number = torch.cat([there.long().cumsum(1) - 1 for there in chosen], 1)[row, slot]
        room = int(number.max()) + 1
        column = (slot // width) * room + number
        values: dict[str, Tensor] = {}
        blocks = len(self._layout.blocks)
        for index, name, found in self._blocks(pair, text, row, place):
            for quantity, value in found.items():
                key = f"{name}/{quantity}"
                if key not in values:
                    values[key] = torch.full(
                        (len(ids), blocks, 2 * room), torch.nan, dtype=torch.float64
                    )
                values[key][row.cpu(), index, column.cpu()] = value.cpu()
        streamed: dict[str, Tensor | Streamed] = {}
        for key, value in values.items():
            name, _, quantity = key.rpartition("/")
            for phase, part in zip(text.phases, value.split(room, -1), strict=True):
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
        }
        return table.item_results(self.name, details)

    @torch.no_grad()
    def _blocks(
        self, pair: ModelPair, text: RolloutBatch, row: Tensor, place: Tensor
    ) -> Iterator[tuple[int, str, dict[str, Tensor]]]:
        """Yield the deviations at N positions, each (N,), for each block, variant and sublayer."""
        assert pair.dense is not None
        batch = {"input_ids": text.input_ids, "attention_mask": text.attention_mask}
        form, structures, names = self._layout.form, self._layout.blocks, self._layout.names
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
            for kind, (_, after) in steps.sublayers.items():
                stands = [after, *(found[variant][kind] for variant in VARIANTS)]
                compared = self._compare(pair, [hidden[row, place] for hidden in stands])
                for variant, deviation in zip(VARIANTS, compared, strict=True):
                    yield index, f"{variant}/{names[kind]}", deviation
            dense.hidden = steps.output

    def _compare(self, pair: ModelPair, stands: list[Tensor]) -> list[dict[str, Tensor]]:
        """Compute the deviations of the local and the cumulative stream from the dense stream.

        Each stream is (N, D).
        """
        assert pair.dense is not None
        parts: list[dict[str, list[Tensor]]] = [{}, {}]
        models = (pair.dense, pair.pruned)
        with torch.autocast(stands[0].device.type, enabled=False):
            for dense, *others in zip(*(h.split(CHUNK) for h in stands), strict=True):
                logits = self._unembed(pair.dense, dense)
                for part, model, other in zip(parts, models, others, strict=True):
                    values = deviations(
                        dense,
                        other,
                        logits,
                        self._unembed(model, other),
                        temperature=self.temperature,
                        buffers=self._buffers,
                    )
                    for name, value in values.items():
                        part.setdefault(name, []).append(value)
        found = [{name: torch.cat(value) for name, value in part.items()} for part in parts]
        for values in found:
            check_not_nan(values)
        return found

    def _unembed(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        h = apply_final_norm(model, hidden, self._layout.form) if self.final_norm else hidden
        return unembed(model, h)

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


def _pictures(table: ItemTable) -> Iterator[tuple[str, Picture]]:
    curves = {curve.tag: curve for curve in table.sketch_curves()}
    for kind in KINDS:
        if any(tag.startswith(f"{VARIANTS[0]}/{kind}/") for tag in curves):
            yield f"transitions_{kind}", kind_picture(curves, kind)
    yield "transitions_kl", kl_picture(curves)
    yield "transitions_theory", theory_picture(curves)
