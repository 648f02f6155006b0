"""Distil a large wav2vec 2.0 recogniser into a small streaming one, inside ESPnet."""

__version__ = "0.1.0"
