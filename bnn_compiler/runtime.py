"""Load a compiled network and run it on NumPy arrays.

Arrays go in and out without a copy, at any alignment: kernels that touch the caller's memory assume no more than
element alignment (``passes.RelaxBufferAlignment``) and write results where the caller wants them
(``passes.ReturnThroughParameters``). What needs a copy is made one silently: arrays that are not C-contiguous or whose
address is no multiple of the element size, and outputs that overlap another array of the call.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi

from bnn_compiler.artifact import LARGEST_LIBRARY, Manifest, check_loadable, decode_manifest, specs_from_json
from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.errors import ArtifactError, UsageError
from bnn_compiler.regular_file import UnreadableFileError, open_regular, read_all, shown
from bnn_compiler.scratch_folder import scratch_folder
from bnn_compiler.signature import Signature
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.worker_threads import use_threads

Array = npt.NDArray[Any]
Closure = Callable[..., object]

_CPU = 1  # kDLCPU
_POOLED_ALLOCATOR = 2  # tvm::runtime::memory::AllocatorType::kPooled
# Keys beside the names of functions, which have no spaces.
_MACHINE = "virtual machine"
_BOUND = "bound "
#: The form of ``main`` that has the virtual machine call each kernel, where ``main`` does not (``RunInOneCall``).
_BY_KERNEL = "main_by_kernel"


class CompiledModel:
    """A network, ready to run. Made by ``load``.

    One object may be used from any number of threads at once: each thread that calls gets a virtual machine of its own,
    made on its first call; code and constants are shared. Constants that the library derives from what it stores (see
    ``artifact``) are made once, with this object.
    """

    def __init__(self, library: tvm.runtime.Module, manifest: Manifest, descriptor: int, threads: int) -> None:
        """Take over ``descriptor``, an open file of the library, closed with this object."""
        self.manifest = manifest
        self._executable = library
        self._descriptor = descriptor
        self._signatures = {
            name: Signature(name, specs_from_json(entry["inputs"]), specs_from_json(entry["outputs"]))
            for name, entry in {**manifest["functions"], "main": manifest}.items()
        }
        self._main = self._signatures["main"]
        self._machines = threading.local()
        self.set_num_threads(threads)
        self._derived_of = {
            name: entry["derived"]
            for name, entry in {**manifest["functions"], "main": manifest}.items()
            if "derived" in entry
        }
        self._derived = self._derive(manifest["derivation"]) if "derivation" in manifest else []
        weakref.finalize(self, os.close, descriptor)  # last: an object that was not made does not own it

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The network's inputs, in the model's order."""
        return self._main.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The network's outputs, in the model's order."""
        return self._main.outputs

    @property
    def functions(self) -> tuple[str, ...]:
        """The layers compiled on their own, which ``run_function`` takes (beside ``main_by_kernel``)."""
        return tuple(name for name in self._signatures if name not in ("main", _BY_KERNEL))

    @property
    def num_threads(self) -> int:
        """Threads that a parallel loop may use, the calling one included."""
        return self._threads

    def set_num_threads(self, count: int) -> None:
        """Set ``num_threads`` for the calls from now on.

        Raises:
            UsageError: ``count`` is less than 1.
        """
        if count < 1:
            raise UsageError(f"the number of threads must be 1 or more, not {count}")
        self._threads = count

    def run(self, feeds: Mapping[str, Array] | Array, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run the network once.

        ``feeds`` maps each input's name to an array of its shape and dtype (a network of one input takes the bare array
        too). ``out`` maps output names to writable arrays that receive the results; other outputs are new arrays. The
        result maps every output's name to its array.

        Raises:
            FeedError: an array is missing, unknown, or of another shape or dtype.
        """
        main = self._main
        inputs = main.bind_inputs(feeds)
        if out is None:
            outputs = main.new_outputs()
            self._closure("main")(*inputs, *outputs.values())
            return outputs
        results, buffers = main.bind_outputs(out, inputs)
        self._closure("main")(*inputs, *buffers)
        for result, buffer in zip(results, buffers, strict=True):
            if buffer is not result:
                np.copyto(result, buffer)
        return dict(zip(main.output_names, results, strict=True))

    def run_function(self, name: str, arrays: Sequence[Array]) -> list[Array]:
        """Run one of ``functions`` on ``arrays``, in the order of its inputs; return its outputs in order.

        ``main_by_kernel``, where the manifest lists it, does what ``run`` does, with a call of the virtual machine for
        each kernel.

        Raises:
            UsageError: there is no such function.
            FeedError: the number, shape or dtype of ``arrays`` is wrong.
        """
        signature = self._signatures.get(name)
        if signature is None:
            raise UsageError(f"no function {name!r} in this library; it has {', '.join(self._signatures)}")
        inputs = signature.bind_positional(arrays)
        results = list(signature.new_outputs().values())
        self._closure(name)(*inputs, *results)
        return results

    def export(self, path: str | Path) -> None:
        """Write the library to ``path``, whole or not at all.

        Raises:
            ArtifactError: ``path`` cannot be written.
        """
        with atomic_write(Path(path), mode=0o755) as stream:
            stream.write(read_all(self._descriptor))

    def _closure(self, name: str) -> Closure:
        """Return the function ``name`` of the calling thread's virtual machine."""
        use_threads(self._threads)
        machines = self._machines.__dict__
        try:
            return machines[name]  # type: ignore[no-any-return]
        except KeyError:
            pass
        machines[name] = self._bind(self._machine(), name)
        return machines[name]  # type: ignore[no-any-return]

    def instrumented_main(self, hook: Callable[..., int]) -> Closure:
        """The network on a virtual machine of its own that calls ``hook`` before and after each call that it makes.

        ``hook(function, name, before, result, *arguments)`` must return 0. The closure takes arrays as the library's
        functions do: inputs, then outputs, both plain.
        """
        use_threads(self._threads)
        machine = self._new_machine()
        closure = self._bind(machine, _BY_KERNEL if _BY_KERNEL in self._signatures else "main")
        machine["set_instrument"](tvm.runtime.convert(hook))
        return closure

    def _bind(self, machine: tvm.runtime.Module, name: str) -> Closure:
        """The function ``name`` of ``machine``, derived constants bound: calls pass inputs and outputs alone."""
        if name in self._derived_of:
            machine["save_function"](name, _BOUND + name, False, *(self._derived[i] for i in self._derived_of[name]))
            return machine[_BOUND + name]  # type: ignore[no-any-return]
        return machine[name]  # type: ignore[no-any-return]

    def _machine(self) -> tvm.runtime.Module:
        """Return the calling thread's virtual machine."""
        machines = self._machines.__dict__
        if _MACHINE not in machines:
            machines[_MACHINE] = self._new_machine()
        return machines[_MACHINE]

    def _new_machine(self) -> tvm.runtime.Module:
        machine = self._executable["vm_load_executable"]()
        machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
        return machine

    def _derive(self, derivation: Mapping[str, Any]) -> list[tvm.runtime.Tensor]:
        """Run the library's function that makes constants of stored ones."""
        results = [tvm.runtime.empty(spec.shape, spec.dtype) for spec in specs_from_json(derivation["outputs"])]
        self._machine()[derivation["function"]](*results)
        return results


