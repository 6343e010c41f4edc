"""One call for a whole run: a host function that calls the kernels of ``main``, on memory planned ahead.

TVM's virtual machine takes up to half a microsecond per kernel: an allocation, a call through a table, checks of every
argument. Here ``main`` keeps its name and its parameters but makes one call only,

    main(x, output_0, derived_0) { main_kernels(x, output_0, derived_0, constants …) }

of a PrimFunc that calls the bodies of the kernels one after the other,

    main_kernels(x, output_0, …)  { workspace = alloc(n); bnnc_conv(x, constant, &workspace[0]); … }

The workspace comes from the pool that TVM's runtime keeps for each thread: it is allocated in the first run of a
thread, and runs in several threads do not meet.

Where the network has a form for inputs that hold zeros (``join_exact_form``), the function runs that one or the other.

What ``main`` was stays in the library as ``main_by_kernel``, with the same parameters, for who wants to look at each
kernel call: ``CompiledModel.run_function`` takes it, and the virtual machine's ``set_instrument`` sees its kernels. The
manifest lists it in ``functions``, unless ``main`` itself is run that way (rule 1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import tvm
from tvm import relax, tirx
from tvm.ir import Constant, GlobalVar

from bnn_compiler.memory_plan import ALIGNMENT, peak_bytes, plan_memory
from bnn_compiler.report import MemoryReport

from .decide_sign_zeros import SEES_ZEROS
from .join_exact_form import EXACT
from .kernel_bodies import CALLS_BODIES_ATTR, call_body, data_of, scratch_bytes, unchecked_tensor
from .lift_derived_constants import derived_of
from .split_kernels import body_of
from .straight_line import StraightLine, distinct_constants, element_bytes, read_straight_line, tensor_bytes

MAIN = "main"
#: The Relax function that has the virtual machine call every kernel.
BY_KERNEL = "main_by_kernel"
#: The PrimFunc that calls all kernels.
HOST = "main_kernels"
#: On ``HOST``: its ``MemoryReport``, as JSON.
MEMORY_ATTR = "bnnc.memory"
#: On a Relax function: what it calls checks all its parameters.
CHECKED_ATTR = "bnnc.checks_parameters"

_WORKSPACE_ATTR = "bnnc.workspace_bytes"


@tvm.transform.module_pass(opt_level=0, name="RunInOneCall")
class RunInOneCall:
    """Turn ``main`` into one call of a host function.

    Wants kernels called directly on explicitly allocated buffers, results written through parameters, kernels split
    (``SplitKernels``) and global symbols attached, before memory is planned for the virtual machine.

    1. ``main`` must be a straight line (``straight_line.py``). A ``main`` with anything else, such as control flow or
       functions of the runtime, stays as it is.
    2. An allocated tensor has its place in the workspace from the first to the last kernel that it is handed to.
    3. The host function calls bodies; the virtual machine calls entries, which check a caller's tensors and call the
       same bodies.
    4. The host function checks ``main``'s parameters. Constants come from the library itself and are not checked.
    5. ``main_exact`` and ``main_sees_zeros``, where they are there, must be straight lines, too, and go into the host
       function; ``main_by_kernel`` has the form for measured inputs only.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        names = {str(variable.name_hint): variable for variable in module.get_global_vars()}
        if MAIN not in names or HOST in names:
            return module
        main = module[names[MAIN]]
        line = read_straight_line(module, main)
        if line is None:  # 1
            return module
        joined = [name for name in (EXACT, SEES_ZEROS) if name in names]
        others = {name: read_straight_line(module, module[names[name]]) for name in joined}
        lines = [line, *(other for other in others.values() if other is not None)]
        if len(lines) <= len(others):  # 5
            return module
        symbols = {step.kernel: body_of(module, step.kernel) for each in lines for step in each.steps}
        forms = {name: _Form(module[names[name]], each) for name, each in zip([MAIN, *others], lines, strict=True)}
        constants = distinct_constants([step for each in lines for step in each.steps])
        result = module.clone()
        host = _host_function(forms, constants, symbols)  # 3
        scratch = max((scratch_bytes(module[names[symbol]]) for symbol in symbols.values()), default=0)
        memory = _memory_report(main, lines, constants, int(host.attrs[_WORKSPACE_ATTR]), scratch)
        result.update_func(GlobalVar(HOST), host.with_attr(MEMORY_ATTR, json.dumps(memory)))
        by_kernel = relax.utils.copy_with_new_vars(main).with_attr("global_symbol", BY_KERNEL)
        result.update_func(GlobalVar(BY_KERNEL), by_kernel)
        result.update_func(names[MAIN], _one_call(main, constants))
        for name in others:
            del result[names[name]]
        return result


