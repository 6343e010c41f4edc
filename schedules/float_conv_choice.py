"""Which of the two float convolution kernels computes a layer: pixels in the lanes, or output channels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tvm import tirx

from .float_conv import ConvPlan, conv_kernel, pack_conv_weight, plan_conv
from .float_conv_channels import channel_conv_kernel
from .float_conv_channels_plan import ChannelConvPlan, pack_channel_weight, plan_channel_conv
from .float_vector import FloatVector
from .geometry import ConvGeometry

FloatConvPlan = ConvPlan | ChannelConvPlan

# A pool of its own reads a map from the outer caches, shuffles and writes it: cycles per vector of the map.
_POOL_CYCLES = 8


def plan_float_conv(geometry: ConvGeometry, vector: FloatVector) -> FloatConvPlan:
    """The plan of fewest estimated cycles."""
    pixels = plan_conv(geometry, vector)
    channels = plan_channel_conv(geometry, vector)
    return pixels if channels is None or pixels.cycles() <= channels.cycles() else channels


def plan_pooled_conv(geometry: ConvGeometry, pool: ConvGeometry, vector: FloatVector) -> ChannelConvPlan | None:
    """A plan with the max-pool ``pool`` behind the convolution in one kernel; None where two kernels are faster."""
    fused = plan_channel_conv(geometry, vector, pool)
    if fused is None:
        return None
    map_vectors = geometry.out_channels * geometry.out_height * geometry.out_width / vector.lanes
    apart = plan_float_conv(geometry, vector).cycles() + map_vectors * _POOL_CYCLES
    return fused if fused.cycles() <= apart else None


def pack_float_conv_weight(plan: FloatConvPlan, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Reorder weight [Cout, Cin / groups, kh, kw] to what the plan's kernel reads."""
    if isinstance(plan, ChannelConvPlan):
        return pack_channel_weight(plan, weight)
    return pack_conv_weight(plan, weight)


def float_conv_kernel(plan: FloatConvPlan, spatial_rank: int = 2) -> tirx.PrimFunc:
    """Build the kernel (data, packed weight, out), float32 NCHW (NCW for ``spatial_rank`` 1), fusable."""
    if isinstance(plan, ChannelConvPlan):
        return channel_conv_kernel(plan, spatial_rank)
    return conv_kernel(plan, spatial_rank)
