import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prunelit.report.page.changes import find_changes
from prunelit.report.page.reasons import choose_figures, explain_run, warn
from prunelit.report.page.runs import judge, read_run
from prunelit.report.results import Result
from prunelit.report.verdicts import Margins


def test_sentences_are_read_out_from_the_results(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    sentences = explain_run(run, [find_changes(run, "answers")])
    assert sentences == [
        "The cosine between dense and pruned is 0.90 of the final hidden states, 0.80 of the "
        "logits and 0.70 of the next-token probabilities: the next-token probabilities change the "
        "most.",
        "The KL divergence from the dense model is 0.8 nats a token.",
        "The texts of answers part after 19.5 equal tokens in the median; 25% of them never part.",
    ]
    run.results += [
        Result("text", "perplexity", "dense", 44.0, 1.0, 5),
        Result("text", "perplexity", "pruned", 88.0, 1.0, 5),
        Result("text", "ruler_kl", "pair", 0.4, 1.0, 5, {"rung": "2-bit"}),
        Result("text", "top1_agreement", "pair", 0.52, 1.0, 5),
    ]
    text = " ".join(explain_run(run, []))
    assert "nearest to a rounding to 2-bit; the most probable token is the same for 52%" in text
    assert "Perplexity rises from 44 to 88 (2.00 times)." in text


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            "task,metric,model,value\nqa,acc,dense,0.9\nqa,acc,pruned,0.4\nb,x,dense,1\nb,x,pruned,1\n",
            "The largest change is that acc of qa falls: 0.90 → 0.40.",
        ),
        (
            "name,sparsity\na,0.4\nb,0.6\n",
            "b lost the most of its weights, 60.0%; a lost the least, 40.0%.",
        ),
        ("name,sparsity\na,0.5\nb,0.5\n", "Each of the 2 weight matrices lost 50% of its"),
        (
            "compared,share,kl,delta_p\npruned,0.5,0.2,0\npruned,0.95,3,0\nfloor,0.5,0.1,0\n",
            "The KL is at most 0.2 nats for 50% of the tokens, and at most 3 for 95%.",
        ),
        (
            "quantity,model,value\nangle,dense,0.1\nangle,pruned,nan\nnorm,pruned,0.7\n",
            "The values go from 0.1 (angle, dense) to 0.7 (norm, pruned).",
        ),
        ("odd,columns\n1,2\n", "text_cosines.csv has its 1 numbers."),
        ("odd,columns\n", "text_cosines.csv holds no numbers."),
    ],
)
def test_each_figure_has_a_sentence_of_its_numbers(
    make_run: Any, tmp_path: Path, table: str, sentence: str
) -> None:
    run = read_run(make_run(tmp_path / "run"))
    (figure,), left = choose_figures(run, 10_000)
    assert left == []
    assert figure.sentence == (
        "Teacher forced, logit cosine goes from 0.99 at block 0 to 0.71 at block 29."
    )
    (run.folder / "figures" / "text_cosines.csv").write_text(table)
    ((figure,), _) = choose_figures(run, 10_000)
    assert figure.sentence.startswith(sentence)
    assert choose_figures(run, 10) == ([], ["text_cosines.png"])


@pytest.mark.parametrize(("least", "image"), [(0.499, False), (0.2, True)])
def test_an_even_sparsity_is_a_sentence_without_its_figure(
    make_run: Any, tmp_path: Path, least: float, image: bool
) -> None:
    run = read_run(make_run(tmp_path / "run"))
    figures = run.folder / "figures"
    shutil.copy(figures / "text_cosines.png", figures / "sparsity.png")
    (figures / "sparsity.csv").write_text(f"name,sparsity\na,0.5\nb,{least}\n")
    figure = choose_figures(run, 10_000)[0][-1]
    assert bool(figure.uri) is image
    assert ("Each of the 2 weight matrices lost 50%" in figure.sentence) is not image


def test_warnings(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    judge([run], Margins())
    assert warn(run) == [
        "choose: the pruned model answers 'yes' for 95% of the 40 items.",
        "answers: 50% of the dense model's texts were cut at 24 new tokens.",
    ]


def test_items_in_the_calibration_text_are_a_warning(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    before = warn(read_run(folder))
    own = {"items": 3, "n": 40, "first": "Where is my order today?"}
    (folder / "overlap.json").write_text(json.dumps({"answers": own}))
    (added,) = [text for text in warn(read_run(folder)) if text not in before]
    assert added.startswith("answers: 3 of 40 items are in the calibration text")
    assert "'Where is my order today?'" in added


def test_damaged_numbers_of_a_figure_are_none(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "figures" / "text_cosines.csv").write_bytes(b"\xff\xfe")
    figures, _ = choose_figures(read_run(folder), 1000)
    assert [one.sentence for one in figures] == ["text_cosines.csv holds no numbers."]
