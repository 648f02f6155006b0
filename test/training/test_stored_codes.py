"""Students of a teacher whose outputs are stored as codes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from test_training import changed, reporter
from tiny_training import STUDENT, TOKENS

from distill.checkpoints.load import build_network
from distill.configuration import DistillConf
from distill.errors import UserError
from distill.targets import codebooks as cb
from distill.targets import store
from distill.training.distill_model import DistillModel
from distill.training.teacher_targets import StoredFormat

CODES = {"distill_conf": {"hidden_loss": "codes"}}


@pytest.fixture(scope="module")
def coded(world, teacher) -> list[str]:
    """Options that hand a training the codes."""
    from distill.bin.extract_targets import main

    config = world.root / "student_of_codes.yaml"
    config.write_text(yaml.safe_dump(STUDENT))
    words = ["--teacher", str(teacher), "--teacher_targets", "stored"]
    for part in ("train", "valid"):
        out = world.root / "codes" / part
        data = ["--wav_scp", str(world.root / part / "wav.scp"), "--output", str(out), "--dtype", "codebook"]
        main(["--teacher", str(teacher), "--student_config", str(config), *data])
        words += [f"--{part}_targets", str(out)]
    return words


def batch(directory: Path, codebooks: cb.Codebooks | None) -> dict[str, torch.Tensor]:
    """The validation set's streams as a padded batch, as they are or as the numbers that they stand for."""
    streams = {}
    for name in store.read_manifest(directory)["streams"]:
        stream = store.read_targets(directory, name)
        rows = [torch.from_numpy(stream[utterance]).long() for utterance in sorted(stream)]
        streams[f"teacher_{name}_lengths"] = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        if codebooks is not None:
            layer = int(name.removeprefix("hidden_")) if name != "logits" else cb.LOGITS
            padded = codebooks.decode(layer, padded.clamp(min=0))
        streams[f"teacher_{name}"] = padded
    return streams


def test_a_student_is_compared_with_what_the_codes_stand_for(world, teacher, coded):
    directory = world.root / "codes" / "valid"
    codebooks = cb.Codebooks.load(world.root / "codes" / "codebooks.npz")
    torch.manual_seed(0)
    conf = DistillConf(**{**STUDENT["distill_conf"], "graph": str(world.root / "den.npz")})
    network = build_network(STUDENT, len(TOKENS))
    models = [
        DistillModel(network, TOKENS, conf, teacher=str(teacher), stored=StoredFormat(20, books)).eval()
        for books in (codebooks, None)
    ]
    models[1].criterion.load_state_dict(models[0].criterion.state_dict())
    streams = [batch(directory, books) for books in (None, codebooks)]
    lengths = streams[0]["teacher_logits_lengths"] * 320 + 80
    speech = 0.1 * torch.randn(len(lengths), int(lengths.max()))
    text = torch.tensor([[2]] * len(lengths)), torch.ones(len(lengths), dtype=torch.long)
    with torch.no_grad():
        first, second = (model(speech, lengths, *text, **x)[1] for model, x in zip(models, streams, strict=True))
    assert first["loss_hidden"] > 0.1 and first["loss_mmi"] > 0
    for name in ("loss", "loss_hidden", "loss_logits", "loss_mmi"):
        assert first[name].item() == pytest.approx(second[name].item(), rel=1e-5), name


def test_students_are_trained_on_codes_either_way(world, coded, online):
    decoded = world.train("student_decoded", STUDENT, *coded)
    direct = reporter(online)
    for epoch, stats in reporter(decoded).items():
        for name in ("loss_hidden", "loss_mmi"):  # a coarse reconstruction of a tiny set's frames, but no other target
            assert stats["valid"][name] == pytest.approx(direct[epoch]["valid"][name], rel=0.2), name
    predicted = world.train("student_of_codes", changed(STUDENT, **CODES), *coded)
    stats = reporter(predicted)
    assert stats[1]["train"]["loss_hidden"] == pytest.approx(math.log(256), rel=0.15)
    assert stats[2]["train"]["loss_hidden"] < stats[1]["train"]["loss_hidden"]
    state = torch.load(predicted / "latest.pth", weights_only=True)
    assert state["criterion.projections.0.weight"].shape == (3 * 256, 16)


def refused(world, config, options, capsys) -> str:
    with pytest.raises((SystemExit, UserError)) as stopped:
        world.train("student_refused", config, *options)
    return str(stopped.value) + capsys.readouterr().err


def test_what_codes_cannot_serve_is_refused(world, teacher, coded, capsys):
    online = ["--teacher", str(teacher), "--teacher_targets", "online"]
    assert "codes needs one teacher, whose targets are stored with --target_dtype codebook" in refused(
        world, changed(STUDENT, **CODES), online, capsys
    )
    raw = changed(STUDENT, distill_conf={"hidden_norm": False})
    assert "codebooks hold normalised layers" in refused(world, raw, coded, capsys)


def test_other_codebooks_than_those_of_extraction_are_refused(world, coded, capsys):
    path = world.root / "codes" / "codebooks.npz"
    before = path.read_bytes()
    try:
        for change in (lambda: path.write_bytes(before[:-1]), path.unlink):
            change()
            assert f"not made with the codebooks {path}" in refused(world, STUDENT, coded, capsys)
    finally:
        path.write_bytes(before)
