"""The benchmarks keep what was measured, on which machine, and the pages show what the results hold."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import (
    accuracy,
    gpu,
    gpu_pieces,
    latency,
    layouts,
    loader,
    machine,
    mutants,
    race,
    race_peers,
    shipped,
    slow_layers,
    sweep,
)
from benchmarks.pages import replace_block
from zoo import models

ROOT = Path(__file__).parents[1]
HERE, THERE = ({"processor": "P", "cores": 2, "instructions": name} for name in ("AVX-512", "AVX2"))


def results_of(name):
    return json.loads((race.RESULTS / f"{name}.json").read_text("utf-8"))


def block(path, name, render, results):
    """Return a page with a generated part as its program would write it."""
    return replace_block((ROOT / path).read_text("utf-8"), name, render(results_of(results)))


#: page -> (its text as the program writes it from the results, the program)
PAGES = {
    "docs/speed.md": (race.page, "inference"),
    "docs/parallel.md": (lambda: block("docs/parallel.md", "layouts", layouts.render, "layouts"), "layouts"),
    "docs/families.md": (lambda: accuracy.render_families(results_of("accuracy")), "accuracy --readme"),
    "README.md": (lambda: block("README.md", "results", accuracy.render, "accuracy"), "accuracy --readme"),
    "checkpoints/README.md": (shipped.table, "shipped --table"),
}


@pytest.mark.parametrize("path", PAGES)
def test_pages_show_the_results(path):
    text, program = PAGES[path]
    assert (ROOT / path).read_text("utf-8") == text(), f"run: python -m benchmarks.{program}"


def test_every_program_of_the_page_on_speed_is_listed():
    text = re.sub(r"\s+", " ", race.page())
    programs = set(re.findall(r"python -m benchmarks\.(\w+)", text))
    rows = (ROOT / "docs" / "contributing.md").read_text("utf-8").splitlines()
    row = next(row for row in rows if row.startswith("| `docs/speed.md` |"))
    assert programs == set(re.findall(r"\.(\w+)`", row.partition("|")[2].partition("|")[2]))


def test_a_missing_block_is_named():
    with pytest.raises(ValueError, match="results"):
        replace_block("no block", "results", "text")


# --- machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "expected"), [("sse avx2 avx512f", "AVX-512"), ("sse avx2", "AVX2"), ("sse", "")])
def test_vector_instructions_are_part_of_a_machine(flags, expected, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"model name\t: AMD EPYC\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert (machine.processor(), machine.machine()["instructions"]) == ("AMD EPYC", expected)
    assert machine.hardware() == ", ".join(filter(None, [f"AMD EPYC, {machine.os.cpu_count()} cores", expected]))


def test_every_result_states_its_machine():
    speeds = [
        rows for name in ("training", "training_kept", "inference") for rows in results_of(name)["models"].values()
    ]
    calls = [peers for batches in results_of("latency")["models"].values() for peers in batches.values()]
    rows = [row for group in speeds + calls for row in group.values()] + results_of("sweep")["points"]
    assert all(machine.label(row["machine"]) for row in rows)
    assert all(row["hardware"] for row in results_of("slow_layers")["layers"])


def race_row(on, when, ratio):
    figures = {"images_per_second": 10.0, "peak_mib": 5, "parameters": 7}
    return {"ratio": ratio, "zoo": figures, "peer": figures, "batch": 8, "when": when, "machine": on}


def test_rows_of_different_machines_are_in_different_tables():
    rows = {"torch": race_row(HERE, "2", 1.25), "flax": race_row(THERE, "1", 1.75)}
    here, there = race.table({"models": {"lenet5": rows}}).split("**P, 2 cores, AVX2**")
    assert "**P, 2 cores, AVX-512**" in here and "1.25" in here and "1.75" not in here
    assert "1.75" in there and "1.25" not in there


def test_a_point_of_the_sweep_counts_on_the_machine_it_was_measured_on():
    point = sweep.Point("resnet18", 64, 8, False)
    row = {**vars(point), "against": "torch", "machine": THERE, "ratio": 1.0}
    assert sweep.find({"points": [row]}, point, "torch", machine.label(THERE)) == row
    assert sweep.find({"points": [row]}, point, "torch", machine.label(HERE)) is None
    assert sweep.find({"points": [row]}, point, "torch-compile", machine.label(THERE)) is None
    assert machine.label(THERE) in sweep.table({"points": [row]})


def test_the_table_of_layers_states_the_hardware():
    assert "P, 2 cores" in slow_layers.table(
        [{"layer": "conv", "hardware": "P, 2 cores", "zoo": [1, 2], "peer": [1, 2]}], 1
    )


# --- latency ----------------------------------------------------------------------------------------------------------


def latency_row(zoo, peer, when, on=HERE):
    return {"zoo": {"ms": zoo}, "peer": {"ms": peer}, "when": when, "machine": on}


def test_a_peer_that_is_measured_alone_leaves_the_others():
    known = {"torch": latency_row(4, 2, "1"), "openvino": latency_row(4, 8, "1")}
    race.merge(known, {"onnxruntime": latency_row(5, 10, "2"), "torch": {"missing": "ended", "machine": HERE}})
    assert known["torch"] == latency_row(4, 2, "1")
    lines = latency.table({"models": {"lenet5": {"8": known}}}).splitlines()[-2:]
    assert lines == ["| lenet5, 8 | 4 | 2 |  |  | 8 | 2.00 |", "| lenet5, 8 | 5 |  |  | 10 |  | 0.50 |"]


def test_only_peers_without_figures_on_this_machine_are_measured():
    known = {"torch": latency_row(4, 2, "1"), "openvino": latency_row(4, 8, "1", THERE),
             "onnxruntime": {"missing": "ended", "machine": HERE}}  # fmt: skip
    assert latency.unmeasured(known, latency.PEERS, machine.label(HERE)) == ["torch-compile", "onnxruntime", "openvino"]


# --- equal networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*race.MODELS, *sweep.NETWORKS, *(name for name, *_ in gpu_pieces.LARGE)}))
def test_networks_are_compared_without_auxiliary_heads(name):
    assert not models.defining_fields(race_peers.network(name)).get("aux_heads", False)


@pytest.mark.parametrize(
    ("model", "counts", "refused"),
    [
        ("resnet50", {"zoo": 9, "torch": 9, "flax": 9}, ""),
        ("resnet50", {"zoo": 9, "keras": 10}, ""),
        ("resnet50", {"zoo": 9, "openvino": 0}, ""),
        ("resnet50", {"zoo": 9, "torch": 10}, "torch has 10 parameters, this project 9"),
        ("lenet5", {"zoo": 9, "keras": 10}, "keras has 10 parameters, this project 9"),
    ],
)
def test_unequal_networks_are_refused(model, counts, refused):
    if not refused:
        return race.check_parameters(model, counts)
    with pytest.raises(race.UnequalNetworksError, match=f"{model}: {refused}"):
        race.check_parameters(model, counts)


class Contender:
    """A stand-in for race.Runner; `log` tells what happened to all of them."""

    log: tuple = ()
    parameters, failing = {"other": 8}, ()

    def __init__(self, name, python, asked, *rest):
        self.name, self.ready = name, {"parameters": self.parameters.get(name, 7), "step": 1.0, "first_step": 1.0}
        self.say("start")

    def say(self, word):
        type(self).log += (f"{self.name} {word}",)

    def take(self, steps):
        if self.name in self.failing:
            raise race.ContenderError("ended")
        self.say("take")
        return 1.0

    def finish(self):
        return 2**20

    def stop(self):
        self.say("stop")


ASKED = {"model": "resnet50", "batch": 8}


@pytest.fixture
def contender(monkeypatch):
    made = type("Made", (Contender,), {})
    for module in (race, gpu_pieces, latency):
        monkeypatch.setattr(module, "Runner", made)
    return made


def test_contenders_start_one_after_another_and_one_that_ends_is_named(contender):
    contender.failing = ("late",)
    names = dict.fromkeys(("zoo", "torch", "other", "late"), "python")
    found = gpu_pieces.compare(ASKED, names, 1, 2)
    assert (found["zoo"], found["torch"], found["late"]) == (8, 8, "ended") and "8 parameters" in found["other"]
    assert contender.log[:4] == ("zoo start", "torch start", "other start", "late start")
    assert {word for word in contender.log if "stop" in word} == {f"{name} stop" for name in names}


def test_contenders_that_need_all_of_the_memory_run_alone(contender):
    gpu_pieces.compare(ASKED, dict.fromkeys(("zoo", "torch"), "python"), 1, 1, alone=True)
    assert contender.log == tuple(f"{name} {word}" for name in ("zoo", "torch") for word in ("start", "take", "stop"))


@pytest.mark.parametrize("module", [race, latency])
def test_a_race_between_unequal_networks_ends(module, contender, monkeypatch):
    contender.parameters = {"torch": 8}
    options = SimpleNamespace(threads=0, kept=False, patience=1, seconds=1, rounds=1)
    pythons = {"zoo": "python", "torch": "python"}
    with pytest.raises(race.UnequalNetworksError):
        if module is race:
            race.race("lenet5", True, pythons, options, (32, 32, 1), 10, 8)
        else:
            latency.measure("lenet5", 8, pythons, "", options)
    assert "torch stop" in contender.log


# --- loader -----------------------------------------------------------------------------------------------------------


def test_results_of_the_loader_that_are_not_measured_again_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "RESULTS", tmp_path / "loader.json")
    loader.add_results({"formats": {"png": 1}, "500x375": 2})
    loader.add_results({"500x375": 3})
    assert json.loads((tmp_path / "loader.json").read_text()) == {"formats": {"png": 1}, "500x375": 3}


@pytest.mark.parametrize("failing", range(loader.ROUNDS))
def test_a_peer_that_fails_in_any_round_is_named(failing, monkeypatch):
    answers = iter("no memory" if turn == failing else {"images_per_second": 2.0} for turn in range(loader.ROUNDS))
    asked = []
    monkeypatch.setattr(loader, "run_peer", lambda python, name, words: asked.append(words) or next(answers))
    assert loader.compare_speed({"torch": "python"}, [], 8, workers=16) == {"torch": "no memory"}
    assert asked[0]["warm"] == 2 * 16 * loader.BATCH, "what all workers have prepared at the start is not timed"


# --- mutants ----------------------------------------------------------------------------------------------------------


def test_work_on_a_changed_tree_starts_anew(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    digests = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "a.py").write_text(text)
        digests |= {mutants.digest_tree(tmp_path), mutants.digest_tree(tmp_path)}
    assert len(digests) == 2
    mutants.copy_tree(tmp_path, tmp_path / "copy")
    assert (tmp_path / "copy" / "a.py").read_text() == "a = 2"


def test_a_sample_is_added_to_those_in_the_results(tmp_path):
    committed = results_of("mutants")
    file = tmp_path / "mutants.json"
    file.write_text(json.dumps(committed))
    sample = {**committed["samples"][1], "seed": 2}
    mutants.add_sample(file, sample)
    mutants.add_sample(file, sample | {"drawn": 7})
    results = json.loads(file.read_text())
    assert results.keys() == committed.keys() and results["before"] == committed["before"]
    assert results["samples"] == [*committed["samples"], sample | {"drawn": 7}]
    rows = [row["noticed"] for each in results["samples"] for row in each["rows"]]
    assert results["rate"] == sum(rows) / len(rows)


# --- accelerators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("loop_convert_fusion_3", "fusion"),
        ("convert_reduce_fusion", "reduction"),
        ("cudnn::convolve_sgemm", "convolution or product"),
        ("sm90_xmma_fprop_implicit_gemm", "convolution or product"),
        ("input_transpose_fusion", "copy or transpose"),
        ("wrapped_convert", "other"),
    ],
)
def test_kernels_are_classified_by_name(kernel, kind):
    assert gpu_pieces.kind_of(kernel) == kind


def test_rows_without_a_figure_are_measured_again(tmp_path):
    piece = gpu_pieces.Piece("speed", tmp_path, True, {})
    piece.add({"batch": 8}, ["zoo", "torch"], zoo=5, torch="ended")
    assert piece.has({"batch": 8}, ["zoo"]) and not piece.has({"batch": 8}, ["zoo", "torch"]) and piece.missing
    again = gpu_pieces.Piece("speed", tmp_path, True, {})
    again.add({"batch": 8}, ["zoo", "torch"], zoo=6, torch=7)
    assert again.has({"batch": 8}, ["zoo", "torch"]) and not again.missing
    assert again.results["rows"] == [{"batch": 8, "zoo": 6, "torch": 7}]
    again.write(complete=True, with_peers=["torch"])
    assert gpu.is_complete(again.file, ["torch"]) and not gpu.is_complete(again.file, ["torch", "jax"])
    assert not gpu.is_complete(tmp_path / "batches.json", [])
    assert [file.name for file in tmp_path.iterdir()] == ["speed.json"]


def test_the_ratio_says_to_whom_and_who_failed():
    found = {"zoo": 6, "torch": 3, "torch-compile": "ended"}
    assert gpu_pieces.ratio_to_fastest(found) == {"ratio": 2.0, "ratio_to": "torch; torch-compile failed"}
    assert gpu_pieces.ratio_to_fastest({"zoo": 6, "torch": 3, "b": 4}) == {"ratio": 1.5, "ratio_to": "b"}
    assert gpu_pieces.ratio_to_fastest({"zoo": 6, "torch": "ended"}) == {}


def test_a_piece_ends_with_all_that_it_started(tmp_path):
    child = f"import time, pathlib; time.sleep(0.6); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert "stopped after" in gpu.run_group([sys.executable, "-c", parent], 0.3)
    time.sleep(0.6)
    assert not (tmp_path / "alive").exists()
    assert gpu.run_group([sys.executable, "-c", ""], 60) == "done"
    assert gpu.run_group([sys.executable, "-c", "raise SystemExit(3)"], 60) == "ended with 3"


def test_a_processor_is_measured_only_in_small(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "backend", lambda: "cpu")
    monkeypatch.setattr(gpu, "run_piece", lambda name, options, seconds: "done" if name == "small" else "ended with 1")
    output = ["--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="--tiny"):
        gpu.main(["small", *output])
    gpu.main(["small", "--tiny", *output])
    with pytest.raises(SystemExit, match="not complete: speed"):
        gpu.main(["small", "speed", "--tiny", *output])


def test_pieces_measured_again_forget_the_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "run_piece", lambda *args: "done")
    (tmp_path / gpu.REFERENCE).mkdir()
    gpu.main(["correctness", "--tiny", "--again", "--output", str(tmp_path)])
    assert not (tmp_path / gpu.REFERENCE).exists()


def test_a_call_ends_after_its_minutes(monkeypatch, tmp_path):
    seconds = []
    monkeypatch.setattr(gpu, "run_piece", lambda name, options, left: seconds.append(left) or "done")
    gpu.main(["speed", "--tiny", "--minutes", "2", "--output", str(tmp_path)])
    gpu.main(["speed", "--tiny", "--output", str(tmp_path)])
    assert 119 < seconds[0] <= 120 and seconds[1] == 60 * gpu.PIECES["speed"][0]


def test_wheels_include_the_plugin_for_the_accelerator():
    everything, plugins = gpu.wheel_commands(set(), "3.12", ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64"])
    target = "--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --python-version 3.12"
    assert all(target in command for command in (everything, plugins))
    assert "--no-deps" in everything and "--no-deps" not in plugins
    assert "jax-cuda13-plugin[with-cuda]" in plugins and "jaxlib" not in plugins
    installed = {name.partition("==")[0] for name in gpu.missing_packages(set())}
    assert gpu.wheel_commands(installed, "", []) == [plugins.replace(f" {target}", "")]
    assert gpu.wheel_commands(installed | {"jax_cuda13_plugin", "jax-cuda13-pjrt"}, "", []) == []
