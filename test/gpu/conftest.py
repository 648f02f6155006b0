"""The device of the tests on a GPU.

They compare float32 on that device with float64 on the CPU. DISTILL_TEST_DEVICE=cpu runs them without a GPU, so that
they are known to work before there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("DISTILL_TEST_DEVICE") == "cpu":
    collect_ignore = ["test_lfmmi_gpu.py"]  # of kernels, which test/lfmmi interprets on the CPU


@pytest.fixture(scope="session")
def device() -> torch.device:
    name = os.environ.get("DISTILL_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; DISTILL_TEST_DEVICE=cpu runs these tests on the CPU")
    return torch.device(name)


@pytest.fixture(autouse=True)
def exact_products(device: torch.device) -> Iterator[None]:
    """float32 is float32: products and convolutions do not round their factors to tf32, which cuDNN's do by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and not torch.cuda.is_available():
        terminalreporter.line(f"note: no CUDA device, so {len(skipped)} tests were skipped")
