"""Posteriors as Kaldi matrices: Kaldi's decoders find in them what the decoder wfst finds."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import kaldi_decoder
import kaldifst
import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, TALKATIVE_SEED, TEACHER, VOCAB, speech, student, teacher

from distill.audio import read_audio
from distill.checkpoints.load import LoadedNetwork, load_network
from distill.decode.estimate_lm import write_arpa
from distill.decode.settings import DecodeConf
from distill.errors import UserError
from distill.recognition.networks import chunk_of
from distill.recognition.posteriors import (
    compute_posteriors,
    log_likelihoods,
    log_posteriors,
    mean_posteriors,
    read_priors,
    write_matrices,
    write_priors,
)
from distill.recognition.write_decoding_graph import write_decoding_graph
from distill.streaming import StreamingRecognizer

ROOT = Path(__file__).parents[2]
TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
# The untrained teacher puts out little but tokens 3, 4 and 5.
TEACHER_TOKENS = ["<blank>", "<unk>", "e", "b", "<space>", "a", "f", "g", "d", "c", "<sos/eos>"]
LM_WEIGHT, WORD_BONUS = 0.3, 0.5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming student, a teacher, five utterances of unequal lengths, and an n-gram."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("posteriors")
    size = {"front_end": "cnn", "front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2}
    confs = {
        "student": {"network_conf": {**size, "ffn": 48, "kernel": 7}, "chunk_conf": {"chunk_ms": 480, "left_ms": 2000}},
        "teacher": {"network_conf": {"config": {**TEACHER, "conv_dim": list(CHANNELS)}}},
    }
    loud = teacher()
    with torch.no_grad():
        loud.output.weight.mul_(8)
    for name, network, tokens in (("student", student(seed=TALKATIVE_SEED), TOKENS), ("teacher", loud, TEACHER_TOKENS)):
        (root / name).mkdir()
        config = {"token_list": tokens, "token_type": "char", "network": name, **confs[name]}
        (root / name / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save({f"network.{k}": v for k, v in network.state_dict().items()}, root / name / "model.pth")
    (root / "data").mkdir()
    with open(root / "data/wav.scp", "w") as scp:
        for number, samples in enumerate((30000, 16000, 52000, 17000, 8000)):
            soundfile.write(root / f"data/{number}.wav", speech(samples, number).numpy(), 16000)
            scp.write(f"u{number} {root}/data/{number}.wav\n")
    write_arpa([["a", "bad", "cab"], ["ab", "a"], ["dab"], ["g", "f", "e"], ["b", "a", "b"]], 2, root / "lm.arpa")
    return root


def audio_of(work: Path) -> dict[str, str]:
    return dict(line.split() for line in (work / "data/wav.scp").read_text().splitlines())


def decode_with_kaldi(graph_dir: Path, matrices: dict[str, np.ndarray]) -> dict[str, str]:
    """Words of the best path through a graph file, by Kaldi's faster decoder."""
    words = [line.split()[0] for line in (graph_dir / "words.txt").read_text().splitlines()]
    graph = kaldifst.StdVectorFst.read(str(graph_dir / "TLG.fst"))
    decoder = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=16, max_active=7000))
    texts = {}
    for utterance, matrix in matrices.items():
        decoder.decode(kaldi_decoder.DecodableCtc(matrix))
        found, path = decoder.get_best_path(use_final_probs=True)
        assert found
        texts[utterance] = " ".join(words[label] for label in kaldifst.get_linear_symbol_sequence(path)[2])
    return texts


@pytest.mark.parametrize(("model", "chunk_ms"), [("student", None), ("student", 480), ("teacher", None)])
def test_kaldi_decoder_finds_the_words_of_the_decoder_wfst(work, model, chunk_ms):
    graph = work / f"graph_{model}"
    conf = DecodeConf("wfst", lm=work / "lm.arpa", lm_weight=LM_WEIGHT, word_bonus=WORD_BONUS)
    assert write_decoding_graph(work / model, conf, graph) > 1
    assert compute_posteriors(work / model, work / "data", f"ark:{work}/post.ark", chunk_ms=chunk_ms) == 5
    matrices = dict(kaldiio.load_ark(str(work / "post.ark")))
    recognizer = StreamingRecognizer.from_pretrained(work / model, chunk_ms, decoding=conf)
    expected = {}
    for utterance, path in audio_of(work).items():
        recognizer.accept_waveform(read_audio(path))
        expected[utterance] = recognizer.finish()["text"]
        recognizer.reset()
    assert len({text for text in expected.values() if text}) >= 2
    assert decode_with_kaldi(graph, matrices) == expected


def test_posteriors_are_normalised_and_independent_of_the_batch(work):
    model = load_network(work / "student")
    alone = dict(log_posteriors(model, audio_of(work), batch_seconds=0.1))
    together = dict(log_posteriors(model, audio_of(work), batch_seconds=1000))
    assert list(alone) == list(together) == ["u0", "u1", "u2", "u3", "u4"]
    for utterance, path in audio_of(work).items():
        frames = model.network.frames(len(read_audio(path)))
        assert alone[utterance].shape == together[utterance].shape == (frames, VOCAB)
        np.testing.assert_allclose(alone[utterance], together[utterance], atol=1e-4)
        np.testing.assert_allclose(np.exp(alone[utterance]).sum(1), 1, atol=1e-5)


