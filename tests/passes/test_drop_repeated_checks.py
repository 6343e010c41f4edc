"""Which run-time checks go, and that the rest of a function stays."""

from __future__ import annotations

from tvm import IRModule, relax

from bnn_compiler.passes.drop_repeated_checks import DropRepeatedChecks
from bnn_compiler.passes.lift_derived_constants import DERIVED_ATTR
from tests.small_relax_modules import applied, elementwise


def checked_parameters(module: IRModule) -> list[str]:
    """The first argument of every check in ``main``, in order."""
    return [
        binding.value.args[0].name
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, relax.ExternFunc)
    ]


def lowered(derived: list[int]) -> IRModule:
    """x + y with checks; ``derived`` marks as many of the last parameters."""
    module = elementwise()
    if derived:
        main = module["main"].with_attr(DERIVED_ATTR, derived)
        module.update_func(module.get_global_var("main"), main)
    return applied(
        module,
        relax.transform.LegalizeOps(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.VMShapeLower(),
    )


def test_only_derived_parameters_lose_their_checks() -> None:
    before = lowered([3])
    assert checked_parameters(before).count("y") == 2
    after = applied(before, DropRepeatedChecks())
    assert checked_parameters(after) == [name for name in checked_parameters(before) if name != "y"]
    assert checked_parameters(after).count("x") == 2
    assert str(after["main"].params) == str(before["main"].params)


def test_functions_without_derived_constants_are_left_alone() -> None:
    before = lowered([])
    assert applied(before, DropRepeatedChecks())["main"].same_as(before["main"])
