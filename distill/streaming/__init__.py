"""Recognition of audio while it arrives."""

from distill.decode.stream_results import SHERPA_RULES, EndpointRules
from distill.streaming.recognizer import Recognizer, StreamingRecognizer, accept_together

__all__ = ["SHERPA_RULES", "EndpointRules", "Recognizer", "StreamingRecognizer", "accept_together"]
