"""Graphs in OpenFst's format of constant transducers, which a process can map into memory and share with others."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import kaldifst
import numpy as np
from kaldifst.lib import _kaldifst

from distill.files import naming

STATE = np.dtype(
    [("final", "<f4"), ("begin", "<u4"), ("arcs", "<u4"), ("input_epsilons", "<u4"), ("output_epsilons", "<u4")]
)
ARC = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("cost", "<f4"), ("target", "<i4")])
MAGIC, ALIGNED, EXPANDED = 2125659606, 4, 1
ALIGNMENT = 16
READ_MODE = "_Z23FST_FLAGS_fst_read_modeB5cxx11"
PIECE = 1 << 22  # arcs that are changed at a time


def create(path: Path, states: int, arcs: int, start: int = 0) -> tuple[np.memmap, np.memmap]:
    """A file of a graph and its states and arcs, mapped for writing."""
    kinds = b"".join(struct.pack("<i", len(name)) + name for name in (b"const", b"standard"))
    header = struct.pack("<i", MAGIC) + kinds + struct.pack("<iiQqqq", 2, ALIGNED, EXPANDED, start, states, arcs)
    first = -(-len(header) // ALIGNMENT) * ALIGNMENT
    second = -(-(first + states * STATE.itemsize) // ALIGNMENT) * ALIGNMENT
    with naming(path), open(path, "wb") as stream:
        # With less room than that, writing to the mapped memory would end the process.
        os.posix_fallocate(stream.fileno(), 0, second + arcs * ARC.itemsize)
        stream.write(header)
    return (
        np.memmap(path, STATE, "r+", first, (states,)),
        np.memmap(path, ARC, "r+", second, (arcs,)),
    )


def sizes(path: Path) -> tuple[int, int, int]:
    """Start, number of states and number of arcs of a file that :func:`create` made."""
    with open(path, "rb") as stream:
        header = stream.read(8 + len("const") + 4 + len("standard") + 40)
    start, states, arcs = struct.unpack("<qqq", header[-24:])
    return start, states, arcs


def write_weighted(path: Path, word_begins: np.ndarray, lm_weight: float, word_bonus: float, output: Path) -> None:
    """Write a graph with every cost times ``lm_weight``, minus ``word_bonus`` where a word begins.

    Args:
        path: graph whose costs are those of the n-gram alone.
        word_begins: bits, see :func:`distill.decode.graph_loops.topology`.
    """
    start, state_count, arc_count = sizes(path)
    states, arcs = create(output, state_count, arc_count, start)
    plain = np.memmap(path, np.uint8, "r")
    arcs_from = arcs.offset
    states[:] = plain[states.offset : states.offset + states.nbytes].view(STATE)
    ends = np.isfinite(states["final"])
    states["final"][ends] *= np.float32(lm_weight)
    for begin in range(0, arc_count, PIECE):
        end = min(arc_count, begin + PIECE)
        part = plain[arcs_from + begin * ARC.itemsize : arcs_from + end * ARC.itemsize].view(ARC).copy()
        bits = np.unpackbits(word_begins[begin // 8 : -(-end // 8)], bitorder="little")[: end - begin]
        part["cost"] = part["cost"] * np.float32(lm_weight) - bits * np.float32(word_bonus)
        arcs[begin:end] = part
    states.flush()
    arcs.flush()


def read(path: Path) -> kaldifst.StdConstFst:
    """A graph, mapped into memory where that is possible: processes of one machine then share it."""
    mode = _read_mode()
    if mode is not None:
        ctypes.memmove(mode + 16, b"map\0", 4)
        ctypes.c_uint64.from_address(mode + 8).value = 3
    try:
        return kaldifst.StdConstFst.read(str(path))
    finally:
        if mode is not None:
            ctypes.memmove(mode + 16, b"read\0", 5)
            ctypes.c_uint64.from_address(mode + 8).value = 4


def _read_mode() -> int | None:
    """Address of OpenFst's option fst_read_mode, which kaldifst has no function for.

    It is a string of libstdc++ with its value "read" in place. None if it is not where or what it is expected to be;
    files are then read instead of mapped.
    """
    try:
        address = ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(_kaldifst.__file__), READ_MODE))
    except (OSError, ValueError):
        return None
    in_place = ctypes.c_uint64.from_address(address).value == address + 16
    return address if in_place and ctypes.string_at(address + 8, 13) == b"\x04" + bytes(7) + b"read\0" else None
