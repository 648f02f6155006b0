"""What the benchmarks have in common: networks of full size with random weights, noise, memory, the machine.

Neither torch nor a network is loaded before it is needed: a process that runs without has its memory measured.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from distill.models.student import Student

ROOT = Path(__file__).resolve().parents[1]
RATE = 16000
STUDENTS = ("s1", "s2", "s3", "s4", "s5", "f")
TOKENS = ["<blank>", *map(str, range(31))]
CONFIG = {"token_list": TOKENS, "token_type": "word", "chunk_conf": {"chunk_ms": 480}}  # of a streaming training
TEACHERS = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
# Large-LV60's; Base has group norm in the CNN, and norms behind its layers
LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) samples; time does not depend on what is said."""
    return 0.05 * np.random.default_rng(seed).standard_normal(int(RATE * seconds)).astype(np.float32)


def student_conf(name: str) -> dict[str, Any]:
    """network_conf of a student in conf/students."""
    import yaml

    return yaml.safe_load((ROOT / "conf/students" / f"{name}.yaml").read_text())["network_conf"]


def random_student(name: str) -> Student:
    """A student of conf/students in evaluation mode."""
    import torch

    from distill.models.student import Student

    torch.manual_seed(0)
    return Student(len(TOKENS), **student_conf(name)).eval()


def peak_mb() -> float:
    """Largest resident memory since :func:`forget_peak`, or of the process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Let the peak be what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "unknown")
    flags = next((line.split(":")[1].split() for line in info.splitlines() if line.startswith("flags")), [])
    vectors = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": f"{model}, {os.cpu_count()} cores ({', '.join(vectors)})",
        "memory": f"{memory:.0f} GiB",
        "system": platform.platform(),
        "software": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime")),
    }
