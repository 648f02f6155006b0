"""The benchmark of a GPU, on the CPU and with tiny networks: everything is measured, and the page says so."""

import json

import torch

from distill.bench import gpu
from distill.bench.device import Device, Parts


def test_every_section_is_measured(tmp_path):
    page = tmp_path / "page.md"
    gpu.main(["--device", "cpu", "--tiny", "--output", str(page)])
    report = json.loads(page.with_suffix(".json").read_text())
    assert report["failures"] == {}
    assert {name: len(rows) for name, rows in report["rows"].items()} == {
        **{"LF-MMI": 2, "Training": 4, "Extraction": 1},
        **{"Recognition": 9, "Streams": 4},
    }
    assert all(row["error"] < 1e-3 for row in report["rows"]["LF-MMI"])
    for row in report["rows"]["Training"]:
        assert 0.5 < sum(row["shares"].values()) <= 1.01 and row["audio_a_second"] > 0
        assert ("teacher" in row["shares"]) == (row["targets"] != "none")
    text = page.read_text()
    assert "on CPU, with torch" in text and all(f"\n## {name}\n" in text for name in gpu.SECTIONS)
    assert "Not measured" not in text


def test_a_section_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def broken(*_):
        yield {"layers": 1, "audio_a_second": 3.0, "kernels": 7, "waits": 0}
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setitem(gpu.SECTIONS, "Extraction", (broken, *gpu.SECTIONS["Extraction"][1:]))
    page = tmp_path / "page.md"
    options = ["--device", "cpu", "--tiny", "--output", str(page)]
    gpu.main([*options, "--sections", "Extraction", "Streams"])
    text = page.read_text()
    assert "| 1 | 3 | 7 | 0 |" in text and "Not measured to the end: RuntimeError: no such kernel\n" in text
    assert "## Streams" in text and "no such kernel\nmore" in capsys.readouterr().err


def test_operations_that_would_wait_for_a_gpu_are_counted():
    device = Device("cpu", 0.0)
    x = torch.arange(4.0)
    assert device.counts(lambda: x + 1).waits == 0
    assert device.counts(lambda: [float(v) for v in x]).waits == 4


def test_parts_add_up_what_is_within_them():
    parts = Parts(Device("cpu", 0.0))
    with parts.part("all"):
        for _ in range(3):
            parts.timed(torch.linalg.svd, "svd")(torch.randn(150, 150))
    assert 0 < parts.seconds["svd"] <= parts.seconds["all"]
