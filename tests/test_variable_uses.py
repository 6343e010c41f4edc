"""What an expression reads: every occurrence in arguments, however deep."""

from __future__ import annotations

from tvm import relax

from bnn_compiler.kernels.variable_uses import variable_uses


def test_every_occurrence_counts() -> None:
    tensor = relax.TensorType((2, 3), "float32")
    x, y = relax.Var("x", tensor), relax.Var("y", tensor)
    assert variable_uses(relax.op.add(x, x)) == [x, x]
    assert variable_uses(relax.op.concat([x, y, x], axis=0)) == [x, y, x]
    assert variable_uses(relax.Tuple([relax.op.nn.relu(y), relax.Tuple([x, y])])) == [y, x, y]
    assert variable_uses(relax.TupleGetItem(relax.Tuple([x, y]), 1)) == [x, y]
    assert variable_uses(relax.op.nn.relu(relax.const(1.0))) == []
