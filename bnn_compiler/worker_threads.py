"""How many threads TVM's parallel loops use, per calling thread.

TVM keeps one pool of workers per calling thread, of the size it had when first used, and by default pins the workers
and the caller to the first cores it finds, which is wrong as soon as two threads or processes do so. Here: one thread
means no pool at all, and the CPU affinity of caller and workers is left as the operating system had it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import tvm.libinfo
import tvm_ffi

from bnn_compiler.errors import UsageError

# tvm::runtime::threading::SetMaxConcurrency(int), exported by libtvm_runtime but not registered with its FFI. It sets a
# variable of the calling thread; with 1, TVMBackendParallelLaunch runs the loop inline and never makes a pool.
_SET_MAX_CONCURRENCY = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
_SHARE_ALL_CORES = -3  # tvm::runtime::threading::ThreadGroup::kSpecifyThreadShareAllCore
_TASKS = Path("/proc/self/task")

_current = threading.local()
_making_pool = threading.Lock()


def use_threads(count: int) -> None:
    """Let parallel loops started by the calling thread use ``count`` threads, itself included.

    Raises:
        UsageError: this thread's pool was made with fewer (TVM cannot enlarge one).
    """
    if getattr(_current, "count", 0) == count:
        return
    _set_max_concurrency()(count)
    if count > 1:
        _make_pool(count)
    _current.count = count


def _make_pool(count: int) -> None:
    with _making_pool:
        allowed = sorted(os.sched_getaffinity(0))
        before = _thread_ids()
        cpus = [str(allowed[index % len(allowed)]) for index in range(count)]
        tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, cpus)
        for thread_id in {0} | (_thread_ids() - before):
            try:
                os.sched_setaffinity(thread_id, allowed)
            except ProcessLookupError:  # somebody else's thread, gone again
                continue
        available = int(tvm_ffi.get_global_func("runtime.NumThreads")())
    if available < count:
        raise UsageError(
            f"{count} threads wanted, but this thread started a pool of {available} before; "
            "ask for the largest number first, or run from a new thread"
        )


def _thread_ids() -> set[int]:
    return {int(entry.name) for entry in _TASKS.iterdir()}


@functools.cache
def _set_max_concurrency() -> Callable[[int], None]:
    function = ctypes.CDLL(tvm.libinfo.find_libtvm_runtime())[_SET_MAX_CONCURRENCY]
    function.argtypes = [ctypes.c_int]
    function.restype = None
    return function
