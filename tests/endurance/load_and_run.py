"""One model run and loaded very often, by threads, by forked and spawned processes: results stay, memory does not grow.

Trials that end with their process, or measure all of its memory, run in one of their own: ``python -m
tests.endurance.load_and_run NAME LIBRARY SECONDS`` prints what it found as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import bnn_compiler
from bnn_compiler.constants import Array
from bnn_compiler.verification.reference import sample_feeds
from tests.conftest import ROOT

from .trial import Budget, Result, Turns, finish, left_in, start

DIGITS = ROOT / "examples" / "digits.onnx"
#: What may be lost per run or per load: below, a million of them are a few megabytes.
BYTES_PER_RUN, BYTES_PER_LOAD, BYTES_PER_THREAD = 8.0, 4096.0, 16384.0
_LEAST_SAMPLES = 8

Feeds = dict[str, Array]
Child = multiprocessing.process.BaseProcess
_FORK, _SPAWN = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")


def many_runs(budget: Budget) -> Result:
    """Memory by runs, on one and on two threads."""
    return _apart("runs of one model", "runs", budget)


def many_loads(budget: Budget) -> Result:
    """Memory by loads, each with a run."""
    return _apart("loads with a run", "loads", budget)


def many_calling_threads(budget: Budget) -> Result:
    """Memory and the system's threads by threads that run a model on two cores and end."""
    return _apart("calling threads", "callers", budget)


def sixteen_threads(budget: Budget) -> Result:
    """At once on one model, each with inputs of its own."""
    return _apart("runs by 16 threads at once", "threads", budget)


def forks_and_spawns(budget: Budget) -> Result:
    """Processes that are made when a model is loaded and has run, on one or two threads, and run it themselves."""
    return _apart("processes forked and spawned", "processes", budget)


def four_processes(budget: Budget) -> Result:
    """Compile to one output, with one cache of trees that is empty at first."""
    result = Result("4 compilations to one file")
    work, scratch = budget.folder / "work", budget.folder / "tmp"
    work.mkdir(parents=True)
    scratch.mkdir()
    words = ["-m", "bnn_compiler.cli", "compile", str(DIGITS), "-q", "--algorithm", "bitsliced", "-o", "x.so"]
    for turn in budget.turns():
        cache = str(budget.folder / f"cache-{turn}")
        together = [start(words, scratch, work, BNNC_CACHE=cache) for _ in range(4)]
        for process in together:
            status, _, err = finish(process, result)
            result.expect(status == 0, f"ended with {status}: {err[-300:]}")
        result.tried += 1
        result.expect(bnn_compiler.load(work / "x.so").inputs[0].name == "image", "another network")
        result.expect(not left_in(work, scratch), f"left: {left_in(work, scratch)}")
        (work / "x.so").unlink()
    return result


def _apart(title: str, name: str, budget: Budget) -> Result:
    result = Result(title)
    budget.folder.mkdir(parents=True)
    library = budget.folder / "network.so"
    bnn_compiler.compile_model(_network(), verify=False).export(library)
    words = ["-m", "tests.endurance.load_and_run", name, str(library), str(budget.seconds)]
    status, out, err = finish(start(words, budget.folder, budget.folder), result, budget.seconds)
    if status != 0:
        result.failures.append(f"ended with {status}: {err[-300:]}")
        return result
    found = json.loads(out.splitlines()[-1])
    return Result(title, found["tried"], found["failures"], found["figure"])


def _network() -> onnx.ModelProto:
    """A binary and a float convolution, large enough that loops are shared among threads."""
    signs = np.random.default_rng(0).choice(np.asarray([-1, 1], np.float32), (2, 64, 64, 3, 3))
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"], pads=[1] * 4),
        helper.make_node("Sign", ["c"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["y"], pads=[1] * 4),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 64, 14, 14]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(signs[0], "w"), numpy_helper.from_array(signs[1] * signs[0] / 7 + 0.1, "v")]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# In a process of its own


