"""One thread, one seed."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch = pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
