"""The float kernels that read images in place, on arrays that border on pages without access; see test_float_bounds."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import tirx

from bnn_compiler.passes.schedule_float_kernels import ScheduleFloatKernels
from bnn_compiler.schedules.float_conv_channels import channel_conv_kernel
from bnn_compiler.schedules.float_conv_channels_plan import plan_channel_conv
from bnn_compiler.schedules.float_pool import PoolPlan, pool_kernel
from bnn_compiler.schedules.float_vector import float_vector
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from tests.guard_pages import Side, guarded
from tests.schedules.kernel_harness import CompiledKernels, cpu_target
from tests.small_relax_modules import applied

# 16 channels: sizes in whole cache lines, so that arrays that end at a page are aligned as kernels assume.
POOLS = [
    ConvGeometry(1, 16, 9, 33, 16, (3, 3), (2, 2), (1, 1, 0, 0), groups=16),
    ConvGeometry(1, 16, 8, 32, 16, (2, 2), (2, 2), groups=16),
    ConvGeometry(2, 16, 7, 20, 16, (3, 2), (1, 1), (1, 1, 1, 0), groups=16),
    ConvGeometry(1, 16, 5, 17, 16, (2, 2), (1, 1), groups=16),
]
_CONVOLUTIONS = [
    ConvGeometry(1, 16, 7, 7, 48, (1, 1)),
    ConvGeometry(2, 16, 9, 11, 32, (1, 1), (2, 3)),
    ConvGeometry(1, 16, 9, 9, 17, (2, 2)),
    ConvGeometry(1, 16, 5, 6, 16, (3, 3), (1, 2), (1, 1, 1, 1)),
]


def run_guarded(cpu: str, side: Side) -> None:
    """Run pools and convolutions; a stray access kills the process."""
    target = cpu_target(cpu).tvm_target
    vector = float_vector(detect_isa(target))
    for g in POOLS:
        _run(cpu, side, pool_kernel(PoolPlan(g, "max", vector.lanes, 2)), _image_shapes(g))
    for g in _CONVOLUTIONS:
        plan = plan_channel_conv(g, vector)
        assert plan is not None
        image, result = _image_shapes(g)
        _run(cpu, side, channel_conv_kernel(plan), [image, plan.packed_weight_shape, result])


def _image_shapes(g: ConvGeometry) -> list[tuple[int, ...]]:
    return [(g.batch, g.in_channels, g.height, g.width), (g.batch, g.out_channels, g.out_height, g.out_width)]


def _run(cpu: str, side: Side, kernel: tirx.PrimFunc, shapes: list[tuple[int, ...]]) -> None:
    module = applied(tvm.IRModule({"kernel": kernel}), ScheduleFloatKernels(cpu_target(cpu).tvm_target))
    (scheduled,) = module.functions.values()
    *inputs, out = (guarded(np.ones(shape, np.float32), side) for shape in shapes)
    CompiledKernels(cpu, {"kernel": scheduled}).run_in_place("kernel", inputs, out)
