"""The page of a folder of variants, by the end of a search and by `prunelit report`."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import prunelit.report.page.folder
from prunelit import InputError
from prunelit.report.curves import Picture
from prunelit.report.page.folder import report_folder, write_folder
from prunelit.report.placed import Placed, settings_numbers
from prunelit.report.search import SEARCH
from prunelit.report.variants import Point
from prunelit.report.verdicts import Margins

NAMES = ["wanda_0.1", "wanda_0.2", "wanda_0.3"]
MARGINS = Margins(0.75)
pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The margin of each figure that was drawn; none is written in full, which takes seconds."""
    margins: list[str] = []

    def draw(placed: Sequence[Placed]) -> Picture:
        margins.append(placed[0].verdicts[0].bar())
        figure = Figure()
        monkeypatch.setattr(figure, "savefig", lambda file, dpi: save(file, margins[-1]))
        return Picture(figure, settings_numbers(placed))

    def save(file: Any, text: str) -> None:
        file.write(text.encode()) if isinstance(file, io.BytesIO) else file.write_text(text)

    monkeypatch.setattr(prunelit.report.page.folder, "_draw", draw)
    return margins


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_report_writes_what_the_search_wrote(searched: Path, drawn: list[str]) -> None:
    first = write_folder(searched, MARGINS, NAMES, ["retrieval"])
    said = first.lines()
    assert "wanda keeps retrieval up to ratio 0.2 (0.94 [0." in " ".join(" ".join(said).split())
    assert said[-1] == f"Page: {searched / 'report.html'}"
    assert first.words() == ["keeps"]
    before = content(searched)
    assert report_folder(searched, MARGINS).lines() == said
    assert content(searched) == before
    page = before["report.html"].decode()
    places = [page.index(text) for text in ("<h1>Largest setting", "ratio 0.2", "data:image/png")]
    assert places == sorted(places)
    # Other margins are other answers, verdicts and another figure.
    other = report_folder(searched, Margins(0.3))
    assert "the largest that was measured" in " ".join(" ".join(other.lines()).split())
    after = content(searched)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"search.json", "report.html", "wanda_0.3/verdicts.json"} <= changed
    assert {"figures/score_by_setting.png", "figures/score_by_setting.csv"} <= changed
    assert drawn == ["0.75", "0.3"]  # and not a second time for the same numbers
    assert json.loads(after["search.json"])["uses"] == ["retrieval"]


def test_a_page_elsewhere_leaves_the_folder_as_it_is(searched: Path, tmp_path: Path) -> None:
    write_folder(searched, MARGINS, NAMES)
    before = content(searched)
    report = report_folder(searched, Margins(0.3), tmp_path / "own" / "page.html")
    assert content(searched) == before
    assert report.path == tmp_path / "own" / "page.html"
    found = json.loads((tmp_path / "own" / "page.json").read_text())
    assert {one["largest_that_keeps"]["setting"] for one in found["answers"]} == {0.3}
    with pytest.raises(InputError, match=r"Expected a page that ends in \.html but got"):
        report_folder(searched, MARGINS, searched / "search.json")
    with pytest.raises(InputError, match=r"would replace '.*search\.json', which is another file"):
        report_folder(searched, MARGINS, searched / "search.html")
    assert content(searched) == before


def test_a_killed_run_and_variants_without_a_setting(
    searched: Path, make_variant: Callable[..., Path]
) -> None:
    make_variant(searched / "alone")
    report = report_folder(searched, MARGINS)
    assert "alone" in report.lines()[0]
    assert report.words() == ["keeps"] * 3 + ["cannot tell"] * 3
    assert all(len(line) <= 80 for text in report.lines()[:-1] for line in text.splitlines())
    page = (searched / "report.html").read_text()
    # The runs around the answers, and the one that is alone; not the weakest setting.
    assert [name in page for name in ("alone</bdi>", "wanda_0.2</bdi>", "wanda_0.1</bdi>")] == [
        *(True, True, False)
    ]


def test_the_recipe_of_the_last_one_counts(
    searched: Path, make_variant: Callable[..., Path]
) -> None:
    point = Point("wanda", "sparsity.ratio", 0.05, "another recipe")
    make_variant(searched / "wanda_0.05", point)
    report = write_folder(searched, MARGINS, ["wanda_0.05", *NAMES])
    assert [one.setting for one in report.answers[0].measured] == [0.1, 0.2, 0.3]
    report = write_folder(searched, MARGINS, [*NAMES, "wanda_0.05"])
    assert [one.setting for one in report.answers[0].measured] == [0.05]


def test_a_variant_that_changed_is_left_out(searched: Path) -> None:
    write_folder(searched, MARGINS, NAMES)
    (searched / "wanda_0.2" / "results.jsonl").unlink()
    report = report_folder(searched, MARGINS)
    assert [one.setting for one in report.answers[0].measured] == [0.1, 0.3]
    for name in ("wanda_0.1", "wanda_0.3"):
        (searched / name / "results.jsonl").unlink()
    with pytest.raises(InputError, match="but each one was moved or changed"):
        write_folder(searched, MARGINS, NAMES)


@pytest.mark.parametrize("text", ["{", "[]", '{"variants": [1], "uses": null}'])
def test_damaged_answers_are_refused(searched: Path, text: str) -> None:
    (searched / SEARCH).write_text(text)
    with pytest.raises(InputError, match=r"search\.json' is not as a search writes it"):
        report_folder(searched, MARGINS)


def test_the_command_needs_neither_torch_nor_matplotlib(
    searched: Path, cli: Callable[..., None], capsys: Any
) -> None:
    write_folder(searched, MARGINS, NAMES)
    with pytest.raises(SystemExit) as left:
        cli("report", str(searched), "--fail_on", "cannot_tell", "--keep", "0.99")
    assert left.value.code == 3
    cli("report", str(searched), "--keep", "0.75", "--fail_on", "loses")
    assert capsys.readouterr().out.splitlines()[-1] == f"Page: {searched / 'report.html'}"
    program = (
        "import sys\n"
        "from prunelit.__main__ import main\n"
        "sys.argv = ['prunelit', 'report', sys.argv[1], '--keep', '0.75']\n"
        "main()\n"
        "assert not {'torch', 'matplotlib', 'transformers', 'pandas'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(searched)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
