"""The streaming student as ONNX files for onnxruntime and sherpa-onnx, and a recogniser that needs no torch."""

from pathlib import Path

from distill.checkpoints.archive import model_directory


def exported(directory: str | Path) -> bool:
    """Whether a directory holds an export, or a packed file nothing else."""
    return any(model_directory(directory).glob("student_*ms.onnx"))
