"""Constants derived at load: which calls move, what they become, and that results stay the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, te

from bnn_compiler.passes import LiftDerivedConstants
from bnn_compiler.passes.float_pipeline import FoldConstantsOfRuns
from bnn_compiler.passes.lift_derived_constants import DERIVED_ATTR, DERIVES_ATTR, FUNCTION, derived_of
from tests.relax_run import run_by_default
from tests.small_relax_modules import applied

X = np.arange(4, dtype=np.float32)
STORED = {"a": np.array([1, 2, 3, 4], np.float32), "b": np.array([5, 6, 7, 8], np.float32)}


def twice(*, marked: bool) -> tvm.tirx.PrimFunc:
    source = te.placeholder((4,), "float32", name="source")
    kernel = te.create_prim_func([source, te.compute((4,), lambda i: source[i] + source[i], name="doubled")])
    kernel = kernel.without_attr("global_symbol")
    return kernel.with_attr(DERIVES_ATTR, True) if marked else kernel


def module_of(functions: dict[str, list[str]], *, marked: bool = True) -> tvm.IRModule:
    """Functions that add twice the stored arrays named to x; "x" itself stands for an input."""
    builder = relax.BlockBuilder()
    for name, terms in functions.items():
        x = relax.Var("x", relax.TensorType((4,), "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                total: relax.Expr = x
                for term in terms:
                    kernel = builder.add_func(twice(marked=marked), "twice")
                    stored = x if term == "x" else relax.const(STORED[term])
                    doubled = builder.emit(relax.call_tir(kernel, [stored], relax.TensorType((4,), "float32")))
                    total = builder.emit(relax.op.add(total, doubled))
                result = builder.emit_output(total)
            builder.emit_func_output(result)
    return builder.get()


def results(module: tvm.IRModule) -> int:
    return len(module[FUNCTION].ret_ty.fields)


def test_equal_calls_are_made_once() -> None:
    lifted = applied(module_of({"layer_0": ["b"], "main": ["a", "b", "a"]}), LiftDerivedConstants())
    relax.analysis.well_formed(lifted)  # raises
    assert results(lifted) == 2
    assert derived_of(lifted["layer_0"]) == (0,)
    assert derived_of(lifted["main"]) == (0, 1)
    assert [str(parameter.name) for parameter in lifted["main"].params] == ["x", "derived_0", "derived_1"]
    assert "call_tir" not in lifted["main"].script(show_meta=False)
    # "layer_0" comes first, so twice b is result 0.
    machine = relax.VirtualMachine(relax.build(lifted, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    derived = machine[FUNCTION]()
    np.testing.assert_array_equal(derived[0].numpy(), 2 * STORED["b"])
    main = machine["main"](tvm.runtime.tensor(X), *derived).numpy()
    np.testing.assert_array_equal(main, X + 4 * STORED["a"] + 2 * STORED["b"])


def test_calls_that_do_not_derive_stay() -> None:
    """Of an input, or of a kernel without the attribute: near misses."""
    for module in (module_of({"main": ["x"]}), module_of({"main": ["a"]}, marked=False)):
        lifted = applied(module, LiftDerivedConstants())
        tvm.ir.assert_structural_equal(lifted, module)
        assert derived_of(lifted["main"]) == ()
    mixed = applied(module_of({"main": ["x", "a"]}), LiftDerivedConstants())
    assert results(mixed) == 1
    assert mixed["main"].script(show_meta=False).count("call_tir") == 1


def test_once_is_enough() -> None:
    lifted = applied(module_of({"main": ["a"]}), LiftDerivedConstants())
    tvm.ir.assert_structural_equal(applied(lifted, LiftDerivedConstants()), lifted)


def test_calls_that_come_late_are_refused() -> None:
    module = module_of({"late": ["b"], "main": ["a"]})
    both = applied(module, LiftDerivedConstants())
    both.update_func(both.get_global_var("late"), module["late"])
    with pytest.raises(ValueError, match="at once"):
        applied(both, LiftDerivedConstants())


def test_attributes_and_the_original_are_kept() -> None:
    module = module_of({"main": ["a"]}).with_attr("bnnc.layers", "[]")
    module.update_func(module.get_global_var("main"), module["main"].with_attr("num_input", 1))
    before = module.script(show_meta=True)
    lifted = applied(module, LiftDerivedConstants())
    assert str(lifted.attrs["bnnc.layers"]) == "[]"
    assert {"num_input", DERIVED_ATTR} <= set(lifted["main"].attrs.keys())
    assert module.script(show_meta=True) == before


def test_folding_spares_what_is_derived_at_load() -> None:
    """TVM would evaluate the whole function; everything else it may fold."""
    lifted = applied(module_of({"main": ["a"]}), LiftDerivedConstants())
    folded = applied(lifted, FoldConstantsOfRuns())
    tvm.ir.assert_structural_equal(folded[FUNCTION], lifted[FUNCTION])
    plain = module_of({"main": ["a"]}, marked=False)
    assert "call_tir" not in applied(plain, FoldConstantsOfRuns())["main"].script(show_meta=False)
    np.testing.assert_array_equal(run_by_default(plain, X), X + 2 * STORED["a"])
