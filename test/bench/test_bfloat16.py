"""The benchmark of bfloat16 in training: each network computes in the precision of its column."""

import json
import sys

import torch
from product_types import ProductTypes

from distill.bench import bfloat16, page


def test_both_precisions_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bfloat16, "SECONDS", 1.0)
    used = {}
    step = bfloat16.step

    def watched(network, precision):
        with ProductTypes() as products:
            seconds = step(network, precision)
        used[precision] = max(set(products.found), key=products.found.count)
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
