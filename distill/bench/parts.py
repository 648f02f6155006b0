"""What benchmarks share: options, networks of full size with random weights, audio, memory, the machine.

Torch is imported by the functions that need it: the memory of processes without torch is measured as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp
from distill.files import atomic_write

if TYPE_CHECKING:
    from distill.models.student import Student

ROOT = Path(__file__).resolve().parents[2]
STUDENTS = ("s1", "s2", "s3", "s4", "s5", "f")
TOKENS = ["<blank>", *map(str, range(31))]
CONFIG = {"token_list": TOKENS, "token_type": "word", "chunk_conf": {"chunk_ms": 480}}  # of a streaming training
TEACHERS: dict[str, dict[str, Any]] = {  # of wav2vec 2.0's configuration in Hugging Face's transformers
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
# Of Large-LV60; Base has group norm in the CNN, and its layer norms after each sum
LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


def benchmark_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the module's docstring as help and the option --output."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the figures here as well, as JSON")
    return parser


def write_json(path: Path | None, content: Any) -> None:
    """Write figures as JSON; nothing for None."""
    if path is not None:
        with atomic_write(path) as stream:
            json.dump(content, stream, indent=1)


def warn_if_busy() -> None:
    """Print a line if other programs keep this machine's cores busy, as times are then longer than they would be."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.75 * cores:
        print(f"note: a load of {load:.1f} on {cores} cores; times are those of a busy machine")


def first_utterances(data_dir: Path, count: int) -> list[np.ndarray]:
    """(n,) samples of each of the first ``count`` utterances of a data directory with wav.scp."""
    return [read_audio(path) for path in list(read_wav_scp(data_dir / "wav.scp").values())[:count]]


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) samples of noise; computation time does not depend on the audio's content."""
    return 0.05 * np.random.default_rng(seed).standard_normal(int(SAMPLE_RATE * seconds)).astype(np.float32)


def student_conf(name: str) -> dict[str, Any]:
    """Read the network_conf of a student in conf/students."""
    import yaml

    return yaml.safe_load((ROOT / "conf/students" / f"{name}.yaml").read_text())["network_conf"]


def random_student(name: str) -> Student:
    """Build a student of conf/students with random weights, in evaluation mode."""
    import torch

    from distill.models.student import Student

    torch.manual_seed(0)
    return Student(len(TOKENS), **student_conf(name)).eval()


def peak_mb() -> float:
    """Largest resident memory since :func:`reset_peak` or the start of the process (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def reset_peak() -> None:
    """Reset the peak of :func:`peak_mb` to the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of repeated measurements."""
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def machine() -> dict[str, str]:
    """Describe the machine and software of a measurement."""
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