def host_function(module: tvm.IRModule) -> tirx.PrimFunc | None:
    """Return the function that calls all kernels of ``main``, if there is one."""
    found = (function for variable, function in module.functions_items() if variable.name_hint == HOST)
    return next(found, None)


def memory_report(module: tvm.IRModule) -> MemoryReport | None:
    """Return the memory that a run of ``main`` takes, None where the pass did not apply."""
    host = host_function(module)
    if host is None:
        return None
    report: MemoryReport = json.loads(str(host.attrs[MEMORY_ATTR]))
    return report


class _Form:
    """A function that goes into the host function: its kernels, and its tensors' places in the workspace."""

    def __init__(self, function: relax.Function, line: StraightLine) -> None:
        self.parameters = list(function.params)
        self.steps = line.steps
        lifetimes = line.lifetimes()
        plan = plan_memory(list(lifetimes.values()))
        self.size = plan.size
        self.offsets = dict(zip(lifetimes, plan.offsets, strict=True))  # 2


def _host_function(
    forms: Mapping[str, _Form], constants: Sequence[Constant], symbols: Mapping[GlobalVar, str]
) -> tirx.PrimFunc:
    size = answer = max(form.size for form in forms.values())
    size += SEES_ZEROS in forms  # its answer, behind what the forms share
    workspace = tirx.decl_buffer((max(size, 1),), "uint8", "workspace", data_alignment=ALIGNMENT)
    parameters = [_parameter_buffer(parameter) for parameter in forms[MAIN].parameters]
    handles = [unchecked_tensor(f"constant_{index}") for index in range(len(constants))]

    def in_workspace(offset: int) -> tirx.Expr:
        return tirx.handle_add_byte_offset(workspace.data, tirx.const(offset, "int64"))

    def calls(form: _Form, results: Sequence[tirx.Expr] = ()) -> list[tirx.Stmt]:
        """Of its kernels, on the parameters of ``main``; ``results`` takes the place of the last ones."""
        given = [buffer.data for buffer in parameters][: len(form.parameters) - len(results)]
        pointers = dict(zip(form.parameters, [*given, *results], strict=True))
        pointers |= {variable: in_workspace(offset) for variable, offset in form.offsets.items()}

        def pointer(argument: relax.Expr) -> tirx.Expr:
            if isinstance(argument, relax.Var):
                return pointers[argument]
            index = next(i for i, constant in enumerate(constants) if constant.same_as(argument))
            return data_of(handles[index])

        return [call_body(symbols[step.kernel], [pointer(each) for each in step.arguments]) for step in form.steps]

    body = calls(forms[MAIN])
    if EXACT in forms:
        sees_zeros = tirx.BufferLoad(workspace, [tirx.const(answer, "int64")]) != tirx.const(0, "uint8")
        choice = tirx.IfThenElse(sees_zeros, tirx.SeqStmt(calls(forms[EXACT])), tirx.SeqStmt(body))
        body = [*calls(forms[SEES_ZEROS], [in_workspace(answer)]), choice]
    attributes = {"global_symbol": HOST, "s_tir": True, CALLS_BODIES_ATTR: True, _WORKSPACE_ATTR: size}
    return tirx.PrimFunc(
        [*parameters, *handles],
        tirx.SeqStmt([tirx.AllocBuffer(workspace), *body]),
        attrs=tvm.ir.make_node("ir.DictAttrs", **attributes),
    )


def _parameter_buffer(parameter: relax.Var) -> tirx.Var:
    dtype = str(parameter.ty.dtype)
    shape = [int(extent) for extent in parameter.ty.shape]
    return tirx.decl_buffer(shape, dtype, str(parameter.name), data_alignment=element_bytes(dtype))


def _one_call(main: relax.Function, constants: Sequence[Constant]) -> relax.Function:
    """Return ``main`` as the call of the host function, by name: that is compiled into another object file."""
    nothing = relax.TupleType([])
    call = relax.Call(relax.ExternFunc(HOST), [*main.params, *constants], ty_args=[nothing])
    # Its nothing is main's: the virtual machine would allocate an empty tuple.
    result = relax.Var("result", nothing)
    body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(result, call)])], result)
    return relax.Function(main.params, body, nothing, False, main.attrs).with_attr(CHECKED_ATTR, True)


def _memory_report(
    main: relax.Function, lines: Sequence[StraightLine], constants: Sequence[Constant], workspace: int, scratch: int
) -> MemoryReport:
    derived = main.params[len(main.params) - len(derived_of(main)) :]
    return {
        "activations_peak_bytes": max(peak_bytes(list(line.lifetimes().values())) for line in lines),
        "workspace_bytes": workspace,
        "scratch_bytes": scratch,
        "constants_bytes": sum(tensor_bytes(constant) for constant in [*constants, *derived]),
    }
