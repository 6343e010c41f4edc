"""How long the candidates for a layer's kernels take on this machine, measured and remembered.

Each candidate is timed alone, from float activation to float output, packing included. Candidates take turns and the
minimum of several rounds counts, so that what else the machine does hits all of them and decides nothing. Times are
kept in a folder under a digest of all they depend on: the layer, the code that makes kernels, the target and the
processor.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm

import bnn_compiler.schedules
from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.bench import Call, cpu_name, time_in_turn
from bnn_compiler.errors import BnncError, CacheWarning
from bnn_compiler.kernels import bitsliced_layer, layer_kernels, popcount_layer
from bnn_compiler.kernels.bitsliced_layer import TreePlanning
from bnn_compiler.kernels.kernel_timing import stage_calls
from bnn_compiler.kernels.layer_kernels import LayerKernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.worker_threads import use_threads

# Raise this when what is measured changes, so that old times are not taken for new ones.
_FORMAT = 1
#: Short rounds, and many: some go undisturbed by other processes.
_ROUND_SECONDS = 0.0015
_MOST_ROUNDS, _FEWEST_ROUNDS = 60, 5


@dataclass(frozen=True)
class Measurement:
    """Measure for ``target``, which this machine must be able to run, at most about ``seconds`` per layer (besides
    building). ``cache`` is a folder of times, or None for none.
    """

    target: tvm.target.Target
    cache: Path | None = None
    seconds: float = 0.5


def measured_nanoseconds(
    spec: BinarySpec,
    isa: Isa,
    planning: TreePlanning,
    candidates: Mapping[str, Callable[[], LayerKernels]],
    options: Measurement,
) -> dict[str, float]:
    """Nanoseconds of each of ``candidates``, by name; they are only built where the times are not known."""
    path = None
    if options.cache is not None:
        path = options.cache / f"{_key(spec, isa, planning, sorted(candidates), options.target)}.json"
        stored = _load(path, set(candidates))
        if stored is not None:
            return stored
    layers = [build() for build in candidates.values()]
    calls = [_chain(stages) for stages in stage_calls(layers, spec.input_shape, options.target)]
    use_threads(1)
    times = dict(zip(candidates, _minima(calls, options.seconds), strict=True))
    if path is not None:
        _store(path, times)
    return times


def _chain(stages: Sequence[Call]) -> Call:
    def run() -> None:
        for stage in stages:
            stage()

    return run


def _minima(calls: Sequence[Call], seconds: float) -> list[float]:
    per_round = 0.0
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        per_round += max(_ROUND_SECONDS, time.perf_counter() - start)
    rounds = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, int(seconds / per_round)))
    return [min(values) * 1e9 for values in time_in_turn(calls, rounds, _ROUND_SECONDS)]


def _key(
    spec: BinarySpec, isa: Isa, planning: TreePlanning, candidates: Sequence[str], target: tvm.target.Target
) -> str:
    """A digest of everything that decides how long the candidates take."""
    assert spec.geometry is not None
    header = {
        "format": _FORMAT,
        "sources": _digest_of_sources(),
        "tvm": tvm.__version__,
        "cpu": cpu_name(),
        "target": str(target),
        "isa": asdict(isa),
        "geometry": asdict(spec.geometry),
        "input_shape": spec.input_shape,
        "activation": [spec.predicate, spec.low, spec.high, spec.ring, spec.threshold.size, spec.direction is not None],
        "levels": list(spec.levels),
        "output": [spec.scale is not None, spec.bias is not None],
        "candidates": list(candidates),
        "trees": [planning.max_depth, planning.effort, planning.seed],
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(np.packbits(spec.binary_weights.signs).tobytes())
    return digest.hexdigest()


@functools.cache
def _digest_of_sources() -> str:
    """Of the modules that make kernels, and of the cost model, which has a say in the trees."""
    schedules = Path(str(bnn_compiler.schedules.__file__)).parent
    here = Path(__file__).parent
    files = [*schedules.glob("*.py"), Path(layer_kernels.__file__)]
    files += [Path(popcount_layer.__file__), Path(bitsliced_layer.__file__)]
    files += [here / "kernel_work.py", here / "cost_model.py", here / "cost_model.json"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _load(path: Path, names: set[str]) -> dict[str, float] | None:
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        times = {str(name): float(value) for name, value in stored.items()}
        if set(times) != names or not all(0 < value < float("inf") for value in times.values()):
            raise ValueError("times of other candidates")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{path}: no usable times of kernels, measured again: {error}", CacheWarning, stacklevel=4)
        return None
    return times


def _store(path: Path, times: Mapping[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write((json.dumps(times) + "\n").encode())
    except (OSError, BnncError) as error:
        # A full or read-only disk costs time on the next run, not this result.
        warnings.warn(f"{path}: times could not be stored: {error}", CacheWarning, stacklevel=4)
