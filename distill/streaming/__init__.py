"""Recognition of audio while it arrives."""

from distill.streaming.recognizer import StreamingRecognizer, accept_together

__all__ = ["StreamingRecognizer", "accept_together"]
