"""The page: the order of its parts, and hostile texts that it only shows."""

import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from prunelit.report.items import read_items, write_items
from prunelit.report.page.comparison import compare_runs
from prunelit.report.page.runs import Run, judge, read_run
from prunelit.report.page.view import build_page, closing_sentences, headline, render, write_page
from prunelit.report.results import read_results, write_results
from prunelit.report.verdicts import USES, Margins
from prunelit.tasks.retention import Use

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<a href='javascript:alert(1)'>a</a>]]>--></style></textarea></title>\" onload='x' "
    "![](http://evil.example/i.png) {{ 7 * 7 }} {% raw %} \u202egnp\u2066 \x1b[31m\x00 "
    "<iframe src=http://evil.example></iframe>&lt;b&gt;"
)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data


@pytest.fixture
def make_page(make_run: Any, tmp_path: Path) -> Callable[..., Page]:
    def make(keep: Any = 0.95, **options: Any) -> Page:
        run = read_run(make_run(tmp_path / "run", **options))
        judge([run], Margins(keep=keep))
        return Page(write_page([run]).read_text(encoding="utf-8"))

    return make


def test_the_parts_stand_in_order(make_page: Callable[..., Page]) -> None:
    text = make_page().text
    parts = [
        "Do not ship: multiple choice, retrieval and written answers lose",
        "pruned by Wanda (text Rome), against the same model dense.",
        "share of the dense model's lead over the floor (chance) that must remain: 0.95",
        "Multiple choice (choose): ",
        "acc 0.90 before, 0.50 after, floor 0.00; 40 items; margin 0.95; loses",
        "How much of each use is kept",
        "What is gained",
        "Zeros are stored and multiplied like any other number",
        "Why",
        "Teacher forced, logit cosine goes from 0.99",
        "What got worse",
        "choose: 18 of 40 items were right and became wrong",
        "What got better",
        "answers: 2 of 40 items were wrong and became right",
        "Warnings",
        "Not measured",
        "No task of this run measures classification or similarity of texts.",
        "Again",
        "prunelit fit --config",
        "Hashes, versions and seeds",
        "Settings of choose",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_hostile_texts_add_no_tag_and_no_attribute(make_run: Any, tmp_path: Path) -> None:
    pages = {}
    for name, text in (("plain", "Rome"), ("hostile", HOSTILE)):
        run = read_run(make_run(tmp_path / name, text=text, answer=text, note=text))
        for result in run.results:
            result.task = result.task if result.task != "text" else text.replace("/", "")
        judge([run], Margins())
        html = render(build_page([run]))
        pages[name] = Page(html)
    plain, hostile = pages["plain"], pages["hostile"]
    kinds = [{tag for tag, _ in page.tags} for page in (plain, hostile)]
    assert kinds[1] <= kinds[0]
    for tag in ("script", "style", "img", "svg", "title"):
        counts = [sum(own == tag for own, _ in page.tags) for page in (plain, hostile)]
        assert counts[0] == counts[1], tag
    for _, attributes in hostile.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "<script>document.title='owned'</script>" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text
    assert "[U+202E]gnp[U+2066] [U+001B][31m[U+0000]" in hostile.text
    assert not re.search("[\u202e\u2066\x1b\x00]", html)


def test_only_the_own_style_and_script_are_allowed(make_page: Callable[..., Page]) -> None:
    (policy,) = [
        own["content"] for tag, own in make_page().tags if own.get("http-equiv") is not None
    ]
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        r"style-src 'sha256-[\w+/]+='; script-src 'sha256-[\w+/]+='",
        str(policy),
    )


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        (0.1, "Ship: multiple choice, retrieval and written answers keep enough"),
        (
            "default=0.1,find=0.95",
            "Ship for multiple choice and written answers only: retrieval loses",
        ),
        (
            "default=0.55",
            "No decision yet: multiple choice, retrieval and written answers cannot be told",
        ),
        ("find=0.95,default=0.55", "Do not ship: retrieval loses; multiple choice and written"),
    ],
)
def test_the_decision_in_one_sentence(
    make_run: Any, tmp_path: Path, keep: Any, sentence: str
) -> None:
    run = read_run(make_run(tmp_path / "run"))
    judge([run], Margins(keep=keep))
    assert headline(run).startswith(sentence)


def test_a_run_of_an_earlier_version_has_no_verdict(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "scores.parquet").unlink()
    shutil.rmtree(folder / "items")
    shutil.rmtree(folder / "figures")
    (folder / "config.yaml").unlink()
    run = read_run(folder)
    judge([run], Margins())
    text = Page(write_page([run]).read_text()).text
    assert "No verdict: the run has no scores of its items" in text
    assert "The run has no config.yaml" in text
    assert closing_sentences([run])[0].startswith("No verdict: the run has no scores")


