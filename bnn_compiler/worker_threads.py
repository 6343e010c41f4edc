"""How many threads TVM's parallel loops use, per calling thread.

TVM keeps one pool of workers per calling thread, of the size it had when first used, for as long as the process lives,
and by default pins the workers and the caller to the first cores it finds, which is wrong as soon as two threads or
processes do so. Here: one thread means no pool at all, a pool ends with the thread that called for it, and the CPU
affinity of caller and workers is left as the operating system had it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import tvm.libinfo
import tvm_ffi

from bnn_compiler.errors import UsageError

# tvm::runtime::threading::SetMaxConcurrency(int) and ResetThreadPool(), exported by libtvm_runtime but not registered
# with its FFI. The first sets a variable of the calling thread; with 1, TVMBackendParallelLaunch runs the loop inline
# and never makes a pool. The second ends the calling thread's workers and starts as many new ones.
_SET_MAX_CONCURRENCY = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
_RESET_THREAD_POOL = "_ZN3tvm7runtime9threading15ResetThreadPoolEv"
_SHARE_ALL_CORES = -3  # tvm::runtime::threading::ThreadGroup::kSpecifyThreadShareAllCore
_TASKS = Path("/proc/self/task")

_making_pool = threading.Lock()


class _Pool:
    """The calling thread's workers; they end when the thread does, with what Python keeps for it.

    Left to itself, TVM joins workers that have worked while the thread's storage is taken down, and both wait for ever.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_inherited = False
        self._owner = threading.get_ident()
        # Found now: when the process ends, modules are gone before the last of these.
        self._reset = _reset_thread_pool()

    def __del__(self) -> None:
        if not self.is_inherited and threading.get_ident() == self._owner:
            self._reset()


class _Current(threading.local):
    """Of the calling thread: threads that loops may use (0: not said yet), and its workers, if any."""

    count = 0
    pool: _Pool | None = None


_current = _Current()


def use_threads(count: int) -> None:
    """Let parallel loops started by the calling thread use ``count`` threads, itself included.

    Raises:
        UsageError: this thread's pool was made with fewer (TVM cannot enlarge one).
    """
    if _current.count == count:
        return
    pool = _current.pool
    if count > 1 and pool is not None and pool.is_inherited:
        warnings.warn(
            "this process was forked from one that had worker threads, which it has not: one thread is used; call from "
            "a new thread, or start processes by 'spawn'",
            RuntimeWarning,
            stacklevel=4,
        )
        _set_max_concurrency()(1)
    else:
        _set_max_concurrency()(count)
        if count > 1 and (pool is None or pool.size < count):
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
        _current.pool = _current.pool or _Pool(count)
        available = int(tvm_ffi.get_global_func("runtime.NumThreads")())
    if available < count:
        raise UsageError(
            f"{count} threads wanted, but this thread started a pool of {available} before; "
            "ask for the largest number first, or run from a new thread"
        )


def _after_fork_in_child() -> None:
    if _current.pool is not None:
        _current.pool.is_inherited = True
        _current.count = 0


os.register_at_fork(after_in_child=_after_fork_in_child)


def _thread_ids() -> set[int]:
    return {int(entry.name) for entry in _TASKS.iterdir()}


@functools.cache
def _set_max_concurrency() -> Callable[[int], None]:
    function = _runtime()[_SET_MAX_CONCURRENCY]
    function.argtypes = [ctypes.c_int]
    function.restype = None
    return function


@functools.cache
def _reset_thread_pool() -> Callable[[], None]:
    function = _runtime()[_RESET_THREAD_POOL]
    function.argtypes = []
    function.restype = None
    return function


@functools.cache
def _runtime() -> ctypes.CDLL:
    return ctypes.CDLL(tvm.libinfo.find_libtvm_runtime())
