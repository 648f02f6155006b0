"""Stage 8 with --dtype codebook: codebooks once, jobs, merge, and what makes which of them anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_extraction import save_teacher

from distill.audio import read_audio
from distill.bin import extract_targets
from distill.checkpoints.load import load_network
from distill.errors import UserError
from distill.targets import codebooks as cb
from distill.targets import store
from distill.targets.extract import Extraction, check

UTTERANCES = 130


def options(teacher: str = "teacher", data: str = "train") -> list[str]:
    return [
        *("--teacher", teacher, "--wav_scp", f"{data}.scp", "--output", f"targets/{data}"),
        *("--dtype", "codebook", "--layers", "2,4", "--num_jobs", "2"),
    ]


def stage_8(**of: str) -> None:
    for mode in (["--plan"], ["--train_codebooks"], ["--job", "2"], ["--job", "1"], ["--merge"], ["--verify"]):
        extract_targets.main([*options(**of), *mode])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("codes")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(UTTERANCES):
        path = place / f"{number:03d}.wav"
        soundfile.write(path, rng.uniform(-0.3, 0.3, int(rng.integers(3000, 9000))), 16000)
        lines.append(f"{path.stem} {path}\n")
    (place / "train.scp").write_text("".join(lines))
    (place / "valid.scp").write_text("".join(lines[:9]))
    save_teacher(place / "teacher", seed=0)
    save_teacher(place / "other", seed=1)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        stage_8()
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder: str) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(Path(folder).rglob("*.ark")) + sorted(Path(folder).rglob("*.npz"))
    }


def test_what_is_stored_stands_for_the_teachers_outputs(place):
    codebooks = cb.Codebooks.load(Path("targets/codebooks.npz"))
    network = load_network("teacher").network
    layers = {layer: store.read_targets("targets/train", f"hidden_{layer:02d}") for layer in (2, 4)}
    logits = store.read_targets("targets/train", "logits")
    assert len(logits) == UTTERANCES
    for number in (0, 64, UTTERANCES - 1):
        speech = torch.from_numpy(read_audio(f"{number:03d}.wav", 16000))[None]
        with torch.no_grad():
            output = network(speech, torch.tensor([speech.shape[1]]))
        for layer in (2, 4):
            codes = layers[layer][f"{number:03d}"]
            assert codes.dtype == np.int16 and codes.min() >= 0 and codes.max() <= 255
            decoded = codebooks.decode(layer, torch.from_numpy(codes))
            expected = cb.compared(layer, output.hidden[layer - 1][0])
            assert decoded.shape == expected.shape
            assert (decoded - expected).square().mean() < 0.3 * expected.square().mean()
        decoded = codebooks.decode(cb.LOGITS, torch.from_numpy(logits[f"{number:03d}"]))
        expected = cb.compared(cb.LOGITS, output.logits[0])
        assert (decoded - expected).square().mean() < 0.1 * expected.square().mean()


def test_the_plan_is_what_is_written(place):
    extraction = Extraction(Path("teacher"), Path("train.scp"), Path("targets/train"), layers="2,4", dtype="codebook")
    written = sum(len(data) for name, data in contents("targets/train").items() if name.endswith(".ark"))
    # Wav2vec 2.0 has a frame less than an utterance has pieces of 20 ms, or none less.
    assert written <= extraction.planned(extraction.streams, "codebook") <= written + 11 * UTTERANCES


def test_bytes_do_not_depend_on_the_jobs_and_codebooks_are_trained_once(place):
    before = contents("targets")
    shutil.rmtree("targets/train/data")
    extract_targets.main([*options(), "--job", "1"])
    extract_targets.main([*options(), "--job", "2"])
    extract_targets.main([*options(), "--merge"])
    assert contents("targets") == before
    shutil.rmtree("targets")
    extract_targets.main(options())
    assert contents("targets") == before


def test_the_next_data_set_uses_the_same_codebooks(place, capsys):
    before = Path("targets/codebooks.npz").read_bytes()
    stage_8(data="valid")
    assert "codebooks.npz: there already" in capsys.readouterr().out
    assert Path("targets/codebooks.npz").read_bytes() == before
    a, b = (store.read_manifest(f"targets/{name}")["codebooks"] for name in ("train", "valid"))
    assert a == b
    for stream in ("hidden_02", "logits"):
        train, valid = (store.read_targets(f"targets/{name}", stream) for name in ("train", "valid"))
        same = [(train[utterance] == valid[utterance]).mean() for utterance in valid]
        assert len(same) == 9 and min(same) > 0.95  # a batch of other utterances may round otherwise


def test_another_teacher_has_codebooks_and_shards_of_its_own(place):
    before = contents("targets")
    stage_8(teacher="other")
    after = contents("targets")
    assert before.keys() == after.keys() and not any(before[name] == after[name] for name in before)


def test_jobs_without_codebooks_and_a_check_of_damaged_ones_say_so(place, capsys):
    path = Path("targets/codebooks.npz")
    path.write_bytes(path.read_bytes()[:-50])
    for mode in (["--job", "1"], ["--check"]):
        with pytest.raises(SystemExit) as stopped:
            extract_targets.main([*options(), *mode])
        assert stopped.value.code == 2
        assert "codebooks.npz: codebooks missing or damaged; extract again (stage 8)" in capsys.readouterr().err
    stage_8()


def test_a_check_notices_shards_of_earlier_codebooks(place):
    path = Path("targets/codebooks.npz")
    codebooks = cb.Codebooks.load(path)
    codebooks.layers[2] = codebooks.layers[2] * 1.5
    codebooks.save(path)
    extraction = Extraction(Path("teacher"), Path("train.scp"), Path("targets/train"), layers="2,4", dtype="codebook")
    with pytest.raises(UserError, match="made with codebooks"):
        check(extraction)
