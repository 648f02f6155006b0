"""The streaming student as ONNX files for onnxruntime and sherpa-onnx, and a recogniser that needs no torch."""

from pathlib import Path


def exported(directory: str | Path) -> bool:
    """Whether a directory holds an export."""
    return any(Path(directory).glob("student_*ms.onnx"))