def _resident() -> int:
    """Bytes, when what C and Python could give back is given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _slope(samples: Sequence[tuple[int, int]]) -> float:
    """Bytes per time of trying, by least squares over the second half: the first fills pools."""
    half = np.asarray(samples[len(samples) // 2 :], np.float64)
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) if len(half) > 2 else 0.0


def _grow(result: Result, seconds: float, each: int, limit: float, unit: str, work: Callable[[], None]) -> None:
    """Do ``work`` ``each`` times between samples of memory."""
    samples = []
    for turn in Turns.lasting(seconds, least=_LEAST_SAMPLES):
        for _ in range(each):
            work()
        result.tried += each
        samples.append(((turn + 1) * each, _resident()))
    slope = _slope(samples)
    result.figure = f"{slope:+.2f} bytes per {unit}, {samples[-1][1] / 2**20:.0f} MiB at the end"
    result.expect(slope < limit, f"grows by {slope:.1f} bytes per {unit}")


def _runs(library: Path, seconds: float, result: Result) -> None:
    model = bnn_compiler.load(library)
    feeds = sample_feeds(model.inputs, 0, 0)
    expected = model.run(feeds)

    def work() -> None:
        for threads in (1, 2):
            model.set_num_threads(threads)
            if not _equal(model.run(feeds), expected):
                result.failures.append("another result")

    _grow(result, seconds, 500, BYTES_PER_RUN, "run", work)
    result.tried *= 2


def _loads(library: Path, seconds: float, result: Result) -> None:
    feeds: Feeds = {}

    def work() -> None:
        model = bnn_compiler.load(library)
        feeds.update(feeds or sample_feeds(model.inputs, 0, 0))
        model.run(feeds)

    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    _grow(result, seconds, 10, BYTES_PER_LOAD, "load", work)
    left = len(os.listdir("/proc/self/fd")) - descriptors  # noqa: PTH208
    result.expect(left <= 0, f"{left} files are still open")


def _callers(library: Path, seconds: float, result: Result) -> None:
    model = bnn_compiler.load(library, threads=2)
    feeds = sample_feeds(model.inputs, 0, 0)

    def work() -> None:
        thread = threading.Thread(target=model.run, args=(feeds,))
        thread.start()
        thread.join()

    work()
    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    _grow(result, seconds, 5, BYTES_PER_THREAD, "thread", work)
    time.sleep(2)  # a thread that was joined is not gone at once
    left = len(os.listdir("/proc/self/task")) - before  # noqa: PTH208
    result.figure += f", {left} threads left"
    result.expect(left <= 2, f"{left} threads are left of {result.tried}")


def _threads(library: Path, seconds: float, result: Result) -> None:
    model = bnn_compiler.load(library)
    lock = threading.Lock()

    def work(seed: int) -> None:
        feeds = sample_feeds(model.inputs, seed, 0)
        expected = model.run(feeds)
        for _ in Turns.lasting(seconds, least=10):
            same = _equal(model.run(feeds), expected)
            with lock:
                result.tried += 1
                result.expect(same, "another result")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _processes(library: Path, seconds: float, result: Result) -> None:
    for turn in Turns.lasting(seconds, least=4):
        threads, way = 1 + turn % 2, ("fork", "spawn")[turn // 2 % 2]
        model = bnn_compiler.load(library, threads)
        feeds = sample_feeds(model.inputs, turn, 0)
        expected = model.run(feeds)
        if way == "fork":
            child: Child = _FORK.Process(target=_check_in_child, args=(model, feeds, expected))
        else:
            child = _SPAWN.Process(target=_load_in_child, args=(library, threads, feeds, expected))
        child.start()
        child.join(60)
        result.tried += 1
        result.expect(child.exitcode == 0, f"{way}, {threads} threads: exit status {child.exitcode}")
        if child.exitcode is None:
            child.kill()
        result.expect(_equal(model.run(feeds), expected), "another result in the parent")


def _check_in_child(model: bnn_compiler.CompiledModel, feeds: Feeds, expected: Feeds) -> None:
    sys.exit(0 if _equal(model.run(feeds), expected) else 3)


def _load_in_child(library: Path, threads: int, feeds: Feeds, expected: Feeds) -> None:
    _check_in_child(bnn_compiler.load(library, threads), feeds, expected)


def _equal(actual: Feeds, expected: Feeds) -> bool:
    return all(np.array_equal(actual[name], value) for name, value in expected.items())


_TRIALS = {"runs": _runs, "loads": _loads, "callers": _callers, "threads": _threads, "processes": _processes}


def main() -> None:
    """Run one trial in this process."""
    name, library, seconds = sys.argv[1:]
    result = Result(name)
    _TRIALS[name](Path(library), float(seconds), result)
    print(json.dumps({"tried": result.tried, "failures": result.failures[:20], "figure": result.figure}))


if __name__ == "__main__":
    main()
