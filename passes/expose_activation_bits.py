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
3. each layer's product is one call in ``main``: of the same kernel, or of one that computes it in another form
   (``PARTS_ATTR``), on the same constants; of several layers that are all alike, the one of the same node
   (``bnnc.names``), or where that is not known, as they follow each other in the report.

No kernel is added: the cost is some hundred bytes of code for TVM's virtual machine.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call, GlobalVar, Var

from bnn_compiler.kernels.layer_kernels import PARTS_ATTR
from bnn_compiler.module_attributes import LAYERS_ATTRIBUTE, onnx_names, read_attribute

from .lift_derived_constants import DERIVED_ATTR, DERIVED_PREFIX, derived_of
from .substitution import Substitution

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
        nodes, of_layers = onnx_names(module), read_attribute(module, LAYERS_ATTRIBUTE) or []
        node_of = {entry.get("function"): entry["name"] for entry in of_layers}
        products = _Products(
            replace(product, node=nodes.get(binding.var.name, {}).get("node"))
            for binding in main
            for product in _products(module, binding.value)
        )
        packs: dict[Var, str] = {}
        for name, layer in zip(names, layers, strict=True):
            found = None if layer is None else products.take(layer[1], node_of.get(name))
            if found is None:  # 2, 3
                return module
            packs.setdefault(found.data, name)
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


@dataclass(frozen=True, eq=False)
class _Product:
    """A product in ``main``: its packed activation and constants; ``kernel`` is None where it is in another form.

    ``node`` is the ONNX node of its result, where that is known.
    """

    kernel: GlobalVar | None
    data: Var
    constants: tuple[relax.Expr, ...]
    node: str | None = None


def _products(module: tvm.IRModule, value: relax.Expr) -> list[_Product]:
    """The products that a call of a kernel may compute."""
    kernel = _callee(value)
    if kernel is None:
        return []
    attributes, fields = module[kernel].attrs or {}, tuple(value.args[1].fields)
    if PARTS_ATTR not in attributes:
        return [_Product(kernel, fields[0], fields[1:])] if fields else []
    numbers = [int(number) for number in attributes[PARTS_ATTR]]
    return [
        _Product(None, fields[position], fields[position + 1 : position + 1 + count])
        for position, count in zip(numbers[::2], numbers[1::2], strict=True)
    ]


class _Products:
    """Products in order, found by their first constant: a network of many layers has as many products."""

    def __init__(self, products: Iterable[_Product]) -> None:
        self._by_constant: dict[str | int | None, dict[int, _Product]] = {}
        self._by_node: dict[str, list[tuple[int, _Product]]] = {}
        for index, product in enumerate(products):
            self._by_constant.setdefault(_key(product.constants), {})[index] = product
            if product.node is not None:
                self._by_node.setdefault(product.node, []).append((index, product))

    def take(self, layer_call: Call, node: str | None) -> _Product | None:
        """Remove the product that computes the layer: the node's, else the first; None if none does."""
        of_node = [] if node is None else self._by_node.get(node, [])
        keys = {_key(tuple(layer_call.args[1].fields)[1:]), None}
        alike = heapq.merge(*(self._by_constant.get(key, {}).items() for key in keys), key=lambda entry: entry[0])
        for index, product in itertools.chain(of_node, alike):
            group = self._by_constant[_key(product.constants)]
            if index in group and _same_layer(product, layer_call):
                del group[index]
                return product
        return None


def _key(constants: tuple[relax.Expr, ...]) -> str | int | None:
    """What is the same of the constants of one layer (``_same_layer``)."""
    if not constants:
        return None
    first = constants[0]
    derived = isinstance(first, Var) and first.name.startswith(DERIVED_PREFIX)
    return str(first.name) if derived else int(tvm_ffi.structural_hash(first))


def _same_layer(product: _Product, layer_call: Call) -> bool:
    """Whether both are the product of one layer, by kernel and constants."""
    constants = tuple(layer_call.args[1].fields)[1:]
    if product.kernel is None:
        # A kernel that gives bits shares the first constants alone: the others are in another form, too.
        constants = constants[: len(product.constants)]
    elif product.kernel != _callee(layer_call):
        return False
    if len(product.constants) != len(constants):
        return False
    pairs = zip(product.constants, constants, strict=True)
    return all(a.same_as(b) or _same_derived(a, b) or tvm_ffi.structural_equal(a, b) for a, b in pairs)


def _same_derived(left: relax.Expr, right: relax.Expr) -> bool:
    """Whether both are parameters for the same derived constant: ``LiftDerivedConstants`` names them alike."""
    both = isinstance(left, Var) and isinstance(right, Var)
    return both and left.name == right.name and left.name.startswith(DERIVED_PREFIX)


def _add_copy(builder: relax.BlockBuilder, name: str, function: relax.Function, results: Sequence[Var]) -> None:
    """Add ``function`` up to the last of ``results``, which it returns (a tuple when there are several)."""
    bindings = _dataflow_bindings(function)
    assert bindings is not None, "only called for functions that rule 1 holds for"
    substitution = Substitution()
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
