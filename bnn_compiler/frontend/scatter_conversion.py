"""``ScatterElements`` and ``Scatter`` whose indices cover a part of the data.

Along the axes other than the one that is indexed, the indices may be shorter than the data; what lies beyond stays as
it is. TVM's kernel takes both for equal, and writes elsewhere. So the part that is covered is cut out, written to, and
put back.
"""

from __future__ import annotations

from typing import Any

from tvm import relax

_REDUCTIONS = {b"none": "update", b"add": "add", b"mul": "mul", b"min": "min", b"max": "max"}


def convert_scatter_elements(_: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``None`` for reductions that TVM lacks."""
    data, indices, updates = inputs[:3]
    shape, part = ([int(extent) for extent in operand.ty.shape.values] for operand in (data, indices))
    axis = int(attributes.get("axis", 0)) % len(shape)
    part[axis] = shape[axis]
    shorter = [at for at, (whole, covered) in enumerate(zip(shape, part, strict=True)) if covered < whole]
    reduction = _REDUCTIONS.get(attributes.get("reduction", b"none"))
    if reduction is None:
        return None
    covered = data
    if shorter:
        covered = relax.op.strided_slice(data, axes=shorter, begin=[0] * len(shorter), end=[part[at] for at in shorter])
    result = relax.op.scatter_elements(covered, indices, updates, axis=axis, reduction=reduction)
    for number, at in enumerate(shorter):
        # Beyond the part along this axis, within it along those that are still to come.
        later = shorter[number + 1 :]
        rest = relax.op.strided_slice(
            data,
            axes=[at, *later],
            begin=[part[at], *([0] * len(later))],
            end=[shape[at], *(part[each] for each in later)],
        )
        result = relax.op.concat([result, rest], axis=at)
    return result
