"""Recognition while audio arrives."""

from distill.streaming.recognizer import StreamingRecognizer

__all__ = ["StreamingRecognizer"]
