"""The benchmark of bfloat16 in training: each network computes in the precision of its column."""

import json
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.bench import bfloat16, page


class Products(TorchDispatchMode):
    """Types of the factors of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "bmm"):
            self.types.append(args[-1].dtype)
        return function(*args, **(kwargs or {}))


def test_both_precisions_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "SECONDS", 1.0)
    used = {}
    step = bfloat16.step

    def watched(network, precision):
        with Products() as products:
            seconds = step(network, precision)
        used[precision] = max(set(products.types), key=products.types.count)
        return seconds

    monkeypatch.setattr(bfloat16, "step", watched)
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["bfloat16", "--rounds", "2", "--output", str(tmp_path / "bfloat16.json")])
    try:
        bfloat16.main()
    finally:
        torch.set_num_threads(threads)
    assert used == {"float32": torch.float32, "bfloat16": torch.bfloat16}
    report = json.loads((tmp_path / "bfloat16.json").read_text())
    report["rows"][0] |= {"float32": {"median": 1.2, "least": 1.1, "largest": 1.3}}
    report["rows"][0] |= {"bfloat16": {"median": 0.8, "least": 0.7, "largest": 0.9}}
    text = "\n".join(page.bfloat16(report))
    assert "| teacher | 1.20 (1.10–1.30) s | 0.80 (0.70–0.90) s | 1.50x |" in text and "| student_full |" in text
