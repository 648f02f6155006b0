"""Synthetic corpora, scores and n-grams of true size, and the steps that read them, for :mod:`distill.bench.scale`.

Audio is a hard link, and a teacher's outputs are one frame an utterance.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

OWN_FILES = 300_000  # utterances; above, they lie in one ark, as with --audio_format flac.ark
LAYERS, VOCAB, WORDS = 12, 500, 19  # words: of an utterance


def name_of(number: int) -> str:
    """Id of an utterance, sorted as its number."""
    return f"{number // 100_000:03d}-{number // 1000 % 100:02d}-{number % 1000:03d}"


def drawn(rng: np.random.Generator, count: int, kinds: int, exponent: float = 1.0) -> np.ndarray:
    """(count,) numbers below ``kinds``, by Zipf's law."""
    p = np.cumsum(np.arange(1, kinds + 1) ** -exponent)
    return np.minimum(np.searchsorted(p, rng.random(count) * p[-1]), kinds - 1)


# Stored targets


def make_targets(count: int, folder: Path) -> None:
    """A teacher of random weights, audio of ``count`` utterances, and their stored targets."""
    import soundfile
    import torch

    from distill.checkpoints.load import build_network
    from distill.configuration import code_bytes, logit_bytes
    from distill.files import yaml_text
    from distill.targets import extract, store
    from distill.targets.audio_checksums import RECENT_NS
    from distill.targets.codebooks import Codebooks

    network: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    network |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config: dict[str, Any] = {
        "network": "teacher",
        "network_conf": {"config": network},
        "token_list": [f"t{i}" for i in range(VOCAB)],
    }
    (folder / "teacher").mkdir()
    (folder / "teacher" / "config.yaml").write_text(yaml_text(config))
    weights = build_network(config, VOCAB).state_dict()
    torch.save({f"network.{name}": value for name, value in weights.items()}, folder / "teacher" / "model.pth")

    rng = np.random.default_rng(0)
    (folder / "audio").mkdir()
    for number in range(20):  # a file has 65,000 links at most
        soundfile.write(folder / f"{number}.flac", 0.1 * rng.normal(size=32_000), 16000)
    (folder / "audio.ark").write_bytes(rng.bytes(2000))
    with open(folder / "wav.scp", "w") as scp, open(folder / "utt2num_samples", "w") as lengths:
        for number in range(count):
            utterance = name_of(number)
            path = f"{folder}/audio/{utterance[:6]}/{utterance}.flac"
            if number % 1000 == 0 and count <= OWN_FILES:
                os.mkdir(os.path.dirname(path))
            if count <= OWN_FILES:
                os.link(folder / f"{number % 20}.flac", path)
            place = path if count <= OWN_FILES else f"{folder}/audio.ark:{number % 1000}"
            scp.write(f"{utterance} {place}\n")
            lengths.write(f"{utterance} {16000 * (2 + number * 7919 % 28)}\n")
    time.sleep(RECENT_NS / 1e9 + 1)  # what has just been written is read again

    extraction = targets(folder)
    extraction.output.mkdir(parents=True)
    codewords = {layer: torch.zeros(code_bytes(16), 256, 16) for layer in range(1, LAYERS + 1)}
    Codebooks(codewords, extraction.teacher_checksum, extraction.what.hidden_ms).save(extraction.codebooks_path)
    extraction.read_checksums(extraction.audio)
    extraction.audio_checksums.save(extraction.output / "audio.cache")
    frame = {name: np.zeros((1, code_bytes(16)), np.uint8) for name in extraction.streams}
    frame["logits"] = np.zeros((1, logit_bytes(VOCAB)), np.uint8)
    for name, utterances in extraction.shards.items():
        about, checksums = extraction.description(utterances), extraction.checksums
        with store.TargetWriter(extraction.path(name), "codebook", about, checksums) as writer:
            for utterance in utterances:
                writer.write(utterance, frame)
    extract.merge(extraction)


def targets(folder: Path) -> Any:
    """The extraction of :func:`make_targets`."""
    from distill.targets.extract import Extraction

    layers = ",".join(map(str, range(1, LAYERS + 1)))
    return Extraction(folder / "teacher", folder / "wav.scp", folder / "targets/train", layers=layers, dtype="codebook")


def check_targets(folder: Path) -> None:
    from distill.targets.extract import check

    check(targets(folder))


def merge_targets(folder: Path) -> None:
    from distill.targets.extract import merge

    merge(targets(folder))


