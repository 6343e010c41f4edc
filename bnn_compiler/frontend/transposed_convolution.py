"""``ConvTranspose`` with explicit pads as a Relax operator, and a crop and a pad around it where that cannot say it.

1. What ``output_padding`` adds at an end and ``pads`` crop there cancel; what is left of it are zeros, which TVM takes
   below the stride alone, so they are appended.
2. TVM crops less than a window; more of it is cut off afterwards, and so are negative crops appended.
"""

from __future__ import annotations

from typing import Any

from tvm import relax

from bnn_compiler.errors import UnsupportedOperatorError

_OPERATORS = {
    3: (relax.op.nn.conv1d_transpose, "NCW", "IOW"),
    4: (relax.op.nn.conv2d_transpose, "NCHW", "IOHW"),
    5: (relax.op.nn.conv3d_transpose, "NCDHW", "IODHW"),
}


def convert_conv_transpose(builder: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """The result of a node; ``None`` leaves forms that this does not know to TVM's converter.

    Raises:
        UnsupportedOperatorError: it appends more than ONNX Runtime does.
    """
    data, bias = inputs[0], inputs[2]
    rank = len(data.ty.shape.values)
    if rank not in _OPERATORS or attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
        return None
    operator, data_layout, kernel_layout = _OPERATORS[rank]
    spatial = rank - 2
    weight = inputs[1]
    dilations = [int(step) for step in attributes.get("dilations", [1] * spatial)]
    window = [(int(extent) - 1) * step + 1 for extent, step in zip(weight.ty.shape.values[2:], dilations, strict=True)]
    pads = [int(width) for width in attributes.get("pads", [0] * 2 * spatial)]
    extra = [int(width) for width in attributes.get("output_padding", [0] * spatial)]
    strides = [int(step) for step in attributes.get("strides", [1] * spatial)]
    if any(added >= step for added, step in zip(extra, strides, strict=True)):
        raise UnsupportedOperatorError(
            f"ConvTranspose node {attributes['tvm_custom']['name']!r} has {extra} results more than its input makes, "
            f"with strides of {strides}: ONNX Runtime appends less than a stride (output_padding, output_shape)"
        )
    ends = [crop - added for crop, added in zip(pads[spatial:], extra, strict=True)]  # 1
    crops = [*pads[:spatial], *ends]
    taken = [min(max(crop, 0), window[index % spatial] - 1) for index, crop in enumerate(crops)]  # 2
    result = builder.emit(
        operator(
            data,
            weight,
            strides=strides,
            padding=taken,
            dilation=dilations,
            groups=int(attributes.get("group", 1)),
            data_layout=data_layout,
            kernel_layout=kernel_layout,
        )
    )
    result = _cropped(builder, result, [crop - done for crop, done in zip(crops, taken, strict=True)])
    along = (1, -1, *[1] * spatial)
    if bias is None:
        return result
    return relax.op.add(result, relax.op.reshape(bias, along))


def _cropped(builder: Any, result: Any, crops: list[int]) -> Any:
    """``result`` without so many elements at the starts and ends of its spatial axes; with zeros for negative ones."""
    spatial = len(crops) // 2
    shape = [int(extent) for extent in result.ty.shape.values]
    if any(crop > 0 for crop in crops):
        begins = [max(crop, 0) for crop in crops[:spatial]]
        ends = [extent - max(crop, 0) for extent, crop in zip(shape[2:], crops[spatial:], strict=True)]
        result = builder.emit(relax.op.strided_slice(result, list(range(2, 2 + spatial)), begins, ends))
    if any(crop < 0 for crop in crops):
        widths = [0, 0, 0, 0]
        for first, last in zip(crops[:spatial], crops[spatial:], strict=True):
            widths += [max(-first, 0), max(-last, 0)]
        result = builder.emit(relax.op.nn.pad(result, widths))
    return result
