"""Recognition of test sets in batches: what each utterance gives alone, each file read once, kept while unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from far_device import far_device, to_far
from tiny_networks import CHANNELS, TEACHER, VOCAB, speech, student, teacher

from distill.audio import SILENT
from distill.bin import decode, make_lm, utterance_lengths
from distill.bin.decoding_arguments import decode_conf
from distill.data import batches
from distill.data.batches import by_length, sample_counts
from distill.errors import UserError
from distill.models.student import Student
from distill.recognition.decode import BatchConf, decode_sets
from distill.recognition.hypotheses import HypothesisFile
from distill.scoring import score
from distill.scoring.text import read_hypotheses

ROOT = Path(__file__).parents[2]
TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
assert len(TOKENS) == VOCAB
LENGTHS = (30000, 16000, 52000, 17000, 8000, 16000, 300, 24000, 41000)
STUDENT = {"width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streaming students with both front ends, teachers with and without group norm, and two data sets."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("batches")
    chunks = {"chunk_ms": [160, 960], "left_ms": 800, "hop": 0.5}
    cnn = {"front_end": "cnn", "front_end_conf": {"channels": list(CHANNELS)}, **STUDENT}
    group = {**TEACHER, "feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
    networks = {
        "cnn": (student(), cnn, chunks),
        "fbank": (student("fbank"), {"front_end": "fbank", "front_end_conf": {"channels": 24}, **STUDENT}, chunks),
        "full": (student(), cnn, None),
        "teacher": (teacher(), {"config": {**TEACHER, "conv_dim": list(CHANNELS)}}, None),
        "group": (teacher(**group), {"config": {**group, "conv_dim": list(CHANNELS)}}, None),
    }
    for name, (network, conf, chunk_conf) in networks.items():
        with torch.no_grad():
            network.output.weight.mul_(3)
        kind = "student" if isinstance(network, Student) else "teacher"
        config = {"network": kind, "network_conf": conf, "token_list": TOKENS, "token_type": "char"}
        (root / name).mkdir()
        (root / name / "config.yaml").write_text(yaml.safe_dump({**config, "chunk_conf": chunk_conf}))
        torch.save({f"network.{k}": v for k, v in network.state_dict().items()}, root / name / "model.pth")
    for name, lengths in (("test", LENGTHS), ("other", LENGTHS[:3])):
        data = root / name
        data.mkdir()
        for number, samples in enumerate(lengths):
            soundfile.write(data / f"{number}.wav", speech(samples, number).numpy(), 16000)
        (data / "wav.scp").write_text("".join(f"u{n} {data / f'{n}.wav'}\n" for n in range(len(lengths))))
        (data / "text").write_text("".join(f"u{n} a bad cab\n" for n in range(len(lengths))))
    make_lm.main(["--text", str(root / "test/text"), "--order", "2", "--output", str(root / "lm.arpa")])
    return root


def recognised(output: Path, model: Path, data: Path, *options: str) -> dict[str, dict[str, dict]]:
    """Rows by decode directory and utterance."""
    decode.main(["--model", str(model), "--output", str(output), "--data_dirs", str(data), *options])
    return {path.parent.name: read_hypotheses(path) for path in sorted(output.glob("decode_*/test"))}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("cnn", ["--chunk_ms", "160", "480", "full"]),
        ("fbank", ["--chunk_ms", "160", "480", "full", "--decoder", "greedy", "beam", "--nbest", "2"]),
        ("full", ["--chunk_ms", "480", "full"]),
        ("teacher", []),
        ("group", []),
    ],
)
def test_a_batch_gives_what_each_utterance_gives_alone(work, tmp_path, model, options):
    options = [*options, *(["--lm", str(work / "lm.arpa")] if "beam" in options else [])]
    together = recognised(tmp_path / "together", work / model, work / "test", *options, "--sample", "1")
    alone = recognised(tmp_path / "alone", work / model, work / "test", *options, "--batch_seconds", "0")
    assert together.keys() == alone.keys() and len(together) >= 1
    texts = set()
    for folder, rows in alone.items():
        assert rows.keys() == {f"u{n}" for n in range(len(LENGTHS))}
        for utterance, expected in rows.items():
            row = together[folder][utterance]
            texts.add(row["text"])
            assert (row["text"], row["audio_s"]) == (expected["text"], expected["audio_s"])
            assert row["score"] == pytest.approx(expected["score"], abs=1e-2)
            for name in ("tokens", "words"):
                assert len(row[name]) == len(expected[name])
                for one, other in zip(row[name], expected[name], strict=True):
                    assert one == {**other, "confidence": pytest.approx(other["confidence"], abs=1e-3)}
            assert [other["text"] for other in row.get("nbest", [])] == [o["text"] for o in expected.get("nbest", [])]
        assert all("compute_s" in row for row in rows.values())
        assert sum("compute_s" in row for row in together[folder].values()) == 1
    assert len(texts) > 3, "outputs that do not differ compare nothing"


@pytest.mark.parametrize("model", ["cnn", "full", "teacher"])
def test_thirty_seconds_of_silence_give_no_words(work, tmp_path, model):
    """Networks whose weights are random put tokens out whatever they hear."""
    audio = np.zeros((2, 480000))
    audio[1] = 0.9 * SILENT * np.random.default_rng(0).uniform(-1, 1, 480000)
    lines = []
    for number, samples in enumerate([*audio, speech(16000, 1).numpy()]):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        lines.append(f"u{number} {path}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/wav.scp").write_text("".join(lines))
    for options in (["--sample", "1"], ["--batch_seconds", "0"]):
        rows = recognised(tmp_path / options[1], work / model, tmp_path / "test", *options, "--chunk_ms", "480", "full")
        for folder in rows.values():
            assert [bool(folder[f"u{number}"]["text"]) for number in range(3)] == [False, False, True]


def test_the_sample_is_shared_by_the_jobs_and_tells_the_speed(work, tmp_path):
    output = tmp_path / "out"
    for job in ("1", "2"):
        shares = ["--job", job, "--num_jobs", "2", "--sample", "3"]
        rows = recognised(output, work / "cnn", work / "test", "--chunk_ms", "480", *shares)["decode_480ms"]
    timed = [row for row in rows.values() if "compute_s" in row]
    assert (len(rows), len(timed)) == (9, 3)
    (result,) = (score.score(work / "test/text", output / "decode_480ms/test")[unit] for unit in ("wer",))
    assert (result["timed_utterances"], result["utterances"]) == (3, 9)
    assert result["timed_s"] == pytest.approx(sum(row["audio_s"] for row in timed))
    assert result["timed_s"] < result["audio_s"]
    assert result["compute_s"] == pytest.approx(sum(row["compute_s"] for row in timed))


def test_every_file_is_read_once_for_all_latencies_and_decoders(work, tmp_path, monkeypatch):
    files = []
    read_audio = batches.read_audio

    def record(path, *arguments):
        files.append(path)
        return read_audio(path, *arguments)

    monkeypatch.setattr(batches, "read_audio", record)
    options = ["--chunk_ms", "160", "320", "full", "--decoder", "greedy", "beam", "--lm", str(work / "lm.arpa")]
    recognised(tmp_path / "out", work / "fbank", work / "test", *options)
    assert sorted(files) == sorted(str(work / "test" / f"{n}.wav") for n in range(len(LENGTHS)))


def test_a_batch_that_is_not_the_stream_is_an_error_that_names_the_utterance(work, tmp_path, monkeypatch, capsys):
    recognise = Student.recognise

    def off(self, x, lengths, *chunk):
        output = recognise(self, x, lengths, *chunk)
        output.logits[..., 3] += 0.01 * (chunk[0] is not None)
        return output

    monkeypatch.setattr(Student, "recognise", off)
    options = ["--chunk_ms", "480"]
    with pytest.raises(SystemExit) as ended:
        recognised(tmp_path / "out", work / "cnn", work / "test", *options)
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and "decode_480ms: a log-posterior of frame" in error and "test: u" in error
    assert not list((tmp_path / "out").rglob("hyp.1.jsonl"))
    assert "--batch_seconds 0" in error
    recognised(tmp_path / "out", work / "cnn", work / "test", *options, "--batch_seconds", "0")


def test_a_text_that_differs_is_an_error_unless_two_are_equally_good(work, tmp_path, monkeypatch):
    """Log-posteriors within their bounds, another text: only where the best token hangs on the last digits."""
    from distill.recognition.decode import Setting

    row = Setting.row
    monkeypatch.setattr(Setting, "row", lambda *arguments: {**row(*arguments), "text": "never said"})
    with pytest.raises(UserError, match="u[0-9], decode_480ms: 'never said' in a batch"):
        decode_sets(work / "cnn", [work / "test"], [480], [decode_conf(no_options(), "greedy")], tmp_path)
    monkeypatch.setattr(
        Setting, "row", lambda self, name, samples, scores: row(self, name, samples, scores)
        if isinstance(scores, np.ndarray) else {**row(self, name, samples, scores), "text": "a tie"}
    )  # fmt: skip
    rows = decoded(work, tmp_path)
    assert all(row["text"] != "a tie" for row in rows.values()), "the sample's rows are the stream's"


def no_options():
    """Decoding options as a command without any has them."""
    import argparse

    from distill.bin.decoding_arguments import add_decoding

    parser = argparse.ArgumentParser()
    add_decoding(parser)
    return parser.parse_args([])


def decoded(work: Path, output: Path) -> dict[str, dict]:
    decode_sets(work / "cnn", [work / "test"], [480], [decode_conf(no_options(), "greedy")], output)
    return read_hypotheses(output / "decode_480ms/test")


def test_a_job_that_was_cut_off_goes_on_behind_its_last_whole_row(work, tmp_path):
    whole = recognised(tmp_path / "whole", work / "cnn", work / "test", "--chunk_ms", "160", "480")
    for folder, keep in (("decode_160ms", 3), ("decode_480ms", 5)):
        lines = (tmp_path / f"whole/{folder}/test/hyp.1.jsonl").read_text().splitlines()
        partly = tmp_path / f"cut/{folder}/test"
        partly.mkdir(parents=True)
        kept = [json.dumps({**json.loads(line), "kept": True}) + "\n" for line in lines[:keep]]
        (partly / "hyp.1.jsonl.part").write_text("".join(kept) + lines[keep][:40])
    continued = recognised(tmp_path / "cut", work / "cnn", work / "test", "--chunk_ms", "160", "480")
    for folder, keep in (("decode_160ms", 3), ("decode_480ms", 5)):
        rows = continued[folder]
        assert sum(row.pop("kept", False) for row in rows.values()) == keep
        assert {u: row["text"] for u, row in rows.items()} == {u: row["text"] for u, row in whole[folder].items()}
        assert [path.name for path in (tmp_path / f"cut/{folder}/test").glob("hyp*")] == ["hyp.1.jsonl"]


def test_a_hypothesis_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new/hyp.1.jsonl"
    with pytest.raises(ZeroDivisionError), HypothesisFile(path) as file:
        file.write({"utterance": "a"})
        raise ZeroDivisionError
    assert not path.exists()
    with HypothesisFile(path) as file:
        assert file.done == {"a"}
        file.write({"utterance": "b"})
    assert [json.loads(line)["utterance"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_batches_are_full_and_need_little_padding():
    lengths = {f"u{n}": int(length) for n, length in enumerate(np.random.default_rng(0).integers(1, 1000, 200))}
    result = by_length(lengths, 5000)
    assert sorted(u for batch in result for u in batch) == sorted(lengths)
    sizes = [max(lengths[u] for u in batch) * len(batch) for batch in result]
    assert max(sizes) <= 5000 and sum(sizes) < 1.1 * sum(lengths.values())
    assert len(result) < 1.2 * sum(lengths.values()) / 5000 + 1
    assert [len(batch) for batch in by_length({"a": 9, "b": 20, "c": 9, "d": 10}, 12)] == [1, 1, 1, 1]
    assert by_length({"a": 9, "b": 20, "c": 9, "d": 10}, 100, equal=True) == [["b"], ["d"], ["a", "c"]]


def test_lengths_are_written_in_the_order_of_wav_scp_without_opening_audio(tmp_path):
    (tmp_path / "wav.scp").write_text("b gone.wav\na gone.wav\n")
    (tmp_path / "utt2num_samples").write_text("a 7\nb 9\n")
    utterance_lengths.main(["--data", str(tmp_path), "--output", str(tmp_path / "stats/speech_shape")])
    assert (tmp_path / "stats/speech_shape").read_text() == "b 9\na 7\n"


def test_sample_counts_are_those_of_the_table_or_of_the_files(work, tmp_path):
    audio = dict(line.split() for line in (work / "test/wav.scp").read_text().splitlines())
    expected = {f"u{n}": length for n, length in enumerate(LENGTHS)}
    assert sample_counts(audio) == expected
    table = tmp_path / "utt2num_samples"
    table.write_text("u0 5\n")
    assert sample_counts(audio, table) == expected, "a table that lacks utterances is not used"
    table.write_text("".join(f"u{n} 7\n" for n in range(9)))
    assert set(sample_counts(audio, table).values()) == {7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sample", "0"], "--sample 0: must be at least 1"),
        (["--device", "cuda"], "--device cuda: torch finds no GPU"),
    ],
)
def test_options_that_cannot_be_met_are_one_line(work, tmp_path, capsys, options, message):
    if options[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        recognised(tmp_path, work / "cnn", work / "test", *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert BatchConf().sample == 20


def decode_sh(work: Path, output: Path, *options: str, sets: str = "test") -> str:
    """Run local/decode.sh on the CPU; what it printed."""
    data = " ".join(str(work / name) for name in sets.split())
    command = [ROOT / "local/decode.sh", "--nj", "2", "--ngpu", "0", *options, data, output, output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def files_of(output: Path) -> dict[str, int]:
    """Inode of every hypothesis file: another one if it was made again."""
    return {str(path.relative_to(output)): path.stat().st_ino for path in output.glob("decode_*/*/hyp.*")}


def test_hypotheses_are_kept_for_each_latency_and_set_while_their_inputs_are_unchanged(work, tmp_path):
    output = tmp_path / "model"
    shutil.copytree(work / "cnn", output)
    decode_sh(work, output, "--chunk-ms", "160 480")
    first = files_of(output)
    assert len(first) == 4
    # Another latency, another set, another number of jobs: only what is new
    assert "2 results of a set and chunk length are there already" in decode_sh(
        work, output, "--chunk-ms", "160 480 full"
    )
    second = files_of(output)
    assert len(second) == 6 and first.items() <= second.items()
    decode_sh(work, output, "--chunk-ms", "480", "--nj", "3", sets="test other")
    third = files_of(output)
    assert len(third) == 9 and second.items() <= third.items()
    assert len(read_hypotheses(output / "decode_480ms/other")) == 3
    decode_sh(work, output, "--chunk-ms", "160 480", sets="other test")
    assert third.items() <= files_of(output).items() and len(files_of(output)) == 11
    # What changes one set's input is done again there alone
    fourth = files_of(output)
    short = tmp_path / "other"
    shutil.copytree(work / "other", short)
    (short / "wav.scp").write_text("".join((short / "wav.scp").read_text().splitlines(keepends=True)[:2]))
    command = [ROOT / "local/decode.sh", "--nj", "2", "--ngpu", "0", "--chunk-ms", "480", f"{work / 'test'} {short}"]
    said = subprocess.run([*command, output, output], capture_output=True, text=True, check=True).stdout
    assert "decode_480ms/other: the model, the data or the options changed; done again" in said
    fifth = files_of(output)
    changed = {name for name in fourth if fourth[name] != fifth.get(name)}
    assert changed and all(name.startswith("decode_480ms/other/") for name in changed)
    assert len(read_hypotheses(output / "decode_480ms/other")) == 2
    # Other weights: everything that is asked for
    weights = torch.load(output / "model.pth", weights_only=True)
    weights["network.output.bias"] += 0.1
    torch.save(weights, output / "model.pth")
    decode_sh(work, output, "--chunk-ms", "160 480")
    sixth = files_of(output)
    assert all(fifth[name] != sixth[name] for name in first)
    assert sixth["decode_full/test/hyp.1.jsonl"] == fifth["decode_full/test/hyp.1.jsonl"]
    assert "redo" not in decode_sh(work, output, "--chunk-ms", "160", "--redo", "true")
    assert files_of(output)["decode_160ms/test/hyp.1.jsonl"] != sixth["decode_160ms/test/hyp.1.jsonl"]


def test_jobs_that_were_cut_off_are_continued_with_their_number_and_begun_anew_with_another(work, tmp_path):
    output = tmp_path / "model"
    shutil.copytree(work / "cnn", output)
    decode_sh(work, output, "--chunk-ms", "480")
    folder = output / "decode_480ms/test"
    (folder / "text").unlink()
    os.rename(folder / "hyp.2.jsonl", folder / "hyp.2.jsonl.part")
    first = (folder / "hyp.1.jsonl").stat().st_ino
    decode_sh(work, output, "--chunk-ms", "480")
    assert (folder / "hyp.1.jsonl").stat().st_ino == first and len(read_hypotheses(folder)) == len(LENGTHS)
    (folder / "text").unlink()
    decode_sh(work, output, "--chunk-ms", "480", "--nj", "1")
    assert [path.name for path in folder.glob("hyp.*")] == ["hyp.1.jsonl"]
    assert len(read_hypotheses(folder)) == len(LENGTHS)


@pytest.mark.parametrize("model", ["cnn", "fbank", "teacher"])
def test_the_device_is_waited_for_once_a_batch_and_never_for_an_utterance(work, tmp_path, monkeypatch, model):
    """On a device that is not there, beside the one utterance that is recognised alone."""
    from distill.recognition import decode as module

    loaded = module.load_network(work / model)
    monkeypatch.setattr(module, "load_network", lambda path, device: loaded)
    with far_device():
        to_far(loaded.network)
    chunks = [None] if model == "teacher" else [160, 480, None]
    waits = {}
    for name in ("other", "test"):  # three utterances and nine
        with far_device() as waited:
            greedy = decode_conf(no_options(), "greedy")
            decode_sets(work / model, [work / name], chunks, [greedy], tmp_path, how=BatchConf(sample=1))
        waits[name] = dict(waited)
    assert waits["other"] == waits["test"]
    copies = sum(count for line, count in waits["test"].items() if line.startswith("distill/checkpoints/device.py"))
    assert copies == 3 * len(chunks), "best tokens and their scores; and the log-posteriors of the one utterance"
    rows = read_hypotheses(tmp_path / "decode_full/test")
    assert len(rows) == len(LENGTHS) and any(row["text"] for row in rows.values())
