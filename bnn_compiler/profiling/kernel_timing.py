"""Times of a network's kernel calls, by a hook that TVM's virtual machine calls before and after each of them.

Between the two readings of the clock lies more than the kernel: the hook's return, the call, and the handing over of
the arguments to the second hook. ``HookCost`` measures that on kernels that do nothing, and it is subtracted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from bnn_compiler.runtime import CompiledModel
from bnn_compiler.schedules.kernel_builder import Argument, Buffer, build_kernel, constant, store
from bnn_compiler.target import parse_target
from bnn_compiler.verification.reference import Array

#: Rounds of a network that takes less than ``_SECONDS / _MOST_ROUNDS``, and around empty kernels.
_MOST_ROUNDS = 200
_SECONDS = 0.5
WARM_UP = 3
#: What the virtual machine calls for itself: memory, shapes, checks. Their time is overhead.
_BUILTIN_PREFIX = "vm.builtin."
_FEW, _MANY = 2, 10
_EMPTY_CALLS = 20


@dataclass(frozen=True)
class KernelCall:
    """One kernel call: its function's name, seconds per round net of the hook, the bytes of each of its arguments.

    Constants are arguments, too; the last ones are its results.
    """

    kernel: str
    seconds: tuple[float, ...]
    argument_bytes: tuple[int, ...]


@dataclass(frozen=True)
class HookCost:
    """Seconds between the hook's readings around an empty kernel: ``base + per_argument·arguments``."""

    base: float
    per_argument: float

    def of(self, arguments: int) -> float:
        """The cost for a kernel with so many arguments."""
        return self.base + self.per_argument * arguments


class _Recorder:
    """The hook. Of each call it keeps the time; of the calls of the first run also names and arguments."""

    def __init__(self) -> None:
        self.rounds: list[list[float]] = []
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self._start = 0.0

    def begin_round(self) -> None:
        self.rounds.append([])

    def __call__(self, _function: object, name: str, before: bool, _result: object, *arguments: object) -> int:
        now = time.perf_counter()
        times = self.rounds[-1]
        if before:
            if len(self.rounds) == 1:
                self.calls.append((str(name), tuple(_bytes_of(argument) for argument in arguments)))
            self._start = time.perf_counter()
        else:
            times.append(now - self._start)
        return 0


@dataclass(frozen=True)
class NetworkTimes:
    """The kernel calls of one run, in order; seconds of whole runs without the hook; what was subtracted per call."""

    calls: tuple[KernelCall, ...]
    runs: tuple[float, ...]
    cost: HookCost


def time_kernels(compiled: CompiledModel, feeds: Mapping[str, Array], rounds: int) -> NetworkTimes:
    """Time whole runs of a network, then its kernels: at least ``rounds`` of each, more for small networks.

    Threads are those of ``compiled``. ``feeds`` as for ``CompiledModel.run``.
    """
    cost = measure_hook_cost()
    recorder = _Recorder()
    closure = compiled.instrumented_main(recorder)
    inputs = [np.ascontiguousarray(feeds[spec.name]) for spec in compiled.inputs]
    outputs = [np.empty(spec.shape, spec.dtype) for spec in compiled.outputs]
    runs: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        compiled.run(feeds)
        runs.append(time.perf_counter() - start)

    start = time.perf_counter()
    _run_rounds(run, recorder, WARM_UP)
    per_round = (time.perf_counter() - start) / WARM_UP
    measured = max(rounds, min(_MOST_ROUNDS, int(_SECONDS / per_round)))
    # One after the other, not in turn: the two forms of a network take each other's memory from the runtime's pools.
    _run_rounds(run, recorder, measured)
    recorder.rounds.clear()
    _run_rounds(lambda: closure(*inputs, *outputs), recorder, WARM_UP + measured)
    calls = []
    for index, (name, sizes) in enumerate(recorder.calls):
        if not name.startswith(_BUILTIN_PREFIX):
            net = tuple(max(times[index] - cost.of(len(sizes)), 0.0) for times in recorder.rounds[WARM_UP:])
            calls.append(KernelCall(name, net, sizes))
    return NetworkTimes(tuple(calls), tuple(runs[WARM_UP:]), cost)


def measure_hook_cost() -> HookCost:
    """Measure the hook around kernels of few and of many arguments that do nothing."""
    recorder = _Recorder()
    machine = _empty_network()
    machine["set_instrument"](tvm.runtime.convert(recorder))
    _run_rounds(machine["main"], recorder, WARM_UP + _MOST_ROUNDS)
    least: dict[int, float] = {}
    for index, (_, sizes) in enumerate(recorder.calls):
        time_of_call = min(times[index] for times in recorder.rounds[WARM_UP:])
        least[len(sizes)] = min(time_of_call, least.get(len(sizes), time_of_call))
    per_argument = max((least[_MANY] - least[_FEW]) / (_MANY - _FEW), 0.0)
    return HookCost(least[_FEW] - _FEW * per_argument, per_argument)


def _run_rounds(run: Callable[[], object], recorder: _Recorder, rounds: int) -> None:
    """Run, without pauses of the garbage collector."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            recorder.begin_round()
            run()
    finally:
        if collecting:
            gc.enable()


def _empty_network() -> tvm.runtime.Module:
    """A virtual machine whose ``main()`` calls kernels of ``_FEW`` and ``_MANY`` arguments that do nothing."""
    builder = relax.BlockBuilder()
    element = relax.const(np.zeros(1, np.float32))
    with builder.function("main", []):
        for arguments in (_FEW, _MANY):
            kernel = builder.add_func(_empty_kernel(arguments), f"empty_{arguments}")
            for _ in range(_EMPTY_CALLS):
                call = relax.call_tir(kernel, [element] * (arguments - 1), relax.TensorType((1,), "float32"))
                result = builder.emit(call)
        builder.emit_func_output(result)
    target = parse_target("native").tvm_target
    # No passes that would drop calls whose results nobody reads.
    executable = relax.build(builder.get(), target=target)
    return relax.VirtualMachine(executable, tvm.cpu()).module


def _empty_kernel(arguments: int) -> tvm.tirx.PrimFunc:
    names = [f"argument_{index}" for index in range(arguments)]
    signature: Sequence[Argument] = [Argument(name, (1,), "float32") for name in names]

    def emit(buffers: Mapping[str, Buffer]) -> None:
        store(buffers[names[-1]], 0, constant(0, "float32"))

    return build_kernel("empty", "empty", signature, emit)


def _bytes_of(argument: object) -> int:
    if not isinstance(argument, tvm.runtime.Tensor):
        return 0
    dtype = np.dtype(str(argument.dtype))
    return int(np.prod(argument.shape, dtype=np.int64)) * dtype.itemsize