def start_training(folder: Path) -> None:
    """What a training start does with stored targets."""
    from distill.targets.checks import check_manifest
    from distill.targets.store import StoredTargets

    check_manifest(StoredTargets(folder / "targets/train"), folder / "teacher", folder / "wav.scp")


def write_lengths(folder: Path) -> None:
    from distill.data.batches import write_sample_counts

    write_sample_counts(folder, folder / "speech_shape")


# Data directories, scores, n-grams


def make_data_directory(count: int, folder: Path) -> None:
    """Segments of 2 s, 30 of each recording, with text of 90,000 words."""
    import soundfile

    soundfile.write(folder / "audio.wav", np.zeros(16000 * 60, np.float32), 16000)
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    with (
        open(folder / "wav.scp", "w") as scp,
        open(folder / "text", "w") as text,
        open(folder / "segments", "w") as segments,
        open(folder / "utt2spk", "w") as speakers,
    ):
        for number in range(-(-count // 30)):
            path = folder / "audio" / f"{number}.wav"
            if number < 2000:
                os.link(folder / "audio.wav", path)
            scp.write(f"r{number:07d} {folder}/audio/{number % 2000}.wav\n")
        words = drawn(rng, count * WORDS, 90_000).reshape(count, WORDS)
        for number, row in enumerate(words):
            utterance = f"r{number // 30:07d}-{number % 30:02d}"
            text.write(f"{utterance} {' '.join(f'W{w}' for w in row)}\n")
            segments.write(f"{utterance} {utterance[:8]} {2 * (number % 30)} {2 * (number % 30) + 2}\n")
            speakers.write(f"{utterance} {utterance[:8]}\n")


def check_data(folder: Path) -> None:
    from distill.data.check import check_data_dir

    check_data_dir(folder)


def make_results(count: int, folder: Path) -> None:
    """Scores of eight systems on ``count`` utterances."""
    systems: list[tuple[str, str, int | None]] = [
        ("teacher", "full", None),
        ("student_full", "full", None),
        ("student_full_no_kd", "full", None),
    ]
    systems += [("student_stream", f"{ms}ms", ms) for ms in (160, 320, 480, 960, 1920)]
    for number, (system, decoding, chunk_ms) in enumerate(systems):
        rng = np.random.default_rng(number)
        words = rng.integers(1, 2 * WORDS, count)
        wrong = rng.binomial(words, 0.1)
        score: dict[str, Any] = {
            "words": int(words.sum()),
            "sub": int(wrong.sum()),
            "del": 0,
            "ins": 0,
            "utterances": count,
        }
        score |= {"wer": 100 * int(wrong.sum()) / int(words.sum()), "wrong_utterances": int((wrong > 0).sum())}
        score |= {"audio_s": 5.0 * count, "timed_utterances": 2, "timed_s": 10.0, "compute_s": 1.0, "scorer": "distill"}
        score |= {"errors": np.stack([words, wrong], 1).tolist(), "speakers": {}}
        place = folder / "exp" / system / f"decode_{decoding}" / "test"
        (place / "score_wer").mkdir(parents=True)
        (place / "score_wer" / "score.json").write_text(json.dumps(score))
        about = {"params": 10**6, "model_bytes": 4 * 10**6, "threads": 1, "chunk_ms": chunk_ms}
        (place / "about.json").write_text(json.dumps(about))


def gather_results(folder: Path) -> None:
    from distill.scoring.results import write_results

    write_results(folder / "exp", "test", "scale")


def make_hypotheses(count: int, folder: Path) -> None:
    """References and hypotheses, of which every tenth word is another, missing or one more."""
    rng = np.random.default_rng(0)
    (folder / "decode").mkdir()
    words: list[str] = []
    with open(folder / "text", "w") as text, open(folder / "decode" / "hyp.1.jsonl", "w") as hypotheses:
        for number in range(count):
            words = words[1:] + words[:1]
            if number % 1000 == 0:
                words = [f"W{w}" for w in drawn(rng, WORDS, 90_000)]
            heard = [w for w, r in zip(words, rng.random(WORDS), strict=True) if r > 0.03]
            heard = [f"{w}x" if r < 0.05 else w for w, r in zip(heard, rng.random(len(heard)), strict=True)]
            text.write(f"{name_of(number)} {' '.join(words)}\n")
            row = {"utterance": name_of(number), "text": " ".join(heard), "audio_s": 5.0}
            hypotheses.write(json.dumps(row) + "\n")


def score_hypotheses(folder: Path) -> None:
    from distill.scoring import score

    score.find_sclite = lambda: None  # type: ignore[assignment]
    score.score(folder / "text", folder / "decode")


def sentences(count: int, kinds: int, length: int) -> Iterator[list[int]]:
    """``count`` sentences in which every second word follows from the one before, so that n-grams repeat."""
    rng = np.random.default_rng(0)
    for _ in range(-(-count // 1000)):
        words = drawn(rng, 1000 * length, kinds)
        half = rng.random(len(words)) < 0.5
        words[1:][half[1:]] = words[:-1][half[1:]] * 7919 % max(1, kinds // 30)
        yield from words.reshape(1000, length).tolist()


def estimate_words(folder: Path, count: int) -> None:
    from distill.decode.estimate_lm import write_arpa

    lines = ([f"W{w}" for w in row] for row in sentences(count, 90_000, 33))
    write_arpa(lines, 3, folder / "lm.arpa")


def estimate_tokens(folder: Path, count: int) -> None:
    from distill.lfmmi import DenominatorGraph

    lines = ([1 + w for w in row] for row in sentences(count, VOCAB - 1, 66))
    DenominatorGraph.from_text(lines, 3, VOCAB).save(folder / "den.npz")


def make_lm(count: int, folder: Path) -> None:
    """A 3-gram of ``count`` n-grams in ARPA format: 200,000 words or fewer, 45 % 2-grams, the rest 3-grams."""
    rng = np.random.default_rng(0)
    words = min(200_000, count // 20)
    pairs = int(0.45 * count)
    keys = np.zeros(0, np.int64)
    while len(keys) < pairs:
        keys = np.unique(np.append(keys, drawn(rng, pairs, words, 0.9) * words + drawn(rng, pairs, words, 0.9)))
    keys = np.sort(rng.permutation(keys)[:pairs])
    first, second = keys // words, keys % words
    begin = np.searchsorted(first, np.arange(words + 1))
    triples = np.zeros(0, np.int64)
    while len(triples) < count - words - pairs:  # each of two 2-grams
        pair = rng.integers(0, pairs, pairs)
        following = begin[second[pair] + 1] - begin[second[pair]]
        pair, following = pair[following > 0], following[following > 0]
        next_pair = begin[second[pair]] + (rng.random(len(pair)) ** 2 * following).astype(np.int64)
        triples = np.unique(np.append(triples, pair * words + second[next_pair]))
    triples = np.sort(rng.permutation(triples)[: count - words - pairs])
    with open(folder / "lm.arpa", "w") as arpa:
        arpa.write(f"\\data\\\nngram 1={words + 2}\nngram 2={pairs}\nngram 3={len(triples)}\n\n\\1-grams:\n")
        arpa.write("-99\t<s>\t-0.3\n-1.5\t</s>\n")
        log_p = np.log10(np.arange(1, words + 1) ** -0.9) - 2
        arpa.writelines(
            f"{p:.5f}\tW{w}\t{b:.5f}\n" for w, (p, b) in enumerate(zip(log_p, -rng.random(words), strict=True))
        )
        arpa.write("\n\\2-grams:\n")
        for start in range(0, pairs, 10**6):
            rows = zip(
                first[start : start + 10**6], second[start : start + 10**6], rng.random((10**6, 2)), strict=False
            )
            arpa.writelines(f"{-3 * p:.5f}\tW{v}\tW{w}\t{-b:.5f}\n" for v, w, (p, b) in rows)
        arpa.write("\n\\3-grams:\n")
        for start in range(0, len(triples), 10**6):
            part = triples[start : start + 10**6]
            pair = part // words
            columns = zip(first[pair], second[pair], part % words, rng.random(len(part)), strict=True)
            arpa.writelines(f"{-2 * p:.5f}\tW{u}\tW{v}\tW{w}\n" for u, v, w, p in columns)
        arpa.write("\n\\end\\\n")
    rng = np.random.default_rng(1)
    with open(folder / "lexicon.json", "w") as stream:
        spellings: set[tuple[int, ...]] = {(token,) for token in range(1, 251)}
        while len(spellings) < words:
            tail = rng.integers(251, VOCAB, rng.choice((1, 2, 2, 3, 3, 4))).tolist()
            spellings.add((int(rng.integers(1, 251)), *tail))
        json.dump(sorted(spellings)[:words], stream)


def build_graph(folder: Path) -> None:
    from distill.decode.tlg_graph import GraphBuilder

    lexicon = {f"W{w}": [tuple(s)] for w, s in enumerate(json.loads((folder / "lexicon.json").read_text()))}
    tokens = ["<blank>", *(f"t{i}" for i in range(1, VOCAB))]
    GraphBuilder(folder / "lm.arpa", lexicon, tokens).build(0.5, 0.1)
