"""The plan of a session: which variants can be pruned, and which are measured already."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.pruned_folder import check_output, read_own
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.rounds import check_stream, require_prunelit
from prunelit.core.datamodule import PruneData
from prunelit.core.knobs import Knob
from prunelit.core.measurement import measurement_key, measurement_settings
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.pruners.base import Pruner
from prunelit.pruning.blockwise import check_text, reads_text
from prunelit.recipe import recipe_id
from prunelit.report.page.records import read_record, read_records
from prunelit.report.variants import Point


class Plan:
    """The variants that a session may measure.

    Args:
        folder: of all variants.
        output: folder of the pruned models.
        verbose: print what each pruning does.

    Attributes:
        prunings: the pruning of each variant by its name.
        keys: what the results of each variant depend on.
        points: place of each variant that has a setting.
        known: names of the variants that an earlier run measured.
        reads_text: True for each method with a knob that looks at calibration text.
    """

    def __init__(self, folder: Path, output: Path, verbose: bool) -> None:
        self.prunings: dict[str, Pruning] = {}
        self.keys: dict[str, str] = {}
        self.points: dict[str, Point] = {}
        self.known: set[str] = set()
        self.reads_text: dict[str, bool] = {}
        self._folder, self._output, self._verbose = folder, output, verbose
        self._needed: Sequence[str] = ()
        self._places: Mapping[str, tuple[Knob, float]] = {}
        self._seed = 0
        self._methods: dict[str, str] = {}  # id of the recipe of each method

    def begin(
        self,
        pruners: Mapping[str, Pruner],
        places: Mapping[str, tuple[Knob, float]],
        extra: Mapping[str, Pruner],
        seed: int,
    ) -> None:
        """Take variants in place of those of an earlier plan.

        Args:
            pruners: the variants by name.
            places: knob and setting of the variants that have one.
            extra: variants that count only if they are measured already.
            seed: number of the calibration text.
        """
        self._needed, self._places, self._seed = list(pruners), places, seed
        self.prunings = {name: self._prune(name, own) for name, own in {**pruners, **extra}.items()}

    def _prune(self, name: str, pruner: Pruner) -> Pruning:
        pruning = Pruning(pruner, output=str(self._output / name / "pruned"))
        pruning.always_writes, pruning.verbose = True, self._verbose
        return pruning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the variants when the data is ready, before the first one is pruned."""
        _, module = require_prunelit(trainer, pl_module)
        module.check_run()
        data: PruneData = trainer.datamodule  # type: ignore[attr-defined]
        recipes: dict[str, dict[str, Any]] = {}
        for name, pruning in self.prunings.items():
            recipe = recipes[name] = pruning.recipe(data, module)
            if name in self._needed:
                check_output(pruning.find_folder(trainer, module, recipe), recipe)
        module.load()
        assert module.model is not None
        module.check_tasks()
        for name in self._needed:
            pruner = self.prunings[name].pruner
            try:
                check_stream(pruner, data)
                pruner.check(module.model)
                if name in self._places:
                    knob, _ = self._places[name]
                    self.reads_text[knob.method] = reads_text(pruner, module.model)
                if data.calibration is None:
                    check_text(pruner, module.model)
            except InputError as error:
                raise InputError(f"Variant {name!r} cannot be pruned. {error}") from error
        for name, (knob, setting) in self._places.items():
            if name in recipes:
                # Other calibration text is another recipe of the same method.
                own = recipe_id(knob.strip(recipes[name]))
                own = self._methods.setdefault(knob.method, own)
                self.points[name] = Point(knob.method, knob.path, setting, own, self._seed)
        self._look(trainer, module, data, recipes)

    def _look(
        self,
        trainer: Trainer,
        module: PairedLM,
        data: PruneData,
        recipes: Mapping[str, dict[str, Any]],
    ) -> None:
        """Find the variants that are measured already; the first rank decides for all."""
        try:
            settings = measurement_settings(trainer, module, data)
        except InputError as error:
            rank_zero_info(f"No variant is used again, since results cannot be compared. {error}")
            return
        self.keys |= {name: measurement_key(own, settings) for name, own in recipes.items()}
        known = {
            name for name, own in recipes.items() if self._is_measured(trainer, module, name, own)
        }
        self.known |= trainer.strategy.broadcast(known)

    def _is_measured(
        self, trainer: Trainer, module: PairedLM, name: str, recipe: dict[str, Any]
    ) -> bool:
        if read_record(self._folder / name, self.keys[name]) is None:
            return False
        folder = self.prunings[name].find_folder(trainer, module, recipe)
        return read_own(folder, recipe) is not None


def find_settings(folder: Path, knobs: Mapping[str, Knob]) -> dict[str, tuple[Knob, float]]:
    """Find settings of methods that an earlier run measured, by the name of the variant.

    Args:
        folder: of all variants.
        knobs: of the methods.
    """
    found = {}
    for variant in read_records(folder):
        point = variant.point
        if point is None or point.seed or point.method not in knobs:
            continue
        knob = knobs[point.method]
        if knob.path == point.knob and knob.variant(point.setting) == variant.name:
            found[variant.name] = (knob, point.setting)
    return found
