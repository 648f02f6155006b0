"""Recognition while audio arrives."""

from distill.streaming.recognizer import StreamingRecognizer, accept_together

__all__ = ["StreamingRecognizer", "accept_together"]
