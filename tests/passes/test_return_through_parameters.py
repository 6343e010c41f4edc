"""Destination passing: which results take the caller's buffer, which are copied, and what is refused."""

from __future__ import annotations

import pytest
import tvm
from tvm import IRModule, relax

from bnn_compiler.passes.return_through_parameters import ReturnThroughParameters
from tests.small_relax_modules import applied, elementwise, many_results


def lowered(module: IRModule) -> IRModule:
    return tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
        ]
    )(module)


def called(module: IRModule, name: str = "main") -> list[str]:
    """Names of the operators and kernels that a function calls, in order."""
    names = []
    for block in module[name].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call):
                callee = binding.value.op
                names.append(str(callee.name_hint if isinstance(callee, relax.GlobalVar) else callee.name))
    return names


def test_result_takes_the_callers_buffer() -> None:
    after = applied(lowered(elementwise()), ReturnThroughParameters())
    main = after["main"]
    assert [str(parameter.name) for parameter in main.params] == ["x", "y", "output_0"]
    assert called(after) == ["add"]  # no allocation, no copy
    assert main.body.blocks[0].bindings is not None
    kernel_call = next(
        binding.value
        for block in main.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
    )
    assert len(kernel_call.args) == 3
    assert len(main.ret_ty.fields) == 0


def test_reshapes_inputs_and_repetitions() -> None:
    after = applied(lowered(many_results()), ReturnThroughParameters())
    assert len(after["main"].params) == 5
    # The one allocation left is relu's, an intermediate; the product's became a view of output_1; `x` and the repeated
    # result are copied.
    assert called(after) == [
        "relax.builtin.alloc_tensor",
        "relu",
        "relax.reshape",
        "matmul",
        "relax.reshape",
        "add",
        "copy_result",
        "copy_result1",
    ]
    assert len(after["layer_0"].params) == 2
    assert called(after, "layer_0") == ["matmul"]


def test_original_module_is_unchanged() -> None:
    module = lowered(many_results())
    before = module.script(show_meta=True)
    applied(module, ReturnThroughParameters())
    assert module.script(show_meta=True) == before


def test_private_functions_are_left_alone() -> None:
    module = lowered(elementwise())
    module["main"] = module["main"].without_attr("global_symbol")
    assert len(applied(module, ReturnThroughParameters())["main"].params) == 2


def test_unknown_shape_is_refused() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(None, "float32", ndim=2))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    with pytest.raises(ValueError, match="must be a tensor of known shape"):
        applied(builder.get(), ReturnThroughParameters())


def test_symbolic_shape_is_refused() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"), 4), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))
    with pytest.raises(ValueError, match="static shape"):
        applied(builder.get(), ReturnThroughParameters())


def test_called_function_is_refused() -> None:
    module = lowered(elementwise())
    builder = relax.BlockBuilder(module)
    x = relax.Var("x", relax.TensorType((1, 1024), "float32"))
    with builder.function("caller", [x]):
        builder.emit_func_output(builder.emit(relax.Call(module.get_global_var("main"), [x, x])))
    with pytest.raises(ValueError, match="caller calls the exported function main"):
        applied(builder.get(), ReturnThroughParameters())
