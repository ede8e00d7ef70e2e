"""The dense model alone, and the number of items that is foretold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunelit.core.new.dense import DenseModel, foretell
from prunelit.core.new.plans import plan_answer, plan_classify, plan_search
from prunelit.report.score_test import LEVEL, PairedScores, ScoreTest
from prunelit.report.verdicts import Margins

Write = Callable[[str, Any], str]


def test_the_items_foretold_are_those_of_the_flips() -> None:
    dense = np.repeat([1.0, 0.0], [70, 30])
    pruned = dense.copy()
    pruned[:5], pruned[-5:] = 0, 1  # 10 of 100 items flip, nothing is lost
    floor = np.full(100, 0.25)
    expected = ScoreTest(PairedScores(dense, pruned, floor)).items_for_share(0.95, LEVEL)
    found = foretell(PairedScores(dense, dense, floor), 0.95, LEVEL)
    assert found == expected
    assert foretell(PairedScores(dense, dense, floor), 0.95, LEVEL / 3) != found
    loss = ScoreTest(PairedScores(dense, pruned, floor)).items_for_loss(0.05, LEVEL)
    assert foretell(PairedScores(dense, dense, floor), 0.05, LEVEL, absolute=True) == loss
    few = PairedScores(dense[65:75], dense[65:75], floor[65:75])  # half of 10 items are right
    assert foretell(few, 0.95, LEVEL) is not None
    assert foretell(PairedScores(dense, dense, np.full(100, 0.699)), 0.95, LEVEL) is None


def test_every_use_is_measured(
    write: Write, folder: Path, collection: str, labelled: list[dict[str, Any]]
) -> None:
    asked = [{"question": f"What is {n}?", "answer": str(n)} for n in range(4)]
    plans = [
        plan_search(collection, collection, "tickets"),
        plan_classify(write("intents.csv", labelled), "intents.csv", "intents"),
        plan_answer(write("qa.jsonl", asked), "qa.jsonl", "qa"),
    ]
    plans[2].arguments |= {"chat": False, "max_new_tokens": 2}
    model = DenseModel(str(folder), plans, None)
    assert model.has_chat()
    found = model.measure(Margins(margin="qa=0.2"))
    assert [*found] == ["tickets", "intents", "qa"]
    assert [found[name].score.metric for name in found] == ["ndcg@10", "acc", "contains"]
    assert found["intents"].score.n == 6
    assert found["intents"].floor == pytest.approx(4 / 6)
    assert {result.model for one in found.values() for result in one.results} == {"dense"}
    assert not found["qa"].lead
    assert found["qa"].needed is not None  # a loss can be told without a lead