def test_a_score_that_does_not_exist(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    results = read_results(folder / "results.jsonl")
    for result in (one for one in results if one.task == "find"):
        result.value = math.nan
        result.details |= {"pruned": math.nan} if result.metric == "retained" else {}
    write_results(results, folder / "results.jsonl")
    rows = read_items(folder / "scores.parquet")
    rows = [row | ({"pruned": math.nan} if row["task"] == "find" else {}) for row in rows]
    write_items(rows, folder / "scores.parquet")
    run = read_run(folder)
    judge([run], Margins())
    assert {one.task: one.word for one in run.verdicts}["choose"] == "loses"
    assert "mrr 0.90 before, not defined after" in Page(write_page([run]).read_text()).text


def test_a_candidate_is_named(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    for result in run.results:
        result.models = {
            "dense": {
                "source": "big",
                "content": "12",
                "parameters": 4_000_000,
                "bytes": 8_000_000,
            },
            "candidate": {"source": "small", "parameters": 1_000_000, "bytes": 4_000_000},
        }
    run.pruning = None
    judge([run], Margins())
    text = Page(render(build_page([run]))).text
    assert "small against big, which is called dense here." in text
    for part in ("Weights in memory, MB", "75.0%", "50.0%", "prunelit compare --config"):
        assert part in text
    assert "Sizes are those of the weights as they were loaded" in text
    other = compare_runs([run, read_run(make_run(tmp_path / "other"))])
    assert {"dense model", "dense weights"} <= {one.key for one in other.settings}


def runs_of(folders: list[Path]) -> list[Run]:
    runs = [read_run(folder) for folder in folders]
    judge(runs, Margins())
    return runs


def test_several_runs_have_their_intervals_side_by_side(make_run: Any, tmp_path: Path) -> None:
    runs = runs_of([make_run(tmp_path / name) for name in "abc"])
    page = build_page(runs)
    assert [one["task"] for one in page["side_by_side"]] == ["choose", "find", "answers"]
    (strip,) = page["side_by_side"][0]["strips"]
    assert [row["task"] for row in strip["rows"]] == [run.name for run in runs]
    html = render(page)
    assert html.index("Verdicts side by side") < html.index(f"{runs[2].name}: 0.56 [")
    assert html.count('<figure class="strip">') == 3 + 3
    assert build_page(runs[:1])["side_by_side"] == []


def test_two_runs_are_first_found_comparable(make_run: Any, tmp_path: Path) -> None:
    runs = runs_of([make_run(tmp_path / name) for name in "ab"])
    text = Page(render(build_page(runs))).text
    assert text.index("Can they be compared?") < text.index("Yes: rows") < text.index("Loses")
    assert text.count("Do not ship") == 2
    assert "Verdicts side by side" in text


def test_runs_on_other_rows_have_no_verdict(make_run: Any, tmp_path: Path) -> None:
    runs = runs_of([make_run(tmp_path / rows, rows=rows) for rows in ("aa", "bb")])
    page = Page(render(build_page(runs)))
    assert "No verdict: the runs cannot be compared" in page.text
    assert "rows_sha256" in page.text
    assert "Do not ship" not in page.text
    assert "svg" not in {tag for tag, _ in page.tags}
    assert closing_sentences(runs) == [
        "Comparable? No: the rows of choose, find, answers differ, so the scores are those of "
        "different questions."
    ]


def test_a_page_stays_small(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", text="東" * 5_000))
    judge([run], Margins())
    for number in range(4):
        (run.folder / "figures" / f"big_{number}.png").write_bytes(b"\x89PNG" + bytes(900_000))
    path = write_page([run])
    assert path.stat().st_size < 3_000_000
    text = Page(path.read_text(encoding="utf-8")).text
    assert "more characters)" in text
    assert "Figures that are not on this page" in text


def test_every_use_has_words() -> None:
    assert get_args(Use) == USES


CHROMIUM = shutil.which("chromium")
CHECKS = """
<script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("[data-list]")];
  const shown = (box) => [...box.querySelectorAll(".item")].filter((item) => !item.hidden).length;
  const search = boxes[0].querySelector("input");
  const counts = [shown(boxes[0])];
  search.value = "Q17:";
  search.dispatchEvent(new Event("input"));
  counts.push(shown(boxes[0]));
  search.value = "";
  search.dispatchEvent(new Event("input"));
  boxes[0].querySelector("button").click();
  counts.push(shown(boxes[0]));
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.found = [...counts, wide, document.title.includes("owned")].join(" ");
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_a_browser_filters_and_runs_nothing_else(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", text=HOSTILE, answer=HOSTILE))
    judge([run], Margins())
    html = write_page([run]).read_text(encoding="utf-8")
    # The policy is taken away: escaping alone must stop the texts.
    html = re.sub("<meta http-equiv[^>]*>", "", html).replace("</body>", f"{CHECKS}</body>")
    page = tmp_path / "checks.html"
    page.write_text(html, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800"]
    log = ["--enable-logging=stderr", "--v=0"]
    command = [str(CHROMIUM), *options, *log, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert 'data-found="10 1 18 false false"' in done.stdout, (
        done.stdout[-300:] + done.stderr[-500:]
    )
    assert "CONSOLE" not in done.stderr
    assert "evil.example" not in done.stderr


def test_hostile_names_in_a_comparison(make_run: Any, tmp_path: Path) -> None:
    runs = runs_of([make_run(tmp_path / name, note=HOSTILE + name) for name in "ab"])
    for result in runs[1].results:
        if result.task == "text":
            result.task = HOSTILE
    html = render(build_page(runs))
    assert {tag for tag, _ in Page(html).tags}.isdisjoint({"iframe", "a"})
    assert html.count("<script>") == 1
    assert not re.search("[\u202e\u2066\x1b\x00]", html)