def test_posteriors_of_chunks_are_those_of_the_stream(work):
    model = load_network(work / "student")
    matrices = dict(log_posteriors(model, audio_of(work), chunk_ms=160))
    for utterance, path in audio_of(work).items():
        state = model.network.initial_state(1, 8, 100)
        logits = model.network.stream(torch.from_numpy(read_audio(path))[None], state, flush=True)
        np.testing.assert_allclose(matrices[utterance], logits[0].log_softmax(-1).numpy(), atol=1e-4)


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_a_chunk_is_counted_in_encoder_frames(front_end):
    network = student(front_end)
    model = LoadedNetwork(network, TOKENS, {"chunk_conf": {"chunk_ms": 480, "left_ms": 2000, "hop": 0.5}})
    session = StreamingRecognizer(network, TOKENS, model.config, 480)
    assert chunk_of(model, 480) == (240 // network.encoder_frame_ms, 2000 // network.encoder_frame_ms,
                                    240 // network.encoder_frame_ms)  # fmt: skip
    assert session.step_ms == 240


@pytest.mark.parametrize(
    ("model", "chunk_ms", "cure"), [("teacher", 480, "leave the option out"), ("student", 50, "multiple of")]
)
def test_a_chunk_length_that_the_model_cannot_have_is_refused(work, model, chunk_ms, cure):
    with pytest.raises(UserError, match=cure):
        next(log_posteriors(load_network(work / model), audio_of(work), chunk_ms))


def test_priors_are_taken_off(work):
    matrices = dict(log_posteriors(load_network(work / "student"), audio_of(work)))
    priors = mean_posteriors(matrices.items())
    frames = np.concatenate([np.exp(matrix) for matrix in matrices.values()])
    np.testing.assert_allclose(priors, frames.mean(0), rtol=1e-4)
    for _, likelihoods in log_likelihoods(matrices.items(), priors, 0.5):
        assert likelihoods.dtype == np.float32
    first = dict(log_likelihoods(matrices.items(), priors, 0.5))["u0"]
    np.testing.assert_allclose(first, matrices["u0"] - 0.5 * np.log(priors), atol=1e-4)
    priors[3] = 0
    first = dict(log_likelihoods(matrices.items(), priors, 0.5))["u0"]
    assert (first[:, 3] < -1e9).all() and np.isfinite(first).all()


def test_priors_file_is_a_kaldi_vector(tmp_path):
    write_priors(tmp_path / "priors.vec", np.array([0.5, 0.25, 0.25]))
    assert (tmp_path / "priors.vec").read_text() == " [ 0.5 0.25 0.25 ]\n"
    (tmp_path / "counts").write_text(" [ 20 10 10 ]\n")
    for name in ("priors.vec", "counts"):
        assert read_priors(tmp_path / name, 3).tolist() == [0.5, 0.25, 0.25]
    for content in ("[ 1 2 ]", "[ 1 2 x ]", "[ 1 2 -1 ]", "[ 0 0 0 ]", "[ 1 2 nan ]"):
        (tmp_path / "counts").write_text(content)
        with pytest.raises(UserError, match="counts: "):
            read_priors(tmp_path / "counts", 3)


def test_an_ark_on_a_pipe_is_the_file(work):
    """local/compute_posteriors.sh data model ark:- writes nothing but the ark to standard output."""
    compute_posteriors(work / "student", work / "data", f"ark,scp:{work}/file.ark,{work}/file.scp")
    command = [ROOT / "local/compute_posteriors.sh", work / "data", work / "student", "ark:-"]
    done = subprocess.run(command, capture_output=True, cwd=work)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == (work / "file.ark").read_bytes()
    piped = dict(kaldiio.load_ark(io.BytesIO(done.stdout)))
    indexed = kaldiio.load_scp(str(work / "file.scp"))
    assert list(piped) == list(audio_of(work)) and indexed.keys() == piped.keys()
    for utterance, matrix in piped.items():
        assert np.array_equal(indexed[utterance], matrix)


def test_a_reader_that_ends_early_is_one_line(work):
    command = [sys.executable, "-m", "distill.bin.compute_posteriors", "--model", work / "student"]
    command += ["--data_dir", work / "data", "--output", "ark:-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    running.stdout.close()
    shown = running.stderr.read()
    assert running.wait() == 2 and "Traceback" not in shown
    assert "error: ark:-: the program that reads the posteriors has ended" in shown


def test_jobs_share_the_utterances(work):
    for job in (1, 2):
        compute_posteriors(work / "student", work / "data", f"ark:{work}/part.{job}.ark", job=job, num_jobs=2)
    parts = [list(dict(kaldiio.load_ark(f"{work}/part.{job}.ark"))) for job in (1, 2)]
    assert parts == [["u0", "u2", "u4"], ["u1", "u3"]]


@pytest.mark.parametrize("wspecifier", ["post.ark", "ark:", "ark,t:x", "ark,scp:x", "ark,scp:-,x", "scp:x"])
def test_other_wspecifiers_are_refused_before_anything_is_written(wspecifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="must be ark:FILE"):
        write_matrices([], wspecifier)
    assert not list(tmp_path.iterdir())
