"""The Lightning module of a run: the model that is pruned beside its dense reference."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prunelit.arguments import checked
from prunelit.core.candidate import check_candidate, tell_models
from prunelit.core.checks import (
    check_data,
    check_placement,
    check_trainer,
    check_training,
)
from prunelit.core.datamodule import PruneData
from prunelit.core.evaluation import Evaluation
from prunelit.core.placement import (
    Needs,
    Placement,
    Sizes,
    build_shapes,
    find_needs,
    fits,
    free_memory,
    measure_part,
    measure_sizes,
    measure_statistics,
    measure_training,
    tell_choice,
)
from prunelit.core.private_api import writes_folders
from prunelit.core.processes import barrier
from prunelit.core.sharding import Sharding
from prunelit.core.weights import Weights
from prunelit.data.sources import as_source
from prunelit.errors import InputError, check_whole
from prunelit.models.loading import DType
from prunelit.models.model_pair import ModelPair
from prunelit.models.streaming import place_model
from prunelit.pruners.base import Pruner
from prunelit.pruning.lora import attach, hold, merge
from prunelit.pruning.masks import Masks
from prunelit.pruning.recovery import TRAINING, Recovery, adamw
from prunelit.recipe import describe
from prunelit.report.results import Result, scalar_name
from prunelit.tasks.base import Task

# Batches that are measured together where blocks wait: the most that fit into the memory.
_FLIGHTS = (8, 4, 2, 1)


@checked
class PairedLM(LightningModule):
    """A causal language model to prune, and the dense model it is compared with.

    The constructor reads no weights; a run reads them when it sets up. The dense model is not a
    submodule: it is in no checkpoint and no optimizer, and it stays in evaluation mode.

    Args:
        source: of the model, see `prunelit.load_pretrained`.
        dtype: of the weights; `auto` is the dtype they are stored in, or float32 in place of
            bfloat16 on a CPU that has no instructions for it.
        attn_implementation: as in transformers; None is its default.
        trust_remote_code: run code that comes with the weights.
        revision: branch, tag or commit on the hub.
        reference: keep the dense model for comparison. False saves its memory.
        recovery: the loss and the weights of training; None is the language-model loss on all
            weights.
        optimizer: None is AdamW with a learning rate of 1e-4 and no weight decay.
        lr_scheduler: stepped after every optimizer step; None keeps the learning rate.
        full_hash: identify the weights of a folder by all of them, which takes a second or two
            per GB; False takes a sample of every tensor.
        candidate: another model, of any origin, that is measured as it is in the place of a pruned
            one; a source as above, for `prunelit compare`.
        candidate_revision: branch, tag or commit of the candidate on the hub.
        dense_cache: keep on disk what the dense model gave to the tasks, and the scores of experts,
            and read both in later runs, see `prunelit.models.dense_answers`.
        flight: number of batches of a task that are measured together: blocks that wait in a store
            come once for all of them, and memory holds what all of them need. None measures one
            batch after the other; where blocks wait, as many as fit into the free memory, eight at
            most.
        placement: `resident` keeps both models in the memory of each device. `streamed` keeps their
            blocks in files and brings one at a time to the device; it trains no weights. `sharded`
            keeps a share of each block on each process, and brings one at a time together; it
            trains under the strategy `ModelParallelStrategy`. `auto` is `resident` if the run fits
            the free memory, else `streamed` on one device and `sharded` on several, and says why.
            `parallel` splits every matrix over the devices of a machine, by the plan of the family
            in transformers. It only measures, and its results have other last bits.
        parallel_degree: number of devices that compute a model together with `placement`
            `parallel`; groups of this size measure different batches. None is all of a machine.

    Attributes:
        weights: reads both models, see `prunelit.core.weights.Weights`.
        model: the pruned model; None before the weights are read. A strategy that shards replaces
            its parameters while it is trained; the model of `pair` is plain, and
            `whole` fills it.
        evaluation: the current or last validation; None before the first one.
        rounds_left: rounds of pruning that are still to come, set by the pruning callback.

    Example:
        >>> from prunelit import PairedLM
        >>> module = PairedLM("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="bfloat16")
        >>> module.model is None  # no weights are read yet
        True
        >>> module.results  # filled by `PruneTrainer.validate` and `PruneTrainer.fit`
        []
    """

    def __init__(
        self,
        source: str,
        dtype: DType = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        reference: bool = True,
        recovery: Recovery | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        full_hash: bool = False,
        candidate: str | None = None,
        candidate_revision: str | None = None,
        dense_cache: bool = True,
        flight: int | None = None,
        placement: Placement = "resident",
        parallel_degree: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("source", source), ("candidate", candidate)):
            if isinstance(value, nn.Module):
                raise InputError(
                    f"Expected `{name}` as a path or a name on the hub but got a "
                    f"{type(value).__name__}: save it and give its folder, or use `prunelit.prune`."
                )
        if candidate is None and candidate_revision is not None:
            raise InputError(
                f"Expected `candidate` with `candidate_revision` {candidate_revision!r}: name the "
                "model on the hub, or leave the revision out."
            )
        if flight is not None:
            check_whole("flight", flight, 1)
        if parallel_degree is not None:
            check_whole("parallel_degree", parallel_degree, 2)
            if placement != "parallel":
                raise InputError(
                    f"Expected `placement` 'parallel' with `parallel_degree` {parallel_degree} but "
                    f"got {placement!r}: set it, or leave `parallel_degree` out."
                )
        self.source = as_source(source)
        self.weights = Weights(
            self.source,
            dtype,
            attn_implementation,
            trust_remote_code,
            revision,
            reference,
            full_hash,
            None if candidate is None else as_source(candidate),
            candidate_revision,
        )
        self.placement: Placement = placement
        self.parallel_degree = parallel_degree
        # What `auto` is, and the flight; both stay, since the models fill the memory.
        self._chosen = False
        self._flight: int | None = None
        self._narrows = True  # until a method is known that leaves embeddings and head as they are
        self.recovery = recovery or Recovery()
        self.model: PreTrainedModel | None = None
        self.evaluation: Evaluation | None = None
        self.rounds_left = 0
        self.dense_cache = dense_cache
        self.flight = flight
        self._optimizer = optimizer or adamw
        self._lr_scheduler = lr_scheduler
        self._checked: list[Task] = []
        self._sharding: Sharding | None = None
        self._measured = ExitStack()  # open while the models are measured

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model; reads no weights."""
        return self.weights.tokenizer

    @property
    def pair(self) -> ModelPair:
        """Both models.

        Raises:
            RuntimeError: before `load`.
        """
        return self.weights.pair

    @property
    def results(self) -> list[Result]:
        """Results of the last validation; empty before the first one."""
        return [] if self.evaluation is None else self.evaluation.results

    @property
    def trains(self) -> bool:
        """True if this run trains the pruned model; only `fit` does."""
        return self.trained and self.trainer.state.fn == "fit"

    @property
    def trained(self) -> bool:
        """True if the pruned model of this recipe is a trained one, also if `validate` reads it."""
        return self.trainer.max_epochs != 0

    def load(self, pruned_folder: str | Path | None = None) -> None:
        """Read the weights, see `Weights.load`; a pruned model that is here is a submodule then."""
        self.weights.load(pruned_folder)
        if self._sharding is None:
            self._take_model()

    def _take_model(self) -> None:
        """Let the pruned model of `pair` be `model`."""
        del self.model
        if not self.weights.resident:
            # A submodule would be moved to the device, or sent to other ranks, as a whole.
            vars(self)["model"] = self.pair.pruned
        else:
            self.model = self.pair.pruned

    def discard_pruned(self) -> None:
        """Forget the pruned model. The next `load` starts from the dense weights."""
        self.weights.discard_pruned()
        self.model = None

    def recipe(self) -> dict[str, Any]:
        """Plain data that identifies the dense model and the numerics of its activations."""
        return {**self.weights.recipe(), "precision": self.trainer.precision}

    def training_recipe(self) -> dict[str, Any]:
        """Plain data of all settings that decide how training changes the weights."""
        text, tokens = self._data().recovery, self._data().recovery_tokens
        digest = None if tokens is None else hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
        return {
            **self.recovery.recipe(self._optimizer, self._lr_scheduler),
            "text": None if text is None else describe(text),
            "text_sha256": digest,
            **{name: getattr(self.trainer, name) for name in TRAINING},
            # Adapters begin at random; nothing else of training does.
            "seed": os.environ.get("PL_GLOBAL_SEED") if self.recovery.lora else None,
        }

    def check_run(self, pruner: Pruner | None = None) -> None:
        """Refuse settings that do not fit together; a callback calls it before it does heavy work.

        Args:
            pruner: the method of this run, for the memory that it takes; None if it is not known.

        Raises:
            InputError: naming the option.
        """
        config, reference = self.weights.load_config(), self.weights.reference
        if pruner is not None:
            self._narrows = pruner.narrows_stream
        check_trainer(self.trainer)
        if self.placement == "parallel":
            self.weights.check_parallel(self.together)
        check_placement(self.placement, self.trainer, trains=self.trains, together=self.together)
        check_data(self._data(), config, reference=reference)
        if self.weights.candidate is not None:
            check_candidate(self.trainer, self._data(), self.weights)
        elif self.trains:
            check_training(self._data(), config, self.recovery, reference=reference)
        self.weights.device = self.trainer.strategy.root_device
        self.weights.settle_dtype(self._agree)
        self.weights.trains = self.trains
        if self.placement != "auto":
            self.weights.placement = self.placement
            self.weights.together = self.together
        elif not self._chosen:
            self._chosen = True
            if not self.trains or self._trains_shares:
                self._choose_placement(config)
        if self.weights.waits and self._flight is None:
            self._choose_flight(config)

    @property
    def _trains_shares(self) -> bool:
        """True if the strategy can train weights of which each rank has a share."""
        return self.trainer.world_size > 1 and writes_folders(self.trainer.strategy)

    @property
    def together(self) -> int:
        """Number of ranks that compute a model together, on the same batches."""
        if self.placement != "parallel":
            return 1
        return self.parallel_degree or self.trainer.num_devices

    @property
    def in_flight(self) -> int | None:
        """Number of batches that share a block that comes; None if batches run one by one."""
        return self.flight or self._flight

    def _choose_placement(self, config: PreTrainedConfig) -> None:
        """Choose where the weights wait, and say why."""
        other: Placement = "streamed" if self.trainer.world_size == 1 else "sharded"
        needs = self.needs(config, ("resident", other))
        free = self._free()
        fit = self._agree(fits(needs["resident"], free))
        self.weights.placement = "resident" if fit else other
        rank_zero_info(tell_choice(self.weights.placement, needs, free))

    def _choose_flight(self, config: PreTrainedConfig) -> None:
        """Choose how many batches share a block that comes, by the memory that they take."""
        placement, free = self.weights.placement, self._free()
        for self._flight in _FLIGHTS:
            needs = self.needs(config, [placement], flight=self._flight)[placement]
            if self._agree(fits(needs, free)):
                break

    def _free(self) -> int:
        """Return the bytes of free memory for this process."""
        device = self.trainer.strategy.root_device
        # The memory of a machine is that of all its processes.
        return free_memory(device) // (self.trainer.num_devices if device.type == "cpu" else 1)

    def _agree(self, fit: bool) -> bool:
        """Return True if it is so on all ranks, as each device has its own memory."""
        return self.trainer.strategy.reduce_boolean_decision(fit, all=True)

    def needs(
        self,
        config: PreTrainedConfig,
        placements: Iterable[Placement],
        pruner: Pruner | None = None,
        flight: int | None = None,
    ) -> dict[Placement, Needs]:
        """Compute the memory that this run takes on one device.

        Args:
            config: of the model.
            placements: of the models; not `auto`.
            pruner: the method of this run, if it prunes.
            flight: batches that share a block; None is that of the run, or the fewest.

        Returns:
            The memory with each placement.
        """
        dtype = self.weights.origin.dtype or torch.float32
        shapes = build_shapes(config, dtype)
        sizes, models = measure_sizes(shapes), 1 + self.weights.reference
        shards = isinstance(self.trainer.strategy, ModelParallelStrategy)
        shared = not (self._narrows or self.trained or self.weights.candidate is not None)

        def training(placement: Placement) -> int:
            ranks, lora = self.trainer.world_size if shards else 1, self.recovery.lora
            return measure_training(sizes, placement, models, ranks, adapters=lora is not None)

        def own(placement: Placement) -> Sizes:
            return measure_part(config, dtype, self.together) if placement == "parallel" else sizes

        return {
            placement: find_needs(
                own(placement),
                config,
                self._data(),
                self.trainer.strategy.root_device,
                dtype,
                placement=placement,
                models=models,
                skeletons=1 if shared and placement == "resident" else None,
                ranks=self.trainer.world_size,
                flight=flight or self.in_flight or min(_FLIGHTS),
                statistics=0 if pruner is None else measure_statistics(shapes, pruner),
                training=training(placement) if self.trains else 0,
            )
            for placement in placements
        }

    def check_prunes(self) -> None:
        """Refuse to prune or to train models that a run only measures.

        Raises:
            InputError: naming the placements to use.
        """
        if self.placement == "parallel":
            raise InputError(
                "Expected `model.placement` 'sharded' or 'resident' to prune or to train but got "
                "'parallel', which only measures: set one of them, and take 'parallel' for "
                "`prunelit validate` or `prunelit compare`."
            )

    def check_tasks(self) -> None:
        """Refuse a model that a task cannot measure; needs the weights."""
        for task in self._data().tasks.values():
            if not any(task is known for known in self._checked):
                task.check(self.pair.dense or self.pair.pruned)
                self._checked.append(task)

    def setup(self, stage: str) -> None:
        """Check the run and read the weights that no callback has read yet.

        Lightning calls it after the callbacks. Without a pruning callback both models are dense.
        """
        self.check_run()
        self.load()
        self.check_tasks()
        if self.weights.candidate is not None:
            rank_zero_info(tell_models(self.weights.identities()))
        if self.trains:
            self._begin_training()

    def _begin_training(self) -> None:
        """Freeze the weights that are not trained, or attach adapters."""
        model = self.pair.pruned
        if self.recovery.lora is None:
            self.recovery.choose(model)
        else:
            attach(model, self.recovery.lora)
        model.train()  # dropout, if the model has any

    def configure_model(self) -> None:
        """Shard the weights before they are trained, if the strategy does.

        Lightning calls it after `setup`.
        """
        sharding = isinstance(self.trainer.strategy, ModelParallelStrategy)
        if not sharding or not self.trains:
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        self._sharding = Sharding(self.recovery, self.pair, mesh)
        self.model = self._sharding.model
        self.weights.take_reference()

    def end_training(self) -> None:
        """Have the trained model as the model of `pair`, placed as before, and no adapters.

        Every rank must call it.
        """
        if self._sharding is not None:
            # They hold the shards, and state of more than their size.
            self.trainer.optimizers, self.trainer.strategy.lr_scheduler_configs = [], []
            self._sharding.end()
            self._sharding = None
            self._take_model()
        if self.recovery.lora is not None:
            merge(self.pair.pruned)

    def on_fit_end(self) -> None:
        """Leave no shards behind, also without a pruning callback.

        Lightning calls it after the callbacks.
        """
        if self.trains:
            self.end_training()

    @contextmanager
    def whole(self, model: PreTrainedModel, *, edited: bool = False) -> Iterator[None]:
        """Have the weights of a model of `pair` outside its blocks here, within the context.

        Every rank must enter it. The blocks come one by one from their stores, see
        `prunelit.models.stores`. It does nothing unless the model is sharded for training.

        Args:
            model: the pruned or the dense one.
            edited: these weights are changed inside.
        """
        with ExitStack() as stack:
            if self._sharding is not None:
                stack.enter_context(self._sharding.whole(model, edited=edited))
            yield

    def hold_adapters(self, masks: Masks) -> None:
        """Mask the updates of removed weights by adapters from now on."""
        assert self.model is not None
        hold(self.model, masks, self.device)
        if self._sharding is not None:
            hold(self.pair.pruned, masks, self.device)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and the scheduler; None if `max_epochs` is 0."""
        if not self.trains:
            return None
        assert self.model is not None
        optimizer = self._optimizer([p for p in self.model.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model, which has other weights.

        Raises:
            InputError: naming the first weight that differs, with both shapes.
        """
        if "state_dict" not in checkpoint:  # a strategy that shards has compared and loaded it
            return
        states = self.state_dict(), checkpoint["state_dict"]
        mine, other = ({key: list(w.shape) for key, w in state.items()} for state in states)
        differing = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
        if differing:
            key = differing[0]
            raise InputError(
                f"The checkpoint {str(self.trainer.ckpt_path)!r} is of another model: {key!r} is "
                f"{mine.get(key, 'absent')} here and {other.get(key, 'absent')} there. Start again "
                "without `ckpt_path`, or use the model of that run."
            )

    def on_train_start(self) -> None:
        """Move the dense model to the device, since Lightning moves submodules only."""
        if self.pair.dense is not None:
            place_model(self.pair.dense, self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of one batch and log it with its parts."""
        trainer = self.trainer
        # Dropout depends only on the position in training, so that a resumed run is the same.
        place = (trainer.current_epoch << 32) + batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed(place)
        if self._sharding is None:
            losses = self.recovery.losses(self.pair.pruned, self.pair.dense, batch["input_ids"])
        else:
            losses = self._sharding.loss(batch["input_ids"])
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise InputError(
                f"The recovery loss is {loss.item()} at step {trainer.global_step}: lower the "
                "learning rate or train in a wider precision."
            )
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin a new evaluation with an empty table for each task."""
        with torch.inference_mode(False):  # in which quantised weights of torchao cannot be moved
            self.weights.check_shared()
            for model in (self.pair.pruned, self.pair.dense):
                if model is None:
                    continue
                if self._sharding is not None:
                    self._measured.enter_context(self._sharding.measured(model))
                place_model(model, self.device)
                model.eval()
                self.weights.share()  # before the dense one is copied, and again on the device
        self.evaluation = Evaluation(
            self.trainer,
            self.pair,
            self._data(),
            dense_cache=self.dense_cache,
            together=self.together,
        )

    def validation_step(
        self,
        batch: dict[str, Any] | list[dict[str, Any]],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure one batch, or one flight of batches, of one task with both models."""
        assert self.evaluation is not None
        name = list(self._data().tasks)[dataloader_idx]
        if isinstance(batch, list):
            self.evaluation.measure_flight(name, batch)
        else:
            self.evaluation.measure(name, batch)

    def on_validation_epoch_end(self) -> None:
        """Collect the items of all ranks and log `val/<task>/<metric>`."""
        with self._measured:
            if self.trainer.sanity_checking:
                return
            assert self.evaluation is not None
            # `validate` writes the results of the other tasks before it raises the error of one.
            self.evaluation.summarise(keep_going=self.trainer.state.fn == "validate")
        for result in self.results:
            # Every rank has the same complete table, so no synchronisation is needed.
            self.log(scalar_name(result), result.value, sync_dist=False)

    def on_validation_end(self) -> None:
        """Wait until the callbacks of rank 0 have written the results, and raise errors of tasks.

        Lightning calls it after the callbacks.
        """
        assert self.evaluation is not None
        barrier(self.trainer, failed=bool(self.evaluation.failed))
        self.evaluation.finish()

    def _data(self) -> PruneData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PruneData):
            raise InputError(
                f"Expected the Trainer's datamodule to be a `PruneData` but got "
                f"{type(data).__name__}: pass `datamodule=PruneData(...)`."
            )
        return data