def load(path: str | Path, threads: int = 1) -> CompiledModel:
    """Load a library that ``bnnc compile`` or ``CompiledModel.export`` wrote.

    Its manifest is checked before any of its code is loaded. ``threads`` is what parallel loops may use.

    Raises:
        ArtifactError: not such a library, damaged, or made for another machine or version; says what to do.
        UsageError: ``threads`` is less than 1.
    """
    name = shown(path)
    try:
        descriptor = open_regular(path, LARGEST_LIBRARY)
    except UnreadableFileError as error:
        raise ArtifactError(f"{name}: cannot be read: {error}") from error
    try:
        try:
            content = read_all(descriptor)
        except UnreadableFileError as error:
            raise ArtifactError(f"{name}: cannot be read: {error}") from error
        manifest = decode_manifest(content, name)
        check_loadable(manifest, name, tvm.__version__)
        return CompiledModel(_load_library(descriptor, name), manifest, descriptor, threads)
    except BaseException:
        os.close(descriptor)
        raise


def _load_library(descriptor: int, name: str) -> tvm.runtime.Module:
    """Load the code of the very file that was checked; ``name`` is for messages.

    The loader knows libraries by the name it was given and would hand out the old code for a file replaced since. A
    link of a new name to the open file gets round that, and round a file that is replaced or unlinked meanwhile.
    """
    try:
        with scratch_folder() as directory:
            link = directory / "library.so"
            link.symlink_to(f"/proc/self/fd/{descriptor}")
            # Closed with the last object that needs it: results and derived constants are memory of the runtime.
            return tvm_ffi.load_module(str(link), keep_module_alive=False)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(
            f"{name}: cannot be loaded: no link can be made in a temporary folder ({reason}); name one in TMPDIR"
        ) from error
    except RuntimeError as error:
        # Only a file sealed by something other than this compiler gets here: the digest was right.
        raise ArtifactError(f"{name}: malformed (the system cannot load its code); compile it again") from error
