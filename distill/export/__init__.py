"""Export of streaming students to ONNX for onnxruntime and sherpa-onnx, and a recogniser that does not need torch."""

from pathlib import Path

from distill.checkpoints.archive import model_directory


def exported(directory: str | Path) -> bool:
    """Whether a directory is an export, or a packed model has an export and no training."""
    return any(model_directory(directory).glob("student_*ms.onnx"))
