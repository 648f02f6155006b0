"""Models that a server can offer: a training's in torch, or an export's in onnxruntime."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from distill.checkpoints.archive import model_directory
from distill.checkpoints.load import load_network
from distill.configuration import ChunkConf, read_conf
from distill.decode.settings import DecodeConf, search_factory
from distill.decode.streams import BaseRecognizer
from distill.errors import UserError, require
from distill.export import exported
from distill.streaming import Recognizer

CHOICES_MS = (160, 320, 480, 960)


class ServedModel(Protocol):
    """A streaming student.

    Attributes:
        token_type: char, bpe, word or phn.
    """

    token_type: str

    def choices(self, chunk_ms: int) -> list[int]:
        """Chunk lengths that clients may choose; ``chunk_ms`` is one of them, or UserError is raised."""

    def recognizer(self, chunk_ms: int) -> BaseRecognizer[Any]:
        """The recogniser of a chunk length, the same one for each call."""


class TrainedModel:
    """A :class:`ServedModel` in torch, from a training's directory or a packed model."""

    def __init__(self, model: Path, decoding: DecodeConf) -> None:
        self._model = model
        network, token_list, config = load_network(model)
        self.token_type = config.get("token_type", "char")
        self._chunk_conf = read_conf(ChunkConf, "chunk_conf", config.get("chunk_conf") or None)
        self._frame_ms = network.encoder_frame_ms
        new_search = search_factory(decoding, token_list, config)
        self.recognizer = cache(
            lambda chunk_ms: Recognizer(network, token_list, config, chunk_ms, new_search=new_search)
        )

    def choices(self, chunk_ms: int) -> list[int]:
        """See :class:`ServedModel`."""
        if self._chunk_conf is None or not self.recognizer(chunk_ms).streaming:
            raise UserError(f"{self._model}: not a streaming student; give one, such as exp/student_stream")
        first, last = (frames * self._frame_ms for frames in self._chunk_conf.range_in_frames(self._frame_ms))
        choices = {ms for ms in CHOICES_MS if first <= ms <= last and ms % self._frame_ms == 0}
        return sorted(choices | {chunk_ms})


class Export:
    """A :class:`ServedModel` in onnxruntime, from a directory that ``distill export`` wrote, or a packed one."""

    def __init__(self, directory: Path, int8: bool, threads: int) -> None:
        from distill.export.recognizer import Recognizer as OnnxRecognizer  # needs onnxruntime, of an extra

        self._directory = directory
        self.recognizer = cache(
            lambda chunk_ms: OnnxRecognizer.from_pretrained(directory, chunk_ms, int8=int8, threads=threads, batch=True)
        )
        self.token_type = ""

    def choices(self, chunk_ms: int) -> list[int]:
        """See :class:`ServedModel`."""
        self.token_type = self.recognizer(chunk_ms).token_type
        return sorted(int(re.findall(r"\d+", file.name)[0]) for file in self._directory.glob("streams_*ms.onnx"))


def open_model(model: Path, decoding: DecodeConf, int8: bool, threads: int) -> ServedModel:
    """The model of a directory, or a packed one: in onnxruntime for an export, in torch otherwise.

    Raises:
        UserError: it cannot be used, or the options do not fit it.
    """
    directory = model_directory(model, "onnx" if int8 else None)
    if not exported(directory):
        if int8:
            raise UserError(f"--int8: {model} is not an export; stage 15 makes one")
        return TrainedModel(model, decoding)
    require("onnxruntime", extra="deploy")
    if decoding.decoder != "greedy":
        raise UserError(f"--decoder {decoding.decoder}: exported models decode greedily; give the training's directory")
    return Export(directory, int8, threads)
