"""Callback that prunes a model before training, and in later rounds during recovery."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from prunelit.arguments import checked
from prunelit.callbacks.checkpoints import checkpoint_folders, last_checkpoints, read_checkpoint
from prunelit.callbacks.pruned_folder import (
    check_code,
    check_output,
    find_folder,
    read_own,
    tell_other,
)
from prunelit.callbacks.rounds import check_rounds, check_stream, require_prunelit
from prunelit.callbacks.watchers import BestCheckpoint, selection_recipe
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.files import check_local, check_space, only_writer
from prunelit.models.architecture import decoder_blocks
from prunelit.models.fingerprint import weight_bytes
from prunelit.models.report_file import read_report
from prunelit.models.saving import check_unchanged, save_pretrained
from prunelit.models.stores import is_shared
from prunelit.models.streaming import place_model
from prunelit.pruners.base import Pruner
from prunelit.pruning import PruningReport, prune
from prunelit.pruning.masks import Masks
from prunelit.pruning.prune import describe_batches
from prunelit.pruning.report import Missing, find_missing
from prunelit.recipe import describe, find_differences, tell_differences
from prunelit.report.tables import pruning_table, show, size_sentence, sparsity_sentence, wrap
from prunelit.schedule import OneShot, Schedule


@checked
class Pruning(Callback):
    """Prune the model at the start of a run, and in later rounds while it recovers.

    `fit` prunes, trains if `trainer.max_epochs` is not 0, and writes the pruned model. `validate`
    uses the model that `fit` wrote if its recipe is the same. Otherwise it says so and prunes in
    memory, or stops with an error if the recipe needs training. A run with another recipe writes
    `pruned-<id>` beside `pruned`; no pruned model is replaced by that of another recipe.

    Removed weights stay 0 in training, and a later round removes more. To continue a stopped run,
    use `--ckpt_path last`; it ends with the same model as a run without a stop.

    To change what a round does, override `apply`; the arguments of the constructor are part of the
    recipe.

    Args:
        pruner: the method.
        output: folder of the pruned model, which must not hold one of another recipe; None is
            `pruned` under `trainer.default_root_dir`, or `pruned-<id>` if another recipe is there.
        schedule: the rounds; None is one round.
        custom_code: put code into the folder of a model whose blocks differ, by which transformers
            alone loads it with `trust_remote_code=True`, see `prunelit.save_pretrained`.

    Example:
        >>> from prunelit.callbacks import Pruning
        >>> from prunelit.pruners import Wanda
        >>> from prunelit.schedule import Cubic
        >>> from prunelit.sparsity import Unstructured
        >>> pruning = Pruning(Wanda(Unstructured(0.5)), schedule=Cubic(rounds=3))
        >>> pruning.schedule.rounds
        3
    """

    def __init__(
        self,
        pruner: Pruner,
        output: str | None = None,
        schedule: Schedule | None = None,
        custom_code: bool = False,
    ) -> None:
        check_local(output or "")
        self.pruner = pruner
        self.output = output
        self.schedule = schedule
        self.custom_code = custom_code
        self.report: dict[str, Any] | None = None
        self.verbose = False  # True prints a line for each block; in a sweep the other lines too
        self.always_writes = False  # True also writes in `validate`, as a sweep needs
        self.masks = Masks()
        self.written: Path | None = None  # folder of the pruned model, if it is on disk
        self._into = Path()
        self._lock = ExitStack()  # held until the folder is written
        self._rounds: list[dict[str, Any]] = []
        self._last: PruningReport | None = None
        self._recipe: dict[str, Any] | None = None
        self._processes = 1
        self._handles: list[RemovableHandle] = []
        self._dense: dict[str, Missing] = {}  # what the dense model misses already

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run, then prune the first round or load the pruned model that `fit` wrote."""
        if self.report is not None:  # `fit` ran before this `validate` in the same process
            return
        data, module = require_prunelit(trainer, pl_module)
        module.check_run(self.pruner)
        check_stream(self.pruner, data)
        if self.custom_code:
            check_code(self.pruner, module.weights.load_config())
        recipe = self._recipe = self.recipe(data, module)
        folder = self._into = self.find_folder(trainer, module, recipe)
        self._processes = trainer.world_size
        if stage == "fit":
            self._claim(trainer)
            check_output(folder, recipe)
            check_rounds(self._schedule, self.pruner, module, data)
            self._check_unfinished(trainer, module)
            if trainer.ckpt_path is not None:  # the checkpoint holds the result of the first round
                self._check_saved(read_checkpoint(trainer.ckpt_path), trainer.ckpt_path)
                module.load()
                self._count(module)
                return
        elif self._load_pruned(trainer, module, folder, recipe):
            return
        elif self.always_writes:
            self._claim(trainer)
        module.check_prunes()
        # All checks come before the first round, also those of a later round.
        module.load()
        self._count(module)
        assert module.model is not None
        self.pruner.check(module.model)
        module.check_tasks()
        if module.trains:
            module.recovery.check(module.model)
        writes = stage == "fit" or self.always_writes
        if writes:
            self._check_space(trainer, module.model)
        self._round(trainer, module, data)
        if not module.trains:
            self._finish(trainer, module, write=writes)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let other runs write the folder."""
        self._lock.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let other runs write the folder."""
        self._lock.close()

    def _claim(self, trainer: Trainer) -> None:
        """Refuse a folder that another run is writing, and keep other runs away."""
        if trainer.is_global_zero:
            self._lock.enter_context(only_writer(self._into))

    def _check_unfinished(self, trainer: Trainer, module: PairedLM) -> None:
        """Refuse to overwrite the checkpoint of a training that wrote no pruned model."""
        for path in last_checkpoints(trainer, to_overwrite=True):
            recipe = self._saved(read_checkpoint(path), path).get("recipe") or {}
            if read_own(self.find_folder(trainer, module, recipe), recipe) is None:
                raise InputError(
                    f"{str(path)!r} is the checkpoint of a training that did not finish: continue "
                    "it with `--ckpt_path last`, or remove the file to start anew."
                )

    def _saved(self, checkpoint: dict[str, Any], path: Any) -> dict[str, Any]:
        """Return the plain part of this callback's state in a checkpoint; empty without one."""
        state = checkpoint["callbacks"].get(self.state_key)
        try:
            return dict(json.loads(state["json"])) if state else {}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The checkpoint {str(path)!r} is damaged: the state of `Pruning` in it cannot be "
                "read. Continue from another one, or remove it and start without `ckpt_path`."
            ) from error

    def _check_saved(self, checkpoint: dict[str, Any], path: Any) -> dict[str, Any]:
        """Return what `_saved` does; refuse the checkpoint of another run."""
        saved = self._saved(checkpoint, path)
        mine = {**(self._recipe or {}), "processes": self._processes}
        other = {**(saved.get("recipe") or {}), "processes": saved.get("processes")}
        if find_differences(mine, other):
            raise InputError(
                f"The checkpoint {str(path)!r} was written by a run with another recipe "
                f"({tell_differences(mine, other)}): use the configuration of that run, or start "
                "again without `ckpt_path`."
            )
        return saved

    def _check_space(self, trainer: Trainer, model: PreTrainedModel) -> None:
        """Refuse disks that cannot hold the weights; a smaller model needs less than is known."""
        size, folders = weight_bytes(model), checkpoint_folders(trainer)
        needs = {} if self.pruner.shrinks else {str(self._into): size}
        check_space(needs | dict.fromkeys(folders, size))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to hold removed weights at 0."""
        self._hold(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune the rounds that are due."""
        self._catch_up(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Prune the rounds that are due."""
        self._catch_up(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Assert that all removed weights are still 0."""
        assert isinstance(pl_module, PairedLM)
        assert pl_module.model is not None
        if pl_module.recovery.lora is None:
            self.masks.check(pl_module.model)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last weights of training, or the best ones if a callback kept them."""
        _, module = require_prunelit(trainer, pl_module)
        if not module.trains:
            return
        for handle in self._handles:
            handle.remove()
        if module.rounds_left:
            raise InputError(
                f"Training ended after {len(self._rounds)} of {self._schedule.rounds} rounds, so "
                "no pruned model was written: train longer and continue with `--ckpt_path last`."
            )
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint):
                callback.restore(module)
                rank_zero_info(f"The best weights are those of {callback.best_model_path}.")
        module.end_training()
        self.masks.apply_(module.pair.pruned)
        self.masks.check(module.pair.pruned)
        self._finish(trainer, module, write=True)

    def state_dict(self) -> dict[str, Any]:
        """Collect the masks, the recipe, the rounds and the report for a checkpoint."""
        assert self._last is not None
        # As text, because loading a checkpoint allows only tensors and plain values.
        plain = {
            "recipe": self._recipe,
            "processes": self._processes,
            "rounds": self._rounds,
            "report": self._last.as_dict(),
        }
        masks, text = self.masks.pack(), json.dumps(plain)
        return {"masks": masks, "json": text, "sha256": _digest(masks, text)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the masks, the rounds and the report.

        Raises:
            InputError: if the checkpoint belongs to another run, or its masks, rounds or report
                are not those that were written.
        """
        plain = self._check_saved(checkpoint, trainer.ckpt_path)
        state = checkpoint["callbacks"][self.state_key]
        if state.get("sha256") != _digest(state["masks"], state["json"]):
            raise InputError(
                f"The masks or the rounds in the checkpoint {str(trainer.ckpt_path)!r} are not "
                "those that were written: continue from another one, or remove it and start "
                "without `ckpt_path`."
            )
        assert isinstance(pl_module, PairedLM)
        assert pl_module.model is not None
        self._rounds = plain["rounds"]
        pl_module.rounds_left = self._schedule.rounds - len(self._rounds)
        self.masks = Masks.unpack(state["masks"], pl_module.model)
        self._last = PruningReport.from_dict(plain["report"])

    def apply(self, trainer: Trainer, module: PairedLM, data: PruneData) -> PruningReport:
        """Prune the model in place on the device of this rank, to the fraction of this round.

        Args:
            trainer: the running trainer.
            module: holds the model.
            data: holds the calibration text.

        Returns:
            The report of this round.
        """
        device = trainer.strategy.root_device
        module.load()
        model = module.pair.pruned
        place_model(model, device)
        fraction = self._schedule.fraction(len(self._rounds))
        pruner = self.pruner if fraction == 1 else self.pruner.scale(fraction)
        with trainer.precision_plugin.forward_context():
            # Later rounds and training need the places of dropped parts.
            shrink = not module.trains and self._schedule.rounds == 1
            batches = data.calibration_batches()
            return prune(model, pruner, batches, shrink=shrink, dense_cache=module.dense_cache)

    @property
    def _schedule(self) -> Schedule:
        return self.schedule or OneShot()

    def _load_pruned(
        self, trainer: Trainer, module: PairedLM, folder: Path, recipe: dict[str, Any]
    ) -> bool:
        """Load the model that `fit` wrote, if its recipe is the same."""
        report = read_own(folder, recipe)
        # Ranks must agree even if they do not share a disk, since they prune together.
        if trainer.strategy.reduce_boolean_decision(report is not None, all=True):
            assert report is not None
            compared = check_unchanged(folder, report)
            del report["content"]
            if self._tells:
                rank_zero_info(
                    f"Using the pruned model in {folder}: its recipe is this one. Its files and "
                    f"{compared} are as they were written."
                )
            module.load(pruned_folder=folder)
            self.report, self.written = report, folder
            return True
        folder = self.folder(trainer)
        why = tell_other(read_report(folder), recipe)
        if module.trained:
            raise InputError(f"{folder} {why}, and this recipe needs training: run `prunelit fit`.")
        where, then = ("", "") if self.always_writes else (" in memory", "; `fit` would write it")
        if self._tells or read_report(folder) is not None:
            rank_zero_info(f"Pruning{where}, since {folder} {why}{then}.")
        return False

    @property
    def _tells(self) -> bool:
        """False in a sweep, which prints a line for each variant."""
        return self.verbose or not self.always_writes

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = self._schedule.due(trainer.current_epoch, trainer.global_step)
        while len(self._rounds) < due:
            data, module = require_prunelit(trainer, pl_module)
            self._round(trainer, module, data)
            self._hold(trainer, module)

    def _round(self, trainer: Trainer, module: PairedLM, data: PruneData) -> None:
        index, start = len(self._rounds), time.perf_counter()
        with module.whole(module.pair.pruned, edited=True):
            report = self._last = self._recount(self.apply(trainer, module, data), module)
            self.masks.merge(report.masks)
            self.masks.apply_(module.pair.pruned)  # a user's method may change removed weights
        entry = {
            "round": index + 1,
            "fraction": self._schedule.fraction(index),
            "sparsity": report.sparsity,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": time.perf_counter() - start,
        }
        self._rounds.append(entry)
        module.rounds_left = self._schedule.rounds - len(self._rounds)
        if self._schedule.rounds > 1:
            rank_zero_info(
                f"Round {index + 1} of {self._schedule.rounds}: sparsity {report.sparsity:.4f}."
            )
        for logger in trainer.loggers:
            values = {f"pruning/{key}": entry[key] for key in ("fraction", "sparsity")}
            logger.log_metrics(values, step=trainer.global_step)

    def _count(self, module: PairedLM) -> None:
        """Count the zeros of the dense model, which are not removed."""
        assert module.model is not None
        self._dense = find_missing(module.model, shrinks=self.pruner.shrinks)

    def _recount(self, report: PruningReport, module: PairedLM) -> PruningReport:
        """Count what this round and those before it removed."""
        if not self.pruner.sparsifies:
            return report
        return report.recount(module.pair.pruned, self._dense)

    def _hold(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, PairedLM)
        assert module.model is not None
        for handle in self._handles:
            handle.remove()
        if module.recovery.lora is not None:  # the pruned weights are frozen
            module.hold_adapters(self.masks)
        else:
            self._handles = self.masks.hold(module.model, trainer.optimizers)

    def _finish(self, trainer: Trainer, module: PairedLM, write: bool) -> None:
        """Report the present model, and write it."""
        assert self._last is not None
        assert self._recipe is not None
        model = module.pair.pruned
        report = self._recount(self._last, module)
        report = dataclasses.replace(
            report, recipe=self._recipe, rounds=self._rounds, masks=self.masks
        ).shrink(model)  # so that time and memory are those of the model that is written
        if report.removed is not None:
            module.pair.removed_blocks = report.removed["blocks"]
            module.pair.kept_experts = report.removed["kept_experts"]
        self.report = report.as_dict()
        if trainer.is_global_zero:
            sentences = sparsity_sentence(self.report), size_sentence(self.report)
            if self._tells and self.always_writes:
                rank_zero_info(". ".join([*sentences, ""]).strip())
            elif self._tells and self.verbose:
                show(pruning_table(self.report))
            elif self._tells:
                print(*map(wrap, sentences), sep="\n")
        # Ranks that share the blocks write them together.
        if write and (trainer.is_global_zero or is_shared(decoder_blocks(model)[1])):
            hashed, code = module.weights.full_hash, self.custom_code
            save_pretrained(model, module.tokenizer, self._into, report, hashed, code)
            if self._tells:
                rank_zero_info(f"The pruned model is in {self._into}.")
            self.written = self._into if trainer.is_global_zero else None
        self._lock.close()
        trainer.strategy.barrier("prunelit-pruned")

    def recipe(self, data: PruneData, module: PairedLM) -> dict[str, Any]:
        """Describe everything that decides the masks."""
        calibration = describe_batches(data.calibration_batches())
        if calibration is not None and data.calibration is not None:
            calibration["bos"] = data.calibration.bos
        recipe = {
            "callback": self._describe(),
            "model": module.recipe(),
            "pruner": describe(self.pruner),
            "calibration": calibration,
        }
        if not module.trained:
            return recipe
        choosing = {"choosing": selection_recipe(module.trainer)}
        return recipe | {"training": module.training_recipe() | choosing}

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder of the pruned model of the first recipe."""
        return Path(self.output or Path(trainer.default_root_dir) / "pruned")

    def find_folder(self, trainer: Trainer, module: PairedLM, recipe: dict[str, Any]) -> Path:
        """Return the folder of this recipe: another one if `folder` holds another recipe.

        Raises:
            InputError: if the model to prune is in the folder.
        """
        chosen = self.output is not None and not self.always_writes
        return find_folder(self.folder(trainer), recipe, module.source, chosen=chosen)

    def _describe(self) -> dict[str, Any]:
        described = describe(self)
        # The recipe has a key for the pruner; the other two decide no weight.
        elsewhere = ("pruner", "output", "custom_code")
        kept = {k: v for k, v in described["init_args"].items() if k not in elsewhere}
        return {**described, "init_args": kept}


def _digest(masks: Mapping[str, Tensor], text: str) -> str:
    """Hash the state of `Pruning` in a checkpoint."""
    digest = hashlib.sha256(text.encode())
    for name, bits in sorted(masks.items()):
        digest.update(f"{name} {bits.numel()}".encode())
        digest.update(bits.numpy().data)
    return digest.hexdigest()
