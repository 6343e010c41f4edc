"""What passes share that compute products of ``main`` in another form: an analysis, and names that move along."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Var

from bnn_compiler.module_attributes import NAMES_ATTRIBUTE, read_attribute
from bnn_compiler.recognition.value_sets import ValueSetAnalysis

Names = dict[str, dict[str, Any]]


def rewrite_products(
    module: tvm.IRModule,
    applies: Callable[[relax.Expr], bool],
    make_mutator: Callable[[tvm.IRModule, ValueSetAnalysis, Names], Any],
) -> tvm.IRModule:
    """``module`` with ``main`` as the mutator leaves it; untouched where ``applies`` to no definition.

    The mutator enters what takes a product's place in ``names``, see ``move_name``.
    """
    main = module["main"]
    bindings = {b.var: b.value for block in main.body.blocks for b in block.bindings}
    if not any(applies(value) for value in bindings.values()):
        return module
    names: Names = read_attribute(module, NAMES_ATTRIBUTE) or {}
    mutator = make_mutator(module, ValueSetAnalysis(bindings, dict(module.functions.items())), names)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(main))
    attributes = dict(module.attrs.items()) if module.attrs else {}
    if names:
        attributes[NAMES_ATTRIBUTE] = json.dumps(names)
    return tvm.IRModule(mutator.builder_.get().functions, attrs=attributes)


def move_name(names: Names, replaced: str, product: Var) -> None:
    """``product`` computes what the variable ``replaced`` did, under its node's name; it is no tensor of ONNX's."""
    if replaced in names:
        names[str(product.name)] = {**names[replaced], "output": None}
