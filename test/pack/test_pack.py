"""A packed model is the model: same outputs, same text, from any directory."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, TEACHER, speech, student, teacher

from distill.bin import decode, pack, transcribe
from distill.checkpoints.load import load_network, network_shape
from distill.streaming import Recognizer

TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
CONF = {"front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7}
SECRET = "/home/bob/secret"


@pytest.fixture(scope="module")
def exp(tmp_path_factory) -> Path:
    """Trainings as the trainer leaves them, with its paths, and results."""
    expdir = tmp_path_factory.mktemp("exp")
    for system, network in (("student_stream", student()), ("teacher", teacher())):
        folder = expdir / system
        folder.mkdir()
        conf = CONF if system == "student_stream" else {"config": {**TEACHER, "_name_or_path": f"{SECRET}/hf"}}
        config = {
            "network": system.split("_")[0],
            "network_conf": conf,
            "token_list": TOKENS,
            "token_type": "char",
            "chunk_conf": {"chunk_ms": [160, 960], "left_ms": 2000} if system == "student_stream" else None,
            "distill_conf": {"alpha": 0.8, "graph": f"{SECRET}/den.npz"},
            "output_dir": f"{SECRET}/exp",
            "train_data_path_and_name_and_type": [[f"{SECRET}/wav.scp", "speech", "sound"]],
            "version": "202611",
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        state = {f"network.{key}": value for key, value in network.state_dict().items()}
        state["criterion.projections.0.weight"] = torch.zeros(2, 2)  # of the loss alone
        torch.save(state, folder / "valid.loss.ave.pth")
    row = {"test_set": "test", "decoder": "greedy", "wer": 4.0, "wer_low": 3.0, "wer_high": 5.0, "params": 1000000}
    row["speakers"] = {SECRET: [10, 1]}
    rows = [{**row, "system": "teacher", "latency_ms": None}]
    rows += [{**row, "system": "student_stream", "latency_ms": 480, "relative_loss": 0.0, "lm": f"{SECRET}/lm.arpa"}]
    rows += [{**row, "system": "student_stream", "latency_ms": 480, "wer": None}]  # phones alone are in no table
    (expdir / "results.json").write_text(json.dumps({"recipe": "egs2/x", "rows": rows}))
    (expdir / "wavs").mkdir()
    scp = []
    for seed in range(3):
        path = expdir / f"wavs/{seed}.wav"
        soundfile.write(path, speech(20000 + 9000 * seed, seed).numpy(), 16000)
        scp.append(f"u{seed} {path}\n")
    (expdir / "wavs/wav.scp").write_text("".join(scp))
    return expdir


@pytest.fixture(scope="module")
def packed(exp, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "student.zip"
    results = ["--results", str(exp / "results.json"), "--license", "cc-by-4.0", "--language", "en"]
    pack.main(["--model", str(exp / "student_stream"), *results, "--output", str(output)])
    return output


@pytest.mark.parametrize("system", ["student_stream", "teacher"])
def test_outputs_are_the_same(exp, tmp_path, system):
    pack.main(["--model", str(exp / system), "--output", str(tmp_path / "x.zip")])
    before, after = load_network(exp / system), load_network(tmp_path / "x.zip")
    assert after.token_list == TOKENS and after.config["token_type"] == "char"
    audio = speech(16000)[None]
    with torch.no_grad():
        outputs = [loaded.network(audio, torch.tensor([16000])).logits for loaded in (before, after)]
    assert torch.equal(*outputs)
    assert network_shape(tmp_path / "x.zip") == network_shape(exp / system)


def test_streams_and_transcribes_from_any_directory(exp, packed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wav = str(exp / "wavs/1.wav")
    printed = []
    for model in (exp / "student_stream", packed):
        transcribe.main(["--model", str(model), "--json", wav])
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        printed.append([(event["event"], event["text"], event["tokens"]) for event in events])
    assert printed[0] == printed[1] and len(printed[0]) > 2
    recognizer = Recognizer.from_pretrained(packed, chunk_ms=160)
    assert recognizer.streaming
    recognizer.recognize(np.zeros(8000, np.float32))


def test_decodes_as_the_training_does(exp, packed, tmp_path):
    options = ["--data_dirs", str(exp / "wavs"), "--chunk_ms", "480"]
    decode.main(["--model", str(exp / "student_stream"), *options])
    decode.main(["--model", str(packed), *options, "--output", str(tmp_path / "out")])
    texts = []
    for folder in (exp / "student_stream", tmp_path / "out"):
        lines = (folder / "decode_480ms/wavs/hyp.1.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["text"] for line in lines])
    assert texts[0] == texts[1] and any(texts[0])
    with pytest.raises(SystemExit) as end:
        decode.main(["--model", str(packed), *options])
    assert end.value.code == 2


def test_same_bytes_again_and_no_paths(exp, packed, tmp_path):
    again = tmp_path / "student.zip"
    os.utime(exp / "student_stream/valid.loss.ave.pth", (1, 1))
    results = ["--results", str(exp / "results.json"), "--license", "cc-by-4.0", "--language", "en"]
    pack.main(["--model", str(exp / "student_stream"), *results, "--output", str(again)])
    assert again.read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert SECRET.encode() not in content and str(exp).encode() not in content, name
        assert b"projections" not in archive.read("exp/student_stream/model.safetensors")
        assert json.loads(archive.read("exp/results.json"))["rows"][1]["lm"] == "lm.arpa"


def test_card_has_the_front_matter_of_hubs(packed):
    with zipfile.ZipFile(packed) as archive:
        card = archive.read("README.md").decode()
        assert "cc-by-4.0" in archive.read("LICENSE.txt").decode()
    _, front, body = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["license"], about["language"]) == ("cc-by-4.0", "en")
    assert {"espnet", "automatic-speech-recognition", "streaming"} <= set(about["tags"])
    result = about["model-index"][0]["results"][0]
    assert result["metrics"][0] == {"type": "wer", "value": 4.0, "name": "WER, 480 ms"}
    assert "| test | student_stream | 480 ms | greedy | 4.00 (3.0..5.0) | +0.0 |" in body
    assert "--model student.zip" in body


def test_espnets_own_unpack_reads_it(packed, tmp_path, capsys):
    pack_funcs = pytest.importorskip("espnet2.main_funcs.pack_funcs")
    files = pack_funcs.unpack(packed, tmp_path / "zoo")
    assert Path(files["asr_train_config"]).is_file() and Path(files["asr_model_file"]).is_file()
    unpacked = load_network(Path(files["asr_model_file"]).parent).network
    for key, value in load_network(packed).network.state_dict().items():
        assert torch.equal(unpacked.state_dict()[key], value)


def test_a_bpe_model_comes_along(exp, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    config = yaml.safe_load((exp / "student_stream/config.yaml").read_text())
    bpe = tmp_path / "lists/bpe.model"
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "token_type": "bpe", "bpemodel": str(bpe)}))
    (folder / "model.pth").write_bytes((exp / "student_stream/valid.loss.ave.pth").read_bytes())
    command = ["--model", str(folder), "--output", str(tmp_path / "x.zip")]
    with pytest.raises(SystemExit):
        pack.main(command)
    assert not (tmp_path / "x.zip").exists()
    bpe.parent.mkdir()
    bpe.write_bytes(b"pieces")
    pack.main(command)
    bpe.unlink()
    assert Path(load_network(tmp_path / "x.zip").config["bpemodel"]).read_bytes() == b"pieces"


NO_TORCH = """
import sys
sys.modules["torch"] = None  # cannot be imported
import soundfile
from distill.export import exported
from distill.export.recognizer import Recognizer
packed, wav = sys.argv[1:]
assert exported(packed)
stream = Recognizer.from_pretrained(packed, chunk_ms=480).create_stream()
stream.accept(soundfile.read(wav, dtype="float32")[0])
partials = stream.decode()
stream.finish()
print(len(partials), stream.decode()[-1]["text"])
"""


def test_an_export_alone_needs_no_torch(exp, tmp_path):
    from distill.export.model import metadata, save, shapes_for, step_model

    folder = tmp_path / "export"
    folder.mkdir()
    command = ["--export", str(folder), "--output", str(tmp_path / "x.zip")]
    with pytest.raises(SystemExit):
        pack.main(command)
    network, tokens, config = load_network(exp / "student_stream")
    shapes = shapes_for(network, config, 480, exp)
    save(step_model(network, shapes), folder / "student_480ms.onnx", metadata(network, shapes, tokens, "char", 480))
    (folder / ".lock").write_bytes(b"")
    (folder / "parity.json").write_text(json.dumps({"data": [f"{SECRET}/test"]}))
    pack.main(command)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        graph = "exp/export/student_480ms.onnx"
        parity = "exp/export/parity.json"
        assert sorted(archive.namelist()) == ["LICENSE.txt", "README.md", parity, graph, "meta.yaml"]
        assert json.loads(archive.read(parity)) == {"data": ["test"]}
        assert os.getcwd().encode() not in archive.read(graph)
    wav = str(exp / "wavs/1.wav")
    command = [sys.executable, "-c", NO_TORCH, str(tmp_path / "x.zip"), wav]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    stream = Recognizer.from_pretrained(exp / "student_stream").create_stream()
    stream.accept(soundfile.read(wav, dtype="float32")[0])
    partials = stream.decode()
    stream.finish()
    assert printed.stdout.rstrip("\n") == f"{len(partials)} {stream.decode()[-1]['text']}" and partials


def test_a_packed_model_with_an_export_is_the_training_unless_asked(exp, tmp_path):
    from distill.export import exported
    from distill.export.recognizer import model_path

    (tmp_path / "export").mkdir()
    (tmp_path / "export/student_480ms.onnx").write_bytes(b"graph")
    both = ["--model", str(exp / "student_stream"), "--export", str(tmp_path / "export")]
    pack.main([*both, "--output", str(tmp_path / "x.zip")])
    assert not exported(tmp_path / "x.zip")
    assert model_path(tmp_path / "x.zip", 480).read_bytes() == b"graph"
    assert load_network(tmp_path / "x.zip").token_list == TOKENS


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ([], "give --model, --export or both"),
        (["--model", "nowhere"], "nowhere/config.yaml: not found"),
        (["--export", "e", "--results", "lost.json"], "lost.json: not found"),
        (["--export", "e", "--license_file", "lost.txt"], "lost.txt: not a text file"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, monkeypatch, options, printed):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        pack.main([*options, "--output", "x.zip"])
    assert end.value.code == 2
    assert printed in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_names_and_values_in_a_card_are_shown_as_they_are(exp, tmp_path):
    """Results and configuration cannot leave their place in the card."""
    model = tmp_path / "student_stream"
    shutil.copytree(exp / "student_stream", model)
    config = yaml.safe_load((model / "config.yaml").read_text())
    config |= {"optim": "x\n```\n</details><script>", "optim_conf": {"a": "````"}}
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    results = json.loads((exp / "results.json").read_text())
    results["recipe"] = "a\n# b <script> [x](y)"
    results["rows"] = [{**row, "test_set": "test | <script>"} for row in results["rows"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    options = ["--results", str(tmp_path / "results.json"), "--output", str(tmp_path / "x.zip")]
    pack.main(["--model", str(model), *options])
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        card = archive.read("README.md").decode()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["model-index"][0]["name"].endswith(results["recipe"])
    before, code, after = body.split("`````")
    assert code.startswith("yaml\n") and "</details><script>" in code
    assert "<script>" not in before + after and "\n# b" not in before and "\\[x\\](y)" in before
    assert "test \\| &lt;script&gt;" in before


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 5}, {"rows": [1]}, {"rows": [{"system": "teacher"}]}, {"recipe": 5}, {"recipe": None},
        {"rows": [{"system": "teacher", "test_set": "t", "decoder": "x", "latency_ms": 1, "wer": None, "params": 1}]},
        {"rows": [{"system": "teacher", "test_set": "t", "decoder": "x", "latency_ms": "1", "wer": 1, "params": 1}]},
    ],
)  # fmt: skip
def test_results_that_are_none_are_refused_in_one_line(exp, tmp_path, capsys, change):
    results = {**json.loads((exp / "results.json").read_text()), **change}
    (tmp_path / "results.json").write_text(json.dumps(results))
    options = ["--results", str(tmp_path / "results.json"), "--output", str(tmp_path / "x.zip")]
    with pytest.raises(SystemExit) as end:
        pack.main(["--model", str(exp / "student_stream"), *options])
    assert end.value.code == 2 and "results.json: not the results of an experiment" in capsys.readouterr().err
    (tmp_path / "bench.json").write_text('{"latency": [{"chunk_ms": "x"}]}')
    options = ["--bench", str(tmp_path / "bench.json"), "--output", str(tmp_path / "x.zip")]
    with pytest.raises(SystemExit):
        pack.main(["--model", str(exp / "student_stream"), *options])
    assert "bench.json: not the measurements of an experiment" in capsys.readouterr().err


@pytest.mark.parametrize(("chunk_ms", "warns"), [("160", False), ("960", False), ("1200", True), ("80", True)])
def test_chunks_unlike_those_of_the_training_are_warned_of(packed, exp, capsys, chunk_ms, warns):
    transcribe.main(["--model", str(packed), "--chunk_ms", chunk_ms, str(exp / "wavs/0.wav")])
    warning = f"warning: --chunk_ms {chunk_ms}: the model was trained with chunks of 160 to 960 ms"
    assert (warning in capsys.readouterr().err) == warns
