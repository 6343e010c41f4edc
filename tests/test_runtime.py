"""Running a compiled library: no copies where none are needed, right answers from anywhere, clear refusals."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bnn_compiler.build import build_library
from bnn_compiler.errors import ArtifactError, FeedError, UsageError
from bnn_compiler.runtime import CompiledModel, load
from bnn_compiler.target import parse_target
from tests.small_relax_modules import FEATURES, WEIGHT, elementwise, many_results, many_results_reference, parallel

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    for make in (many_results, elementwise, parallel):
        build_library(make(), parse_target("native"), {}, folder / f"{make.__name__}.so")
    return folder


@pytest.fixture
def model(libraries: Path) -> CompiledModel:
    return load(libraries / "many_results.so")


@pytest.fixture
def adder(libraries: Path) -> CompiledModel:
    return load(libraries / "elementwise.so")


@pytest.fixture
def x() -> FloatArray:
    return np.random.default_rng(1).standard_normal((1, FEATURES)).astype(np.float32)


def check(results: dict[str, npt.NDArray[Any]], x: FloatArray) -> None:
    """Compare the outputs of ``many_results``; summing 1024 float32 products in another order moves the last bits."""
    for (name, result), expected in zip(results.items(), many_results_reference(x), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def placed(source: FloatArray, offset: int) -> FloatArray:
    """A copy of ``source`` at an address that is ``offset`` bytes past a multiple of 64."""
    block = np.zeros(source.nbytes + 128, np.uint8)
    start = -block.ctypes.data % 64 + offset
    copy = block[start : start + source.nbytes].view(source.dtype).reshape(source.shape)
    copy[...] = source
    return copy


def address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def test_results(model: CompiledModel, x: FloatArray) -> None:
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.inputs] == [("x", (1, FEATURES), "float32")]
    assert [spec.shape for spec in model.outputs] == [(10,), (10,), (1, FEATURES), (10,)]
    check(model.run({"x": x}), x)
    check(model.run(x), x)
    first, second = model.run(x), model.run(2 * x)
    check(first, x)  # results are the caller's, not a buffer that the next call reuses
    check(second, 2 * x)


@pytest.mark.parametrize("offset", [*range(0, 64, 4), 1, 2, 3, 33])
def test_any_alignment(model: CompiledModel, adder: CompiledModel, x: FloatArray, offset: int) -> None:
    check(model.run(placed(x, offset)), x)
    left, right, out = placed(x, offset), placed(x, (offset + 20) % 64), placed(np.zeros_like(x), (offset + 40) % 64)
    result = adder.run({"x": left, "y": right}, {"output_0": out})["output_0"]
    assert result is out
    np.testing.assert_array_equal(out, x + x)


def test_input_and_output_are_not_copied(adder: CompiledModel, x: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the virtual machine is handed are the caller's own addresses."""
    handed: list[int] = []
    closure = adder._closure("main")

    def spy(*arrays: npt.NDArray[Any]) -> object:
        handed.extend(address(array) for array in arrays)
        return closure(*arrays)

    monkeypatch.setattr(adder, "_closure", lambda _name: spy)
    left, right, out = placed(x, 4), placed(x, 0), placed(x, 12)
    left.flags.writeable = False
    adder.run({"y": right, "x": left}, {"output_0": out})
    assert handed == [address(left), address(right), address(out)]
    np.testing.assert_array_equal(out, x + x)


def test_read_only_input(adder: CompiledModel, x: FloatArray) -> None:
    frozen = np.frombuffer(x.tobytes(), np.float32).reshape(x.shape)
    assert not frozen.flags.writeable
    np.testing.assert_array_equal(adder.run({"x": frozen, "y": frozen})["output_0"], x + x)
    assert not frozen.flags.writeable


def test_strided_input_and_output(adder: CompiledModel, x: FloatArray) -> None:
    wide = np.zeros((1, 2 * FEATURES), np.float32)
    wide[:, ::2] = x
    reverse = x[:, ::-1].copy()[:, ::-1]
    target = np.zeros((1, 3 * FEATURES), np.float32)
    result = adder.run({"x": wide[:, ::2], "y": reverse}, {"output_0": target[:, ::3]})
    np.testing.assert_array_equal(target[:, ::3], x + x)
    assert not target[:, 1::3].any()
    assert address(result["output_0"]) == address(target)
    # One row of a larger array: contiguous, but with a stride that is not the compact one.
    rows = np.zeros((3, 2, FEATURES), np.float32)
    rows[0, 0] = x
    row = rows[:1, 0]
    assert row.flags.c_contiguous
    np.testing.assert_array_equal(adder.run({"x": row, "y": x})["output_0"], x + x)


