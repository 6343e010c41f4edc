"""Tables and sentences of measurements."""

from __future__ import annotations

import io

import pytest

from bnn_compiler.bench import Timing, bench_report
from bnn_compiler.cli.profile_tables import print_profile
from bnn_compiler.cli.streams import Streams
from bnn_compiler.cli.tables import print_bench
from bnn_compiler.profiling.kernel_timing import HookCost, KernelCall, NetworkTimes
from bnn_compiler.profiling.profile import ProfileReport, make_profile


def profile_of(seconds: float) -> ProfileReport:
    """One kernel that takes so long and moves 10 kB."""
    call = KernelCall("kernel", (seconds,) * 3, (5000, 5000))
    return make_profile(1, NetworkTimes((call,), (1e-5,) * 3, HookCost(0.0, 0.0)), [], [], None)


def printed(streams: Streams) -> str:
    """What the user sees."""
    assert isinstance(streams.out, io.StringIO)
    return streams.out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "rate", "shown"), [(0.0, 0.0, "< 0.1"), (2e-12, 0.0, "< 0.1"), (1e-6, 10.0, "1.00")]
)
def test_no_rate_of_what_is_too_short(seconds: float, rate: float, shown: str) -> None:
    profile = profile_of(seconds)
    assert profile["kernels"][0]["gbytes_per_second"] == pytest.approx(rate)
    streams = Streams(io.StringIO(), io.StringIO())
    print_profile(streams, profile)
    (line,) = [line for line in printed(streams).splitlines() if "5 kB" in line]
    assert shown in line and ("10.0" in line) == bool(rate)


@pytest.mark.parametrize(("slow", "noted"), [(1.1, False), (5.0, True)])
def test_a_busy_machine_is_said(slow: float, noted: bool) -> None:
    quiet = Timing("whole network", 1000, (1e-5,) * 3, (1e-4,) * 3)
    layer = Timing("conv", 1000, (1e-5,) * 3, (1e-4, slow * 1e-4, slow * 1e-4))
    streams = Streams(io.StringIO(), io.StringIO())
    print_bench(streams, bench_report("m.onnx", 1, 3, {}, quiet, [layer], profile_of(1e-6)))
    assert ("ONNX Runtime's median of conv is 5.0 times its minimum" in printed(streams)) == noted
    assert "each layer alone" in printed(streams)
