"""Shape arithmetic of a convolution, shared by passes and kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvGeometry:
    """A 2-D convolution on NCHW activations and OIHW weights.

    ``pads`` is (top, left, bottom, right); a dense layer is not a ConvGeometry. All sizes in elements.
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self._out_size(0)

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return self._out_size(1)

    @property
    def padded_height(self) -> int:
        """Input rows with padding."""
        return self.height + self.pads[0] + self.pads[2]

    @property
    def padded_width(self) -> int:
        """Input columns with padding."""
        return self.width + self.pads[1] + self.pads[3]

    @property
    def group_in_channels(self) -> int:
        """Input channels that one output channel reads."""
        return self.in_channels // self.groups

    @property
    def group_out_channels(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the full convolution, padding taps included."""
        taps = self.group_in_channels * self.kernel[0] * self.kernel[1]
        return self.batch * self.out_channels * self.out_height * self.out_width * taps

    def _out_size(self, axis: int) -> int:
        padded = (self.padded_height, self.padded_width)[axis]
        extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return (padded - extent) // self.strides[axis] + 1


def windows_hold_pixels(geometry: ConvGeometry) -> bool:
    """Whether every window has a pixel of the image in it, and in each of its rows and columns that are in range."""
    g = geometry
    return all(
        g.dilations[a] == 1 and g.pads[a] < g.kernel[a] and (out - 1) * g.strides[a] - g.pads[a] < size
        for a, (size, out) in enumerate(((g.height, g.out_height), (g.width, g.out_width)))
    )
