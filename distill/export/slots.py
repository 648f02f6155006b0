"""Many streams of an exported student as one batch in onnxruntime: the caches of all of them, and a slot for each."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from distill.errors import UserError
from distill.export.recognizer import ExportedModel, UnreadAudio


class SlotModel(ExportedModel):
    """An exported :class:`distill.export.slot_step.SlotStep` with its metadata and the caches of its streams.

    Args:
        path: a streams_*.onnx that ``distill export`` wrote.
        threads: CPU threads of a step.

    Raises:
        UserError: the file is no such model, its metadata are not those of its network, or its weights are not finite.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        super().__init__(path, threads)
        self._free: list[int] = []
        self._slots = 0
        self._rings: dict[str, onnxruntime.OrtValue] = {}
        self._binding = self.session.io_binding()
        (log_probs,) = self.compute([self._silent_stream()])
        if not np.isfinite(log_probs).all():
            raise UserError(f"{path}: its log-posteriors are not finite numbers; export it again")

    def new_stream(self) -> SlotStream:
        """The state before the first sample of a stream."""
        return SlotStream(self)

    def _silent_stream(self) -> SlotStream:
        stream = SlotStream(self)
        stream.steps = 0
        stream.receive(np.zeros(self.metadata.samples, np.float32))
        return stream

    def _check_graph(self) -> None:
        """Check that inputs and outputs are those of a step of many streams with these metadata."""
        about = self.metadata
        inputs = {tensor.name: (tensor.type, tensor.shape) for tensor in self.session.get_inputs()}
        outputs = {tensor.name: (tensor.type, tensor.shape) for tensor in self.session.get_outputs()}
        numbers = "tensor(float)", "tensor(int64)"
        try:
            layers, past, width = inputs["conv"][1][1:]
            heads, ring, dim = inputs["keys_0"][1][1:]
            sizes = [layers, past, width, heads, ring, dim]
        except (KeyError, ValueError):
            raise UserError("its inputs are not those of a step of many streams") from None
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise UserError("its inputs have no fixed shapes")
        state = {"conv": (numbers[0], ["streams", layers, past, width])}
        if about.lookahead:
            state["ahead"] = numbers[0], ["streams", about.lookahead, width]
        for name in (f"{kind}_{layer}" for layer in range(layers) for kind in ("keys", "values")):
            state[name] = numbers[0], ["slots", heads, ring, dim]
        expected = {
            "samples": (numbers[0], ["streams", about.samples]),
            "slots": (numbers[1], ["streams"]),
            "past": (numbers[1], ["streams"]),
            "origin": (numbers[0], ["streams", 2, dim // 2]),
        }
        if inputs != expected | state:
            raise UserError("its inputs are not those of a step of many streams")
        log_probs = (numbers[0], ["streams", about.chunk * about.logits_per_frame, len(self.token_list)])
        if outputs != {"log_probs": log_probs, **{f"next_{name}": kind for name, kind in state.items()}}:
            raise UserError("its outputs are not those of a step of many streams with these tokens")
        self.check_state(4 * (2 * layers * math.prod((heads, ring, dim)) + math.prod((layers, past, width))))
        self._ring, self._history = ring, (heads, ring, dim)
        self.conv_shape, self.ahead_shape = (layers, past, width), (about.lookahead, width)
        self._frequencies = 10000.0 ** (-np.arange(0, dim, 2) / dim)

    def take_slot(self) -> int:
        """A slot that no stream has."""
        if not self._free:
            self._grow(max(1, 2 * self._slots))
        return self._free.pop(0)

    def release(self, slot: int) -> None:
        """Give a slot back. Any thread may do this at any time: what is in a free slot is not read."""
        self._free.append(slot)

    def _grow(self, slots: int) -> None:
        """Make room for so many streams; those that are there keep what they have."""
        for layer in range(self.conv_shape[0]):
            for name in (f"keys_{layer}", f"values_{layer}"):
                rings = np.zeros((slots, *self._history), np.float32)
                if name in self._rings:
                    rings[: self._slots] = self._rings[name].numpy()
                value = onnxruntime.OrtValue.ortvalue_from_numpy(rings)
                self._rings[name] = value
                # A step has read what it overwrites, so both may share memory: nothing is copied.
                self._binding.bind_ortvalue_input(name, value)
                self._binding.bind_ortvalue_output(f"next_{name}", value)
        self._free += range(self._slots, slots)
        self._slots = slots

    def compute(self, streams: Sequence[SlotStream]) -> list[np.ndarray]:
        """Log-posteriors (t, V) of the next step of each stream, each of which must be ready.

        None while a step only fills a stream's first look-ahead.
        """
        past = np.array([stream.past for stream in streams])
        angles = past[:, None] * self._frequencies
        values = {
            "samples": np.stack([stream.next_samples() for stream in streams]),
            "slots": np.array([stream.slot for stream in streams]),
            "past": np.where(past < self._ring, past, past % self._ring + self._ring),
            "origin": np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32),
            "conv": np.stack([stream.conv for stream in streams]),
        }
        outputs = ["log_probs", "next_conv"]
        if self.metadata.lookahead:
            values["ahead"] = np.stack([stream.ahead for stream in streams])
            outputs.append("next_ahead")
        for name, value in values.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in outputs:
            self._binding.bind_output(name)
        try:
            self.session.run_with_iobinding(self._binding)
        except Exception as error:  # whatever onnxruntime raises
            raise UserError(f"the model cannot be computed ({type(error).__name__}); export it again") from None
        # Behind the caches, which were bound before.
        log_probs, conv, *ahead = (value.numpy() for value in self._binding.get_outputs()[-len(outputs) :])
        results = []
        for number, stream in enumerate(streams):
            if ahead:
                stream.ahead = ahead[0][number].copy()
            if stream.steps > 0:
                stream.conv = conv[number].copy()
                stream.past += self.metadata.chunk
            results.append(log_probs[number] if stream.steps > 0 else log_probs[number, :0])
        return results


class SlotStream(UnreadAudio):
    """The state of a stream: its audio, its slot, and what a step keeps of it beside the slot.

    Args:
        model: may be shared.

    Attributes:
        slot: of the model's caches; it is given back when the stream is no longer in use.
        past: frames computed so far.
        conv, ahead: see :mod:`distill.export.slot_step`.
    """

    def __init__(self, model: SlotModel) -> None:
        super().__init__(model.metadata)
        self.slot, self.past = model.take_slot(), 0
        self.conv = np.zeros(model.conv_shape, np.float32)
        self.ahead = np.zeros(model.ahead_shape, np.float32)
        weakref.finalize(self, model.release, self.slot).atexit = False
