"""`prunelit sweep` from end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prunelit.report.results import Result, read_results

Config = dict[str, Any]
Save = Callable[[Path, Config], str]
Results = Callable[[Path, str], list[Result]]
Table = Callable[[Path], list[dict[str, str]]]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_a_variant_leaves_what_fit_leaves(results: Results, swept: Path, fitted: Path) -> None:
    for name in ("model.safetensors", "masks.safetensors"):
        one, two = (
            load_file(folder / "pruned" / name)
            for folder in (fitted / "run", swept / "run" / "wanda")
        )
        assert one.keys() == two.keys()
        assert all(tensor.equal(two[key]) for key, tensor in one.items())
    one, two = (
        json.loads((folder / "pruned" / "pruning.json").read_text())
        for folder in (fitted / "run", swept / "run" / "wanda")
    )
    assert one["recipe"] == two["recipe"]
    assert one["tensors"] == two["tensors"]
    expected = read_results(fitted / "run" / "board" / "only" / "results.jsonl")
    found = [row for row in results(swept, "wanda") if row.task != "followed"]
    assert str(found) == str(expected)


def test_a_later_variant_is_as_if_it_were_the_only_one(
    results: Results,
    save: Save,
    swept: Path,
    tmp_path: Path,
    make_sweep: Callable[[Path], Config],
    cli: Callable[..., None],
) -> None:
    config = make_sweep(tmp_path)
    config["data"]["tasks"].pop()
    pruner = config.pop("variants")["attention_1"]
    init_args = {"pruner": pruner}
    config["pruning"] = {"class_path": "prunelit.callbacks.Pruning", "init_args": init_args}
    config["trainer"]["logger"]["init_args"]["version"] = "alone"
    cli("fit", "--config", save(tmp_path, config))
    alone = load_file(tmp_path / "run" / "pruned" / "model.safetensors")
    last = load_file(swept / "run" / "attention_1" / "pruned" / "model.safetensors")
    assert alone.keys() == last.keys()
    assert all(tensor.equal(last[name]) for name, tensor in alone.items())
    found = [row for row in results(swept, "attention_1") if row.task != "followed"]
    assert str(found) == str(results(tmp_path, "alone"))


def test_variants_come_in_the_order_of_the_file(table: Table, swept: Path) -> None:
    said = (swept / "stdout").read_text()
    names = ["wanda", "attention_2", "block", "attention_1"]
    places = [said.index(f"{name} ({i + 1} of 4): ") for i, name in enumerate(names)]
    assert places == sorted(places)
    lines = table(swept / "run" / "board" / "figures" / "variants.csv")
    assert list(dict.fromkeys(line["variant"] for line in lines)) == ["dense", *names]


def test_the_sweep_closes_with_the_verdicts(swept: Path) -> None:
    before, _, last = (swept / "stdout").read_text().partition("Verdicts: share of the dense")
    for text in ("wanda", "block", "multiple choice", "retrieval", "generation"):
        assert text in last
    assert "wanda (1 of 4): no lead in multiple choice, retrieval, generation." in before
    *lines, page = last.splitlines()
    assert page == f"Page: {swept / 'run' / 'board' / 'report.html'}"
    said = [*(swept / "stderr").read_text().splitlines(), *before.splitlines()]
    assert len(said) <= 25, said
    # A line with a path is as long as the path.
    assert all(len(line) <= 80 for line in [*said, *lines] if "/" not in line)
    text = (swept / "run" / "board" / "report.html").read_text()
    assert "Verdicts side by side" in text
    assert len(text) < 3e6


def test_a_variant_prints_a_line_and_not_its_tables(swept: Path) -> None:
    printed, said = ((swept / name).read_text() for name in ("stdout", "stderr"))
    assert said.count("To see the figures") == 1
    for text in ("Achieved sparsity", "Loading weights", "Writing model shards", "Pruning, since"):
        assert text not in said
    for text in ("peak memory", "Dense against pruned", "value ± standard error", "Results: "):
        assert text not in printed
    assert printed.count("Page: ") == 1


def test_the_table_holds_the_results_of_every_variant(
    results: Results, table: Table, swept: Path
) -> None:
    lines = table(swept / "run" / "board" / "figures" / "variants.csv")
    for line in lines:
        models = ("dense",) if line["variant"] == "dense" else ("pruned", "pair")
        folder = "wanda" if line["variant"] == "dense" else line["variant"]
        (row,) = [
            row
            for row in results(swept, folder)
            if (row.task, row.metric) == (line["task"], line["metric"]) and row.model in models
        ]
        assert float(line["value"]) == row.value
        assert float(line["standard_error"]) == row.standard_error
    metrics = ["acc", "mrr", "contains", "perplexity", "perplexity", "kl_dense_pruned"]
    assert [line["metric"] for line in lines if line["variant"] == "block"] == metrics
    assert {line["sparsity"] for line in lines if line["variant"] == "wanda"} == {"0.5"}


def test_figures_of_all_variants(table: Table, swept: Path) -> None:
    folder = swept / "run" / "board" / "figures"
    names = ["perturbations", "score_by_dropped", "spaces_by_variant"]
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert table(folder / f"{name}.csv")
    followed = table(folder / "perturbations.csv")
    assert {line["variant"] for line in followed} == {
        *("wanda", "attention_1", "attention_2", "block")
    }
    dropped = [
        (line["kind"], line["dropped"], line["variant"])
        for line in table(folder / "score_by_dropped.csv")
        if line["metric"] == "acc"
    ]
    assert dropped == [
        ("attention sublayers", "0", "dense"),
        ("attention sublayers", "1", "attention_1"),
        ("attention sublayers", "2", "attention_2"),
        ("blocks", "0", "dense"),
        ("blocks", "1", "block"),
    ]
    logged = events(swept / "run" / "board" / "overview")
    assert set(logged.Tags()["images"]) == set(names)
    (text,) = logged.Tensors("variants/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0].startswith("| variant | sparsity | parameters | MiB | multiple_choice acc |")
    assert len(lines) == 2 + 5


def test_every_variant_is_a_run_of_tensorboard(results: Results, swept: Path) -> None:
    board = swept / "run" / "board"
    assert sorted(path.name for path in board.iterdir()) == [
        *("attention_1", "attention_2", "block", "config.yaml", "figures", "overview"),
        *("report.html", "wanda"),
    ]
    for variant in ("wanda", "attention_1", "attention_2", "block"):
        logged = events(board / variant)
        assert "hp_metric" not in logged.Tags()["scalars"]
        (row,) = [row for row in results(swept, variant) if row.metric == "kl_dense_pruned"]
        (event, *_) = logged.Scalars("val/deviation/kl_dense_pruned")
        assert event.value == pytest.approx(row.value, rel=1e-6)
        assert len(logged.Scalars("val/followed/teacher_forced/logit_mse/by_step")) == 3
        assert (board / variant / "figures" / "followed_curves.csv").is_file()


def test_the_configuration_lies_beside_the_variants(swept: Path) -> None:
    saved = yaml.safe_load((swept / "run" / "board" / "config.yaml").read_text())
    assert list(saved["variants"]) == ["wanda", "attention_2", "block", "attention_1"]
    assert saved["variants"]["attention_2"]["init_args"]["count"] == 2
    assert len(list(swept.rglob("config.yaml"))) == 2  # and the one that was given


def test_a_second_sweep_uses_what_is_there(
    results: Results,
    run: Callable[..., None],
    config: Config,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run("--verbose")
    files = [path for name in config["variants"] for path in (tmp_path / "run" / name).rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    first = {name: str(results(tmp_path, name)) for name in config["variants"]}
    board = tmp_path / "run" / "board"
    old_events = list(board.rglob("events.out.tfevents.*"))
    old = {name: (board / name).read_bytes() for name in ("config.yaml", "figures/variants.csv")}
    capfd.readouterr()
    caplog.clear()
    config["variants"]["wanda"]["init_args"]["sparsity"]["init_args"]["ratio"] = 0.25
    run("--verbose")
    out, said = capfd.readouterr().out, caplog.text
    folder = tmp_path / "run"
    assert "attention_1 is measured already: nothing that its results depend on" in said
    assert f"Using the pruned model in {folder}/attention_1/pruned" not in said
    differs = "pruner.sparsity.ratio: 0.25 now, 0.5 there"
    assert f"{folder}/wanda/pruned was pruned by another recipe ({differs})." in said
    assert "in memory" not in said
    assert said.count("Achieved sparsity") == 1
    assert "Achieved sparsity" not in out
    assert "Variants (value ± standard error)" in out
    capfd.readouterr()
    run()
    lines = capfd.readouterr().out.splitlines()
    assert "wanda (1 of 2): " in lines[0]
    assert lines[1].startswith("attention_1 (2 of 2): ")
    assert all(line.endswith(" (measured already).") for line in lines[:2])
    assert str(results(tmp_path, "attention_1")) == first["attention_1"]
    assert str(results(tmp_path, "wanda")) != first["wanda"]
    after = {path: path.stat().st_mtime_ns for path in files}
    changed = {path for path, time in after.items() if before[path] != time}
    assert changed <= {folder / "wanda"}
    (other,) = (folder / "wanda").glob("pruned-*")
    report = json.loads((other / "pruning.json").read_text())
    assert report["sparsity"] == 0.25
    # With curves of both runs in one folder TensorBoard would show every step twice.
    own = [path for path in old_events if path.parent == board / "attention_1"]
    assert 0 < len(own) < len(old_events)
    assert [path for path in old_events if path.exists()] == own
    # Those of other results are kept with them.
    kept = {str(path.parent.relative_to(board)) for path in board.rglob("earlier_*/events*")}
    assert kept == {"wanda/earlier_1", "earlier_2"}
    assert (board / "earlier_1" / "config.yaml").read_bytes() == old["config.yaml"]
    assert (board / "earlier_2" / "figures" / "variants.csv").read_bytes() == (
        old["figures/variants.csv"]
    )
    assert f"Files of another configuration were here; they are now in {board}/earlier_1." in said
    assert f"Figures of other results of wanda are now in {board}/earlier_2." in said
    saved = yaml.safe_load((board / "config.yaml").read_text())["variants"]["wanda"]
    assert saved["init_args"]["sparsity"]["init_args"]["ratio"] == 0.25


def test_figures_that_a_sweep_does_not_draw_are_kept_aside(
    run: Callable[..., None], config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config["trainer"]["logger"] = False
    run()
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert "spaces_by_variant.png" in before
    assert "score_by_dropped.png" not in before
    (folder / "figures" / "score_by_dropped.png").write_bytes(b"of a sweep with questions")
    (folder / "figures" / "my own.png").touch()
    config["variants"] = {"attention_1": config["variants"]["attention_1"]}
    run()
    assert f"Figures of score_by_dropped.png are now in {folder}/earlier_2." in caplog.text
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == set(before)
    kept = folder / "earlier_2" / "figures"
    assert {path.name for path in kept.iterdir()} == {*before, "score_by_dropped.png", "my own.png"}


def test_without_a_logger_results_lie_with_the_models(
    run: Callable[..., None],
    config: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config["trainer"]["logger"] = False
    config["data"]["tasks"].pop(0)
    del config["variants"]["attention_1"]
    run()
    assert "Variants (value ± standard error)" in capsys.readouterr().out  # there is no verdict
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*.*")}
    assert {"wanda/results.jsonl", "wanda/pruned/model.safetensors", "config.yaml"} <= names
    assert "figures/variants.csv" in names
    assert {name for name in names if name.endswith(".png")} == {
        *("wanda/figures/scores.png", "wanda/figures/sparsity.png")
    }
    # Perplexity alone has none of what the figures show.
    for figure in ("perturbations", "score_by_dropped", "spaces_by_variant"):
        assert caplog.text.count(f"No figure '{figure}': no task has") == 1


def test_no_variant_depends_on_those_before_it(
    run: Callable[..., None], config: Config, tmp_path: Path
) -> None:
    (tmp_path / "drawn.py").write_text(
        "import torch\n"
        "from prunelit.pruners import Magnitude\n"
        "class Drawn(Magnitude):\n"
        "    def prune_weight(self, weight, statistic):\n"
        "        return self.remove_lowest(weight, torch.rand_like(weight))\n"
    )
    sparsity = config["variants"]["wanda"]["init_args"]["sparsity"]
    pruner = {"class_path": "drawn.Drawn", "init_args": {"sparsity": sparsity}}
    config["variants"] = {"one": pruner, "two": pruner}
    config["data"]["tasks"].pop(0)
    run()
    one, two = (
        load_file(tmp_path / "run" / name / "pruned" / "model.safetensors")
        for name in ("one", "two")
    )
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
