"""Every kernel as a body that takes pointers and an entry that checks callers' tensors, and equal bodies once.

    conv(x, w, y)   { checks; … }
    conv1(x, v, y)  { checks; … }

become

    bnnc_conv(*x, *w, *y)  { … }
    conv(x, w, y)   { checks; bnnc_conv(x, w, y) }
    conv1(x, v, y)  { checks; bnnc_conv(x, v, y) }

Layers of one geometry differ in the lengths of their tables (bit-sliced layers: how many nodes and planes their trees
have), which their code does not contain: generated once, it takes a fraction of the time and of the library.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import GlobalVar

from .kernel_bodies import copy_buffer, split_kernel
from .relax_buffer_alignment import exposed_parameters
from .straight_line import BODY_ATTR, takes_dense_tensors

_BODY_PREFIX = "bnnc_"
#: On kernels that read and write flat views of their parameters (``schedules/kernel_builder.py``).
_FLAT_ATTR = "bnnc.kernel"


@tvm.transform.module_pass(opt_level=0, name="SplitKernels")
class SplitKernels:
    """Turn kernels into bodies and entries.

    Wants alignments relaxed, which is what bodies are compiled for.

    1. A kernel is a PrimFunc on dense tensors that begin where their memory does. Others stay as they are.
    2. Two kernels have one body if they are equal but for the first extents of their parameters and of flat views of
       those. No address follows from a first extent, and nothing else does: bodies have pointers.
    3. Entries check what may be a caller's memory. The rest are the library's own constants and what the runtime
       allocated for this very call; checking them took half of a small network's code.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        bodies, exposed = _Bodies(module), exposed_parameters(module)
        for variable in sorted(module.get_global_vars(), key=lambda variable: str(variable.name_hint)):
            kernel = module[variable]
            if not isinstance(kernel, tirx.PrimFunc) or BODY_ATTR in kernel.attrs or not takes_dense_tensors(kernel):
                continue
            symbol = bodies.symbol_of(variable)
            body, entry = split_kernel(kernel, symbol, exposed.get(variable, ()))  # 3
            if symbol == _own_symbol(variable):
                result.update_func(GlobalVar(symbol), body)
            result.update_func(variable, entry.with_attr(BODY_ATTR, symbol))
        return result


def body_of(module: tvm.IRModule, kernel: GlobalVar) -> str:
    """Return the symbol of the body behind the entry ``kernel``."""
    return str(module[kernel].attrs[BODY_ATTR])


def _own_symbol(kernel: GlobalVar) -> str:
    return f"{_BODY_PREFIX}{kernel.name_hint}"


class _Bodies:
    """Rule 2: which kernel's body each kernel calls."""

    def __init__(self, module: tvm.IRModule) -> None:
        self._module = module
        self._known: dict[tuple[object, ...], dict[tvm_ffi.StructuralKey, str]] = {}
        kinds = [_kind(kernel) for _, kernel in module.functions_items() if isinstance(kernel, tirx.PrimFunc)]
        #: Of kernels that may have an equal: the others are not looked at.
        self._repeated = {kind for kind in kinds if kind is not None and kinds.count(kind) > 1}

    def symbol_of(self, variable: GlobalVar) -> str:
        kernel = self._module[variable]
        kind = _kind(kernel)
        if kind is None or kind not in self._repeated:
            return _own_symbol(variable)
        key = tvm_ffi.StructuralKey(_without_first_extents(kernel))
        return self._known.setdefault(kind, {}).setdefault(key, _own_symbol(variable))


def _kind(kernel: tirx.PrimFunc) -> tuple[object, ...] | None:
    """What equal bodies have in common and is soon found; None for kernels whose bodies may need first extents."""
    if _FLAT_ATTR not in kernel.attrs or not takes_dense_tensors(kernel):
        return None
    parameters = tuple((str(buffer.ty.dtype), *map(int, buffer.ty.shape[1:])) for buffer in kernel.params)
    return str(kernel.attrs[_FLAT_ATTR]), *parameters


def _without_first_extents(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel with 1 for the first extents of rule 2: to be compared, not to be compiled."""
    renamed = {buffer: _with_first_extent_one(buffer) for buffer in kernel.params}

    def view(declaration: tirx.DeclBuffer) -> None:
        source = declaration.data
        is_view = isinstance(source, tvm.ir.Call) and any(argument in renamed for argument in source.args)
        if is_view:
            renamed[declaration.buffer] = _with_first_extent_one(declaration.buffer)

    tvm_ffi.structural_walk(kernel.body, (tirx.DeclBuffer, view))
    body = tvm_ffi.structural_map(kernel.body, (tvm.ir.Var, lambda variable: renamed.get(variable, variable)))
    parameters = [renamed[buffer] for buffer in kernel.params]
    return tirx.PrimFunc(parameters, body, kernel.ret_type, kernel.attrs).without_attr("global_symbol")


def _with_first_extent_one(buffer: tirx.Var) -> tirx.Var:
    return copy_buffer(buffer, [1, *buffer.ty.shape[1:]])