def test_outputs_may_overlap_inputs_and_each_other(adder: CompiledModel, model: CompiledModel, x: FloatArray) -> None:
    block = np.zeros(2 * FEATURES, np.float32)
    block[:FEATURES] = x
    shifted = block[1 : FEATURES + 1].reshape(x.shape)  # one element past the input it is computed from
    adder.run({"x": block[:FEATURES].reshape(x.shape), "y": x}, {"output_0": shifted})
    np.testing.assert_array_equal(shifted, x + x)
    in_place = x.copy()
    adder.run({"x": in_place, "y": in_place}, {"output_0": in_place})
    np.testing.assert_array_equal(in_place, x + x)
    shared = np.zeros(10, np.float32)
    model.run(x, {"output_0": shared, "output_1": shared})  # the last one wins
    np.testing.assert_allclose(shared, many_results_reference(x)[1], rtol=1e-4, atol=1e-4)


def test_some_outputs_given(model: CompiledModel, x: FloatArray) -> None:
    mine = np.empty(10, np.float32)
    results = model.run(x, out={"output_1": mine})
    assert results["output_1"] is mine
    assert list(results) == [spec.name for spec in model.outputs]
    check(results, x)


def test_nan_and_infinity_pass_through(adder: CompiledModel, x: FloatArray) -> None:
    x[0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    zeros = np.zeros_like(x)
    np.testing.assert_array_equal(adder.run({"x": x, "y": zeros})["output_0"], x + zeros)


def feed(**arrays: object) -> Callable[[CompiledModel], object]:
    return lambda model: model.run(arrays)  # type: ignore[arg-type]


GOOD = np.zeros((1, FEATURES), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (feed(x=GOOD), "missing 'y'; expected x: float32[1, 1024], y: float32[1, 1024]"),
        (feed(x=GOOD, y=GOOD, z=GOOD), "unknown 'z'; expected x"),
        (feed(x=GOOD, Y=GOOD), "missing 'y' and unknown 'Y'"),
        (feed(x=GOOD, y=GOOD[0]), "input 'y': expected float32[1, 1024], got float32[1024]"),
        (feed(x=GOOD.astype(np.float64), y=GOOD), "input 'x': expected float32[1, 1024], got float64[1, 1024]"),
        (feed(x=GOOD.astype(">f4"), y=GOOD), "input 'x': expected float32[1, 1024], got >f4[1, 1024]"),
        (feed(x=GOOD.tolist(), y=GOOD), "input 'x': expected a NumPy array, got list"),
        (lambda model: model.run(GOOD), "a bare array is no feed for several inputs"),
        (lambda model: model.run({"x": GOOD, "y": GOOD}, {"o": GOOD}), "unknown output 'o'; the outputs are output_0"),
        (
            lambda model: model.run({"x": GOOD, "y": GOOD}, {"output_0": np.zeros(3, np.float32)}),
            "output 'output_0': expected float32[1, 1024], got float32[3]",
        ),
        (
            lambda model: model.run({"x": GOOD, "y": GOOD}, {"output_0": np.broadcast_to(np.float32(0), GOOD.shape)}),
            "output 'output_0': the array is read-only",
        ),
        (lambda model: model.run({"x": GOOD, "y": GOOD}, [GOOD]), "out is a list; expected arrays by name: output_0: "),
        (
            lambda model: model.run({"x": GOOD, "y": GOOD}, GOOD),
            "out is a ndarray; expected arrays by name: output_0: ",
        ),
        (lambda model: model.run([GOOD, GOOD]), "feeds are a list; expected arrays by name: x: float32[1, 1024], y: "),
        (lambda model: model.run_function("main", [GOOD]), "main: got 1 arrays; expected x"),
    ],
)
def test_wrong_feeds(adder: CompiledModel, call: Callable[[CompiledModel], object], words: str) -> None:
    with pytest.raises(FeedError) as caught:
        call(adder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(adder.run({"x": GOOD, "y": GOOD})["output_0"], GOOD)  # still usable


def test_functions(model: CompiledModel, x: FloatArray) -> None:
    assert model.functions == ("layer_0",)
    (result,) = model.run_function("layer_0", [x])
    np.testing.assert_allclose(result, x @ WEIGHT, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="no function 'layer_9' in this library; it has layer_0, main"):
        model.run_function("layer_9", [x])


def test_sixteen_threads(model: CompiledModel, adder: CompiledModel) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(16)

    def work(seed: int) -> None:
        try:
            generator = np.random.default_rng(seed)
            barrier.wait()
            for _ in range(40):
                x = generator.standard_normal((1, FEATURES)).astype(np.float32)
                check(model.run(x), x)
                np.testing.assert_array_equal(adder.run({"x": x, "y": x})["output_0"], x + x)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_workers_end_with_the_thread_that_called(libraries: Path) -> None:
    values = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    tasks = Path("/proc/self/task")
    model = load(libraries / "parallel.so", threads=3)
    before = len(list(tasks.iterdir()))
    for _ in range(5):
        in_new_thread(lambda: np.testing.assert_array_equal(model.run(values)["output_0"], 2 * values))
    deadline = time.monotonic() + 60
    while len(list(tasks.iterdir())) > before:  # the system's thread ends a moment after Python's
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_forked_process_has_no_workers_to_wait_for(libraries: Path) -> None:
    values = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)

    def work() -> None:
        model = load(libraries / "parallel.so", threads=2)
        model.run(values)

        def check() -> None:
            with pytest.warns(RuntimeWarning, match="forked"):
                result = model.run(values)["output_0"]
            os._exit(0 if np.array_equal(result, 2 * values) else 3)

        child = multiprocessing.get_context("fork").Process(target=check)
        child.start()
        child.join(60)
        assert child.exitcode == 0
        np.testing.assert_array_equal(model.run(values)["output_0"], 2 * values)

    in_new_thread(work)


