"""One spelling for what ONNX can say in several ways; the result is still ONNX, and still runs in ONNX Runtime.

In order:

1. initialisers that are also listed as inputs are constants (before IR version 4 all of them had to be listed);
2. sparse initialisers become dense;
3. every input dimension becomes a number (:mod:`bnn_compiler.frontend.input_shapes`);
4. to a fixed point: shapes are inferred, constants folded (:mod:`bnn_compiler.frontend.constant_folding`), operators
   replaced by simpler standard ones (:mod:`bnn_compiler.frontend.node_lowering`), tensors without elements removed
   (:mod:`bnn_compiler.frontend.empty_tensors`), branches with a known condition taken, loops written out
   (:mod:`bnn_compiler.frontend.loop_unrolling`); then each branch that is left becomes a ``Where`` over both sides;
5. ``Einsum`` becomes ``MatMul`` where it is one (:mod:`bnn_compiler.frontend.einsum_products`), and codes that are cast
   to integers and back stay floats (:mod:`bnn_compiler.frontend.float_codes`);
6. ``auto_pad`` becomes explicit pads, and operands are checked (:mod:`bnn_compiler.frontend.operator_check`); a pool's
   windows become explicit before each inference of shapes (:mod:`bnn_compiler.frontend.pool_windows`);
7. ``Identity`` and ``Dropout`` go, where no name of the graph's border depends on them;
8. all nodes have unique names.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from bnn_compiler.errors import ModelError
from bnn_compiler.limits import DEFAULT_LIMITS, Limits

from .branches import inline_known_branches, select_branches
from .constant_folding import ConstantFolder, dense_initializers, folding_budget
from .default_attributes import write_default_attributes
from .einsum_products import rewrite_einsums
from .empty_tensors import remove_empty_tensors, replace_empty_inputs
from .explicit_padding import make_padding_explicit
from .float_codes import fold_code_casts
from .input_shapes import fix_input_shapes
from .loop_unrolling import require_no_loops, unroll_loops
from .memory_estimate import check_memory
from .node_lowering import lower_nodes, require_lowered_nodes
from .node_order import name_nodes
from .node_work import check_work
from .onnx_graph import tensor_types
from .operator_check import check_operands
from .pass_through import remove_pass_through
from .pool_windows import make_pool_windows_explicit, pad_overhanging_pools
from .shape_inference import infer_shapes, require_compiled_types
from .size_limits import check_size, check_written_out
from .transposed_windows import make_crops_explicit

MAX_VISITS = 500_000
"""Of nodes, over all rounds of inference and folding, some 0.1 ms each. A round settles at least one computed shape, of
which networks have at most one per layer, and they have thousands of nodes."""


def normalise(
    model: onnx.ModelProto,
    opset: int,
    input_shapes: Mapping[str, tuple[int, ...]],
    open_dimension: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[str]:
    """Normalise a model of the standard operator set ``opset`` in place; notes for the user.

    Raises:
        UsageError: ``input_shapes`` does not fit the model.
        OpenShapeError: a dimension is left open, and ``open_dimension`` is not given.
        UnsupportedOperatorError: a shape is not known before run time, or branches differ in shape.
        ModelError: shapes or operands contradict each other, a weight is damaged, or the tensors do not fit into
            memory.
    """
    budget = folding_budget(model, limits)
    folder = ConstantFolder(budget)
    _drop_listed_initializers(model)  # 1
    dense_initializers(model, budget)  # 2
    notes = fix_input_shapes(model, input_shapes, open_dimension)  # 3
    write_default_attributes(model, opset)
    replace_empty_inputs(model)
    name_nodes(model)  # branches are named after their If
    _settle(model, opset, folder, limits)
    check_size(model, limits)
    while select_branches(model):  # a branch may hold another
        _settle(model, opset, folder, limits)
    check_size(model, limits)
    require_no_loops(model, opset)
    require_lowered_nodes(model, opset)
    if rewrite_einsums(model) + fold_code_casts(model):  # 5
        _settle(model, opset, folder, limits)  # what was done to constants, and shapes
    make_padding_explicit(model)  # 6
    pad_overhanging_pools(model, opset, tensor_types(model.graph))
    check_operands(model)
    require_compiled_types(model)
    remove_pass_through(model)  # 7
    name_nodes(model)  # 8
    infer_shapes(model)  # for the tensors that are left, under their final names
    check_work(model, limits)
    return notes


def _settle(model: onnx.ModelProto, opset: int, folder: ConstantFolder, limits: Limits) -> None:
    """Step 4 without the branches whose condition is not known."""
    visits = rounds = 0
    while visits <= MAX_VISITS:
        visits += len(model.graph.node)
        rounds += 1
        make_pool_windows_explicit(model, opset)
        make_crops_explicit(model)
        check_written_out(model, limits)
        infer_shapes(model)
        if rounds == 1:  # before anything is allocated; what is folded is bounded by itself
            check_memory(model, limits)
        # All in each round: one often makes another possible.
        changes = folder.fold(model) + remove_empty_tensors(model) + lower_nodes(model, opset)
        if not changes + inline_known_branches(model) + unroll_loops(model, opset):
            check_memory(model, limits)
            return
    raise ModelError(
        f"the shapes of its tensors depend on each other in a chain that is not at its end after {rounds} steps: "
        "simplify the model for fixed shapes when it is exported"
    )


def _drop_listed_initializers(model: onnx.ModelProto) -> None:
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    inputs = [info for info in model.graph.input if info.name not in initializers]
    if not inputs:
        raise ModelError("the model has no inputs: all of its results are constants")
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
