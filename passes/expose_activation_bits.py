"""Functions that show the packed activations, so that verification can count signs that came out differently.

For a module whose layers are lowered (``LowerBinaryOps``) this adds

- ``activation_bits``: the inputs of ``main`` to the packed activations of the layers, as ``main`` computes them: the
  same kernels on the same constants, only the result is another. Layers that share one pack share one result.
- ``<layer>_bits`` for each such pack, named after the first layer that uses it: the layer's float input to its packed
  activation.

Conditions, checked in this order; where one fails nothing is added:

1. ``main`` is one dataflow block, there are layer functions, and the pass has not run before;
2. each layer function calls finished kernels (PrimFuncs with attribute ``bnnc.kernel``), the last of which, the
   product, takes the result of the one before;
3. the calls in ``main`` to these products, in order, are those of the layers, in order: same kernel, same constants;
   or a kernel that gives bits with the same program (``bits_between_layers``).

No kernel is added: the cost is some hundred bytes of code for TVM's virtual machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call, GlobalVar, Var

from bnn_compiler.kernels.layer_kernels import GIVES_BITS_ATTR

from .lift_derived_constants import DERIVED_ATTR, DERIVED_PREFIX, derived_of

FUNCTION = "activation_bits"
SUFFIX = "_bits"

Bindings = Sequence[relax.VarBinding]


@tvm.transform.module_pass(opt_level=0, name="ExposeActivationBits")
class ExposeActivationBits:
    """See the module's docstring."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Add the functions to a copy of ``module``."""
        main = _dataflow_bindings(module["main"])
        names = _layer_names(module)
        if main is None or not names or FUNCTION in (variable.name_hint for variable in module.functions):  # 1
            return module
        layers = [_pack_and_product(module, name) for name in names]
        products = {_callee(layer[1]) for layer in layers if layer is not None}
        products |= {variable for variable, function in module.functions.items() if _gives_bits(function)}
        calls = [binding.value for binding in main if _callee(binding.value) in products]
        packs: dict[Var, str] = {}
        for name, layer, call in zip(names, layers, calls, strict=False):
            if layer is None or not _same_layer(module, call, layer[1]):  # 2, 3
                return module
            packs.setdefault(call.args[1][0], name)
        if len(calls) != len(names):  # 3
            return module
        builder = relax.BlockBuilder(module)
        _add_copy(builder, FUNCTION, module["main"], list(packs))
        for name in packs.values():
            function = module[name]
            bindings = _dataflow_bindings(function)
            assert bindings is not None, "rule 2 read these bindings"
            _add_copy(builder, name + SUFFIX, function, [_kernel_bindings(module, bindings)[-2].var])
        result = builder.get()
        return result.with_attrs(module.attrs) if module.attrs else result


def _layer_names(module: tvm.IRModule) -> list[str]:
    names = [variable.name_hint for variable in module.functions]
    return sorted((name for name in names if re.fullmatch(r"layer_\d+", name)), key=lambda name: int(name[6:]))


def _dataflow_bindings(function: relax.Function) -> Bindings | None:
    blocks = function.body.blocks
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        return None
    bindings = list(blocks[0].bindings)
    return bindings if all(isinstance(binding, relax.VarBinding) for binding in bindings) else None


def _callee(value: relax.Expr) -> GlobalVar | None:
    """The PrimFunc that ``value`` calls, if it is a ``call_tir``."""
    if isinstance(value, Call) and value.op == tvm.ir.Op.get("relax.call_tir"):
        return value.args[0]
    return None


def _kernel_bindings(module: tvm.IRModule, bindings: Bindings) -> list[relax.VarBinding]:
    def is_kernel(binding: relax.VarBinding) -> bool:
        callee = _callee(binding.value)
        return callee is not None and "bnnc.kernel" in module[callee].attrs

    return [binding for binding in bindings if is_kernel(binding)]


def _pack_and_product(module: tvm.IRModule, name: str) -> tuple[Call, Call] | None:
    bindings = _dataflow_bindings(module[name])
    kernels = [] if bindings is None else _kernel_bindings(module, bindings)
    if len(kernels) < 2 or not kernels[-1].value.args[1][0].same_as(kernels[-2].var):  # 2
        return None
    return kernels[-2].value, kernels[-1].value


def _gives_bits(function: tvm.ir.BaseFunc) -> int:
    """For a product that gives bits, how many constants it has in common with the one that gives floats; else 0."""
    return int(function.attrs[GIVES_BITS_ATTR]) if GIVES_BITS_ATTR in (function.attrs or {}) else 0


def _same_layer(module: tvm.IRModule, call: Call, layer_call: Call) -> bool:
    """Whether both are the product of one layer, by kernel and constants; ``call`` may give bits."""
    fields, layer_fields = call.args[1].fields[1:], layer_call.args[1].fields[1:]
    if common := _gives_bits(module[_callee(call)]):
        fields, layer_fields = fields[:common], layer_fields[:common]
    elif _callee(call) != _callee(layer_call):
        return False
    if len(fields) != len(layer_fields):
        return False
    pairs = zip(fields, layer_fields, strict=True)
    return all(a.same_as(b) or _same_derived(a, b) or tvm_ffi.structural_equal(a, b) for a, b in pairs)


def _same_derived(left: relax.Expr, right: relax.Expr) -> bool:
    """Whether both are parameters for the same derived constant: ``LiftDerivedConstants`` names them alike."""
    both = isinstance(left, Var) and isinstance(right, Var)
    return both and left.name == right.name and left.name.startswith(DERIVED_PREFIX)


@relax.expr_functor.mutator
class _Substitution(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces variables by those of another function."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[Var, Var] = {}

    def visit_var_(self, variable: Var) -> relax.Expr:
        """Return the new variable."""
        return self.variables[variable]

    def visit_dataflow_var_(self, variable: Var) -> relax.Expr:
        """Return the new variable."""
        return self.variables[variable]


def _add_copy(builder: relax.BlockBuilder, name: str, function: relax.Function, results: Sequence[Var]) -> None:
    """Add ``function`` up to the last of ``results``, which it returns (a tuple when there are several)."""
    bindings = _dataflow_bindings(function)
    assert bindings is not None, "only called for functions that rule 1 holds for"
    substitution = _Substitution()
    parameters = [relax.Var(parameter.name, parameter.ty) for parameter in function.params]
    substitution.variables.update(zip(function.params, parameters, strict=True))
    missing = set(results)
    derived = derived_of(function)
    with builder.function(name, parameters, attrs={DERIVED_ATTR: derived} if derived else None):
        with builder.dataflow():
            for binding in bindings:
                value = substitution.visit_expr(binding.value)
                found = binding.var in missing
                substitution.variables[binding.var] = builder.emit_output(value) if found else builder.emit(value)
                missing.discard(binding.var)
                if not missing:
                    break
        outputs = [substitution.variables[result] for result in results]
        builder.emit_func_output(outputs[0] if len(outputs) == 1 else outputs)