def test_libraries_are_closed(libraries: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("parallel.so")

    before = mapped()
    model = load(libraries / "parallel.so")
    model.run(np.zeros((64, 1024), np.float32))
    assert mapped() > before
    del model
    gc.collect()
    assert mapped() == before


def in_new_thread(work: Callable[[], None]) -> None:
    """Run ``work`` where no pool of workers exists yet."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_number_of_threads(libraries: Path) -> None:
    values = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    tasks = Path("/proc/self/task")

    def work() -> None:
        affinity = os.sched_getaffinity(0)
        model = load(libraries / "parallel.so")
        before = {entry.name for entry in tasks.iterdir()}
        np.testing.assert_array_equal(model.run(values)["output_0"], 2 * values)
        assert {entry.name for entry in tasks.iterdir()} <= before  # one thread: no pool
        model.set_num_threads(3)
        assert model.num_threads == 3
        np.testing.assert_array_equal(model.run(values)["output_0"], 2 * values)
        workers = {entry.name for entry in tasks.iterdir()} - before
        assert len(workers) == 2
        assert all(os.sched_getaffinity(int(worker)) == affinity for worker in workers)
        assert os.sched_getaffinity(0) == affinity
        model.set_num_threads(2)
        np.testing.assert_array_equal(model.run(values)["output_0"], 2 * values)
        model.set_num_threads(4)
        with pytest.raises(UsageError, match="4 threads wanted, but this thread started a pool of 3"):
            model.run(values)
        model.set_num_threads(1)
        np.testing.assert_array_equal(model.run(values)["output_0"], 2 * values)

    in_new_thread(work)
    for threads in (0, -1):
        with pytest.raises(UsageError, match="1 or more"):
            load(libraries / "parallel.so", threads=threads)


def test_export_and_reload(libraries: Path, tmp_path: Path, x: FloatArray) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes((libraries / "many_results.so").read_bytes())
    model = load(copy)
    copy.unlink()  # the model holds on to what it loaded
    exported = tmp_path / "exported.so"
    model.export(exported)
    assert exported.read_bytes() == (libraries / "many_results.so").read_bytes()
    check(load(exported).run(x), x)
    with pytest.raises(ArtifactError, match="cannot be written"):
        model.export(tmp_path / "absent" / "model.so")


def test_a_replaced_file_is_loaded_anew(libraries: Path, tmp_path: Path, x: FloatArray) -> None:
    path = tmp_path / "model.so"
    build_library(elementwise(), parse_target("native"), {}, path)
    first = load(path)
    build_library(many_results(), parse_target("native"), {}, path)
    second = load(path)
    check(second.run(x), x)
    np.testing.assert_array_equal(first.run({"x": x, "y": x})["output_0"], x + x)


def test_descriptors_are_closed(libraries: Path) -> None:
    open_files = Path("/proc/self/fd")
    load(libraries / "elementwise.so")
    gc.collect()
    before = len(list(open_files.iterdir()))
    for _ in range(5):
        load(libraries / "elementwise.so")
        with pytest.raises(UsageError):
            load(libraries / "elementwise.so", threads=0)
    gc.collect()
    assert len(list(open_files.iterdir())) == before
