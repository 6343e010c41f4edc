"""The command line in this process: what it prints where, its files and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.report import make_report

from .command_line import Bnnc, Outcome, assert_refused
from .conftest import ModelFinder
from .test_build import has_linker


def test_compile_writes_library_and_report(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    outcome = bnnc("compile", digits, "--report", "report.json", "--dump-dir", "dump")
    assert outcome.status == 0 and outcome.err == ""
    assert "digits.onnx: 3 of 5 layers binary (99.0 % of 3.64 M MACs), 2 float" in outcome.out
    assert "agrees with ONNX Runtime on 7 inputs: 3 layers alone (3 within the bound of float32" in outcome.out
    assert "bytes of constants, a workspace of " in outcome.out
    assert {path.name for path in tmp_path.iterdir()} == {"digits.so", "report.json", "dump"}
    assert any((tmp_path / "dump").iterdir())
    report = json.loads((tmp_path / "report.json").read_text())
    assert [layer["status"] for layer in report["layers"]] == ["float", "binary", "binary", "binary", "float"]
    memory = report["memory"]
    assert memory["workspace_bytes"] >= memory["activations_peak_bytes"] >= 4 * 32 * 8 * 8  # what the pool reads
    verification = report["verification"]
    assert verification["passed"] and all(layer["mismatches"] == 0 for layer in verification["layers"])
    # The schema is complete, in order, and survives a round trip.
    keys = ("model", "target", "versions", "layers", "notes", "verification", "memory")
    remade = make_report(*(report[key] for key in keys))
    assert json.dumps(remade) == json.dumps(report)


def test_every_binary_layer_is_verified(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    assert bnnc("compile", digits, "--report", "report.json").status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    binary = [layer["name"] for layer in report["layers"] if layer["algorithm"] == "popcount"]
    assert [layer["name"] for layer in report["verification"]["layers"]] == binary


def test_quiet_says_nothing(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    assert bnnc("compile", digits, "-q", "--no-verify", "-o", "x.so") == Outcome(0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x.so"]


@pytest.mark.parametrize("words", [["--target", "llvm", "-mcpu=haswell"], ["--target", "llvm -mcpu=haswell"]])
def test_target_unquoted_and_quoted(bnnc: Bnnc, digits: Path, words: list[str]) -> None:
    assert bnnc("compile", digits, *words, "--no-verify", "-o", "x.so").status == 0
    report = json.loads(bnnc("inspect", "x.so", "--json").out)
    assert "-mcpu=haswell" in report["target"]


def test_algorithm_float_is_said(bnnc: Bnnc, digits: Path) -> None:
    report = json.loads(bnnc("inspect", digits, "--json", "--algorithm", "float").out)
    assert {layer["algorithm"] for layer in report["layers"]} == {"float"}
    assert [layer["reason"] for layer in report["layers"]].count("algorithm_forced") == 3


def test_inspect_tells_the_same_of_model_and_library(bnnc: Bnnc, digits: Path, library: Path) -> None:
    model, compiled = (json.loads(bnnc("inspect", path, "--json").out) for path in (digits, library))
    assert model["layers"] == compiled["layers"]
    text = bnnc("inspect", library).out
    assert "conv1/Conv" in text and "weights_not_two_valued" in text and "popcount_conv2d" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_inspect_states_bytes_and_weights_that_differ(bnnc: Bnnc, digits: Path) -> None:
    (layer, other) = [
        layer
        for layer in json.loads(bnnc("inspect", digits, "--json", "--algorithm", "bitsliced").out)["layers"]
        if layer["algorithm"] == "bitsliced"
    ]
    tree = layer["choice"]["tree"]
    numbers = [36864, tree["differing_weights"], 64, tree["nodes"], layer["weight_bytes"], layer["resident_bytes"]]
    lines = bnnc("inspect", digits, "--algorithm", "bitsliced").out.split("channel trees")[1].splitlines()
    assert lines[1].split() == [layer["name"], *(f"{number:,}" for number in numbers)]
    total = layer["resident_bytes"] + other["resident_bytes"]
    assert lines[3].split()[0] == "all" and lines[3].split()[-1] == f"{total:,}"
    assert "channel trees" not in bnnc("inspect", digits, "--algorithm", "popcount").out


def test_run(bnnc: Bnnc, library: Path, image: Path, tmp_path: Path) -> None:
    outcome = bnnc("run", library, "--input", image, "--output", "scores", "--repeat", "3")
    assert outcome.status == 0 and "3 runs: minimum" in outcome.out and "float32  1×10" in outcome.out
    with np.load(tmp_path / "scores") as scores:
        assert scores["score"].shape == (1, 10)


def test_bench(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    outcome = bnnc("bench", digits, "--rounds", "3", "--no-verify", "--json", "bench.json")
    assert outcome.status == 0 and "whole network" in outcome.out
    bench = json.loads((tmp_path / "bench.json").read_text())
    assert [layer["name"] for layer in bench["layers"]] == ["conv1/Conv", "conv2/Conv", "dense/Gemm"]
    for timing in (bench["network"], *bench["layers"]):
        assert 0 < timing["bnnc_us_min"] <= timing["bnnc_us_median"]
        assert timing["speedup"] == pytest.approx(timing["onnxruntime_us_min"] / timing["bnnc_us_min"], rel=0.01)


def test_bench_says_where_the_time_goes(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    outcome = bnnc("bench", digits, "--rounds", "3", "--no-verify", "--json", "bench.json", "--html", "bench.html")
    assert outcome.status == 0
    assert (
        "overhead" in outcome.out and "pack_dense" in outcome.out and "of its nodes have no counterpart" in outcome.out
    )
    profile = json.loads((tmp_path / "bench.json").read_text())["profile"]
    assert sum(profile["shares"].values()) == pytest.approx(1)
    assert profile["onnxruntime"]["run_us"] > 0 and profile["peaks"]["float_gmacs_per_second"] > 0
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "conv1/Conv" in page and "<svg" in page


def test_inspect_profiles_a_library(bnnc: Bnnc, library: Path, digits: Path, tmp_path: Path) -> None:
    outcome = bnnc("inspect", library, "--profile")
    assert outcome.status == 0 and "overhead" in outcome.out and "ONNX Runtime µs" not in outcome.out
    outcome = bnnc("inspect", library, "--profile", "--json", "--onnx", digits)
    profile = json.loads(outcome.out)["profile"]
    assert profile["peaks"] is None and profile["onnxruntime"]["nodes_us"] > 0
    assert bnnc("inspect", library, "--html", "page.html", "-q").out == ""
    assert "ONNX Runtime was not run" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_inspect_compiles_what_it_profiles(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    outcome = bnnc("inspect", digits, "--profile", "--algorithm", "popcount", "--threads", "1")
    assert outcome.status == 0 and "pack_dense" in outcome.out and "speed-up" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_profiles_that_cannot_be_made(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    assert_refused(bnnc("inspect", digits, "--html", "none/x.html"), 1, "none/x.html: cannot be written")
    assert_refused(bnnc("bench", digits, "--html", tmp_path), 1, "directory")
    assert_refused(bnnc("inspect", "none.so", "--profile"), 1, "none.so: cannot be read")
    assert_refused(bnnc("inspect", "none.onnx", "--profile"), 1, "none.onnx: no such file")
    assert_refused(bnnc("inspect", digits, "--onnx", digits), 2, "--onnx goes with")
    arm = ("--target", "llvm", "-mcpu=cortex-a72")
    assert_refused(bnnc("inspect", digits, "--profile", *arm), 2, "cannot be profiled here")
    assert list(tmp_path.iterdir()) == []


def test_a_library_is_profiled_beside_its_own_model(
    bnnc: Bnnc, library: Path, digits: Path, small_model: ModelFinder, tmp_path: Path
) -> None:
    other = small_model("base_sign_conv")
    assert_refused(bnnc("inspect", library, "--profile", "--onnx", other), 2, "the model has no input 'image'")
    model = onnx.load(digits)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, tmp_path / "other.onnx")
    outcome = bnnc("inspect", library, "--profile", "--onnx", "other.onnx")
    assert_refused(outcome, 2, "other.onnx has other inputs or outputs")


def test_libraries_of_other_machines_are_not_profiled(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    if not has_linker("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72"):
        pytest.skip("no linker for ARM")
    arm = ("--target", "llvm", "-mtriple=aarch64-linux-gnu", "-mcpu=cortex-a72")
    assert bnnc("compile", digits, *arm, "-o", "arm.so", "-q").status == 0
    assert_refused(bnnc("inspect", "arm.so", "--html", "arm.html"), 1, "arm.so: compiled for aarch64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm.so"]


def test_version_and_help(bnnc: Bnnc) -> None:
    assert bnnc("--version").out.startswith("bnnc 0.")
    for words in (["--help"], ["compile", "-h"], ["run", "-h"], ["inspect", "-h"], ["bench", "-h"]):
        outcome = bnnc(*words)
        assert outcome.status == 0 and outcome.out.startswith("Usage: bnnc")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Missing command"),
        (["comple"], "Did you mean 'compile'"),
        (["compile"], "Missing argument 'MODEL'"),
        (["compile", "m.onnx", "--algorithm", "fast"], "'fast' is not one of"),
        (["compile", "m.onnx", "--input-shape", "x"], "name=1,3,224,224"),
        (["compile", "m.onnx", "--input-shape", "x=1", "--input-shape", "x=2"], "two shapes for 'x'"),
        (["compile", "m.onnx", "--frobnicate"], "--frobnicate"),
        (["compile", "m.onnx", "--target", "llvm", "-mcpu=cortexa72"], "did you mean cortex-a72"),
        (["compile", "m.onnx", "--target", "cuda"], "cuda"),
        (["run", "m.so"], "--input"),
        (["run", "m.so", "--input", "x.npz", "--threads", "0"], "--threads"),
    ],
)
def test_wrong_calls(bnnc: Bnnc, words: list[str], text: str) -> None:
    assert_refused(bnnc(*words), 2, text)


def test_wrong_shapes_are_wrong_calls(bnnc: Bnnc, digits: Path) -> None:
    assert_refused(bnnc("compile", digits, "--input-shape", "image=1,1,9,9"), 2, "digits.onnx: ", "dimension 2")
    assert_refused(bnnc("compile", digits, "--input-shape", "picture=1,1,8,8"), 2, "'picture'", "'image'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bad_empty_file", "empty"),
        ("bad_bitflips", ""),
        ("bad_external_missing", "gone.bin"),
        ("bad_cycle", "cycle"),
        ("bad_opset99", "99"),
        ("bad_channel_mismatch", "n1"),
    ],
)
def test_bad_models(bnnc: Bnnc, small_model: ModelFinder, tmp_path: Path, name: str, text: str) -> None:
    assert_refused(bnnc("compile", small_model(name)), 1, f"{name}.onnx: ", text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["compile", "inspect", "bench"])
def test_missing_model(bnnc: Bnnc, command: str) -> None:
    assert_refused(bnnc(command, "none.onnx"), 1, "none.onnx: no such file")


def test_the_user_s_own_path_is_named_once(bnnc: Bnnc, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "m.onnx").touch()
    assert_refused(bnnc("compile", "folder/m.onnx"), 1, "bnnc: folder/m.onnx: the file is empty")


def test_destinations_are_checked_first(bnnc: Bnnc, digits: Path, tmp_path: Path) -> None:
    for option in ("-o", "--report"):
        assert_refused(bnnc("compile", digits, option, "none/x"), 1, "none/x: cannot be written")
        assert_refused(bnnc("compile", digits, option, tmp_path), 1, "directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"picture": np.zeros((1, 1, 8, 8), np.float32)}, "unknown 'picture'"),
        ({"image": np.zeros((2, 1, 8, 8), np.float32)}, "got float32[2, 1, 8, 8]"),
        ({"image": np.zeros((1, 1, 8, 8))}, "got float64"),
        ({}, "missing 'image'"),
    ],
)
def test_wrong_feeds(bnnc: Bnnc, library: Path, tmp_path: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    assert_refused(bnnc("run", library, "--input", "x.npz"), 1, "digits.so: ", text)


def test_files_that_are_no_arrays(bnnc: Bnnc, library: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.npz").write_text("junk")
    np.save(tmp_path / "bare.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", image=np.array([None, {}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "objects.npz").read_bytes()[:-30])
    for name in ("junk.npz", "bare.npy", "objects.npz", "cut.npz", "none.npz", "."):
        assert_refused(bnnc("run", library, "--input", name), 1, ".npz")


def test_damaged_libraries(bnnc: Bnnc, library: Path, image: Path, tmp_path: Path) -> None:
    data = library.read_bytes()
    (tmp_path / "cut.so").write_bytes(data[: len(data) // 2])
    (tmp_path / "flipped.so").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    (tmp_path / "empty.so").touch()
    for name in ("cut.so", "flipped.so", "empty.so", "none.so"):
        assert_refused(bnnc("run", name, "--input", image), 1, f"{name}: ")
        assert_refused(bnnc("inspect", name), 1, f"{name}: ")


def test_failures_leave_no_artifact(bnnc: Bnnc, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime is made to disagree by one value of one layer."""
    honest = CompiledNetwork.run_function

    def wrong(self: CompiledNetwork, name: str, value: np.ndarray) -> np.ndarray:
        result = honest(self, name, value).copy()
        if name == "layer_1":
            result.flat[7] += 2
        return result

    monkeypatch.setattr(CompiledNetwork, "run_function", wrong)
    outcome = bnnc("compile", digits, "--report", "report.json")
    assert_refused(outcome, 1, "digits.onnx: verification failed: layer 'conv2/Conv' differs", "1 of 2048 values")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (MemoryError(), 1, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x.so"), 1, "x.so: No space left on device"),
        (RuntimeError("first\nTVM: the last line"), 1, "internal error, please report"),
    ],
)
def test_any_exception_is_one_line(
    bnnc: Bnnc, digits: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, text: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("bnn_compiler.driver.compile_model", fail)
    monkeypatch.setattr("bnn_compiler.compile_model", fail, raising=False)
    assert_refused(bnnc("compile", digits), status, "digits.onnx: ", text)
    verbose = bnnc("compile", digits, "-v")
    assert verbose.status == status and "Traceback" in verbose.err and verbose.err.splitlines()[-1].startswith("bnnc: ")


def test_measure_needs_a_target_that_runs_here(bnnc: Bnnc, digits: Path) -> None:
    outcome = bnnc("compile", digits, "--measure", "--target", "llvm -mcpu=cortex-a72")
    assert outcome.status == 2
    assert "cannot run on this machine" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_measure_is_in_the_report(bnnc: Bnnc, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNC_CACHE", str(tmp_path / "cache"))
    choices = []
    for number in range(2):
        report = tmp_path / f"{number}.json"
        assert bnnc("compile", digits, "--measure", "--no-verify", "--report", report).status == 0
        choices.append([layer["choice"] for layer in json.loads(report.read_text())["layers"] if "choice" in layer])
    assert choices[0] == choices[1], "times are remembered"
    assert {choice["source"] for choice in choices[0]} == {"measured", "only"}
