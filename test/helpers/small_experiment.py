"""An experiment as stages 1 to 15 leave it, with untrained networks and made-up errors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, TEACHER, speech, student, teacher

from distill.bin import results
from distill.scoring import score

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]
CONF = {"front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2, "ffn": 48, "kernel": 7}
SYSTEMS = {
    "teacher": [(None, 0.05)],
    "student_full": [(None, 0.06)],
    "student_full_no_kd": [(None, 0.4)],
    "student_stream": [(160, 0.2), (480, 0.1), (None, 0.06)],
}


def train(directory: Path, system: str) -> None:
    """Configuration, weights and checkpoint of a training."""
    network = teacher() if system == "teacher" else student()
    config = {
        "network": "teacher" if system == "teacher" else "student",
        "network_conf": {"config": TEACHER} if system == "teacher" else CONF,
        "token_list": LETTERS,
        "token_type": "char",
        "chunk_conf": {"chunk_ms": [160, 960], "left_ms": 2000} if system == "student_stream" else None,
        "distill_conf": {"alpha": 0.8, "beta": 0.8, "target": "posterior", "graph": "/home/bob/den.npz"},
        "teacher": "exp/teacher" if system in ("student_full", "student_stream") else None,
        "max_epoch": 5,
    }
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({f"network.{key}": value for key, value in network.state_dict().items()}, directory / "model.pth")
    terms = ["loss", "loss_mmi", *([] if system == "teacher" else ["loss_hidden", "loss_logits"])]
    epochs = {
        epoch: {
            part: {**{term: 3.0 / epoch + (part == "valid") * 0.2 for term in terms}, "time": {"seconds": 1.0}}
            for part in ("train", "valid")
        }
        for epoch in range(1, 6)
    }
    checkpoint = {"model": {}, "reporter": {"epoch": 5, "stats": epochs}, "optimizers": [{"state": {}}]}
    torch.save(checkpoint, directory / "checkpoint.pth")


def spoil(words: list[str], share: float, generator: random.Random) -> list[str]:
    """The words with errors of every kind."""
    hypotheses = []
    for word in words:
        if generator.random() >= share:
            hypotheses.append(word)
            continue
        kind = generator.choice("SSSDI")
        hypotheses += {"S": [generator.choice(WORDS)], "D": [], "I": [word, generator.choice(WORDS)]}[kind]
    return hypotheses


def make(root: Path, test_sets: tuple[str, ...] = ("test", "test_unseen"), utterances: int = 12) -> Path:
    """exp and dump/raw below ``root``; returns exp."""
    expdir, raw, generator = root / "exp", root / "dump/raw", random.Random(1)
    for name in (*test_sets, "valid"):
        folder = raw / name
        folder.mkdir(parents=True)
        texts = {f"{name}-{n:03d}": [generator.choice(WORDS) for _ in range(4)] for n in range(utterances)}
        (folder / "text").write_text("".join(f"{key} {' '.join(words)}\n" for key, words in texts.items()))
        for seed, key in enumerate(texts):
            soundfile.write(folder / f"{key}.wav", speech(12000 + 500 * seed, seed).numpy(), 16000)
        (folder / "wav.scp").write_text("".join(f"{key} {folder / key}.wav\n" for key in texts))
        (folder / "utt2spk").write_text("".join(f"{key} ann\n" for key in texts))
        for system, latencies in SYSTEMS.items() if name != "valid" else ():
            for chunk_ms, share in latencies:
                decoded = expdir / system / ("decode_full" if chunk_ms is None else f"decode_{chunk_ms}ms") / name
                decoded.mkdir(parents=True)
                rows = [
                    {"utterance": key, "text": " ".join(spoil(words, share, generator)), "audio_s": 1.0}
                    | {"compute_s": 0.02 if system == "teacher" else 0.01}
                    for key, words in texts.items()
                ]
                (decoded / "hyp.1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                params = 1_400_000 if system == "teacher" else 340_000
                about = {"params": params, "model_bytes": 4 * params, "threads": 1, "chunk_ms": chunk_ms}
                (decoded / "about.json").write_text(json.dumps({**about, "decoder": "greedy"}))
                score.score(folder / "text", decoded)
    for system in SYSTEMS:
        (expdir / system / "config.yaml").unlink(missing_ok=True)
        train(root / "trained" / system, system)
        for path in (root / "trained" / system).iterdir():
            path.rename(expdir / system / path.name)
    results.main(["--expdir", str(expdir), "--test_sets", " ".join(test_sets), "--recipe", "egs2/small"])
    delays = {"wait_worst_ms": 485.0, "wait_mean_ms": 245.0, "compute_median_ms": 3.5, "delay_median_ms": 310.0}
    latency = [{"chunk_ms": 480, **delays, "first_median_ms": None}]
    (expdir / "bench.json").write_text(json.dumps({"data": "test", "threads": 1, "latency": latency}))
    row = {"file": "student_480ms.onnx", "bytes": 1_400_000, "max_log_prob_difference": 1.2e-5, "ms_per_chunk": 2.5}
    row |= {"identical_texts": 12, "utterances": 12, "word_errors": 5, "words": 48}
    exports = [{"chunk_ms": 480, "float32": row, "int8": row, "int8_offered": False, "int8_reasons": ["slower"]}]
    (expdir / "export").mkdir()
    (expdir / "export/parity.json").write_text(json.dumps({"data": ["/home/bob/test"], "exports": exports}))
    return expdir
