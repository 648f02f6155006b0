"""Recognition of test sets with a teacher or a student. A streaming student runs through a streaming session."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp
from distill.checkpoints.load import load_network
from distill.decode.hypothesis import Word, words_of
from distill.decode.settings import DecodeConf, search_factory
from distill.errors import UserError
from distill.files import atomic_write
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.streaming.recognizer import Result, StreamingRecognizer


def decode_sets(
    model: Path,
    data_dirs: Sequence[Path],
    chunk_ms: Sequence[int | None],
    decoders: Sequence[DecodeConf],
    output: Path | None = None,
    job: int = 1,
    num_jobs: int = 1,
    threads: int = 1,
) -> None:
    """Recognise Kaldi data directories with every decoder at every chunk length.

    Writes OUTPUT/decode_480ms/SET/hyp.JOB.jsonl, with a row per utterance (:func:`result_row`), and about.json in the
    same directory (:func:`describe`). Files that exist are kept.

    Args:
        model: a training's directory or a packed model.
        data_dirs: with wav.scp.
        chunk_ms: chunk lengths; None for full context.
        decoders: decoders and their settings.
        output: directory to write below; None: ``model``.
        job: this job, from 1, of ``num_jobs``; takes every ``num_jobs``-th utterance.
        threads: CPU threads.

    Raises:
        UserError: the job's number, the model, its data or a setting cannot be used.
    """
    if output is None and model.is_file():
        raise UserError(f"{model}: is a packed model; give --output DIR for the results")
    if not 1 <= job <= num_jobs:
        raise UserError(f"--job {job}: must be from 1 to --num_jobs {num_jobs}")
    torch.set_num_threads(threads)
    tables = {data_dir: read_wav_scp(data_dir / "wav.scp") for data_dir in data_dirs}
    shares = {data_dir: list(table.items())[job - 1 :: num_jobs] for data_dir, table in tables.items()}
    total = len(decoders) * len(chunk_ms) * sum(map(len, shares.values()))
    network, token_list, config = load_network(model)
    with tqdm(total=total, desc=model.name, unit="utt", mininterval=1) as progress:
        for conf in decoders:
            new_search = search_factory(conf, token_list, config)
            for length in chunk_ms:
                recognizer = StreamingRecognizer(network, token_list, config, length, new_search=new_search)
                warm = False
                for data_dir, utterances in shares.items():
                    folder = (output or model) / folder_name(conf, length) / data_dir.name
                    if (folder / f"hyp.{job}.jsonl").is_file():
                        progress.update(len(utterances))
                        continue
                    if not warm:
                        warm_up(recognizer)
                        warm = True
                    decode_set(recognizer, utterances, folder / f"hyp.{job}.jsonl", progress)
                    if job == 1:
                        about = describe(network, conf, length, threads, recognizer.token_type)
                        with atomic_write(folder / "about.json") as stream:
                            json.dump(about, stream, indent=1)


def folder_name(conf: DecodeConf, chunk_ms: int | None) -> str:
    """Such as decode_480ms, decode_full, or decode_480ms_beam."""
    name = "decode_full" if chunk_ms is None else f"decode_{chunk_ms}ms"
    return name if conf.decoder == "greedy" else f"{name}_{conf.decoder}"


def warm_up(recognizer: StreamingRecognizer) -> None:
    """Recognise a second of silence, so that the first utterance's time does not include the allocation of memory."""
    recognizer.accept_waveform(torch.zeros(SAMPLE_RATE))
    recognizer.finish()
    recognizer.reset()


def decode_set(
    recognizer: StreamingRecognizer, utterances: Sequence[tuple[str, str]], output: Path, progress: tqdm
) -> None:
    """Recognise utterances (id, path) and write a row of JSON for each."""
    with atomic_write(output) as stream:
        for utterance, path in utterances:
            audio = read_audio(path)
            started = time.perf_counter()
            recognizer.accept_waveform(audio)
            result = recognizer.finish()
            seconds = time.perf_counter() - started
            row = result_row(utterance, recognizer, result, len(audio) / SAMPLE_RATE, seconds)
            recognizer.reset()
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress.update()


def result_row(
    utterance: str, recognizer: StreamingRecognizer, result: Result, audio_s: float, compute_s: float
) -> dict[str, Any]:
    """The row of an utterance: text, tokens and words with times, n-best list, seconds of audio and of computation."""
    frame_s = recognizer.network.frame_ms / 1000
    nbest = [words_of(hypothesis, recognizer.token_list, recognizer.token_type) for hypothesis in recognizer.hypotheses]

    def word_row(word: Word) -> dict[str, Any]:
        return {
            "word": word.text,
            "start_s": round(min(word.start_frame * frame_s, audio_s), 6),
            "end_s": round(min(word.end_frame * frame_s, audio_s), 6),
            "confidence": round(word.confidence, 6),
        }

    row = {
        "utterance": utterance,
        "text": result["text"],
        "tokens": result["tokens"],
        "words": [word_row(word) for word in nbest[0]],
        "score": recognizer.hypotheses[0].score,
        "audio_s": audio_s,
        "compute_s": compute_s,
    }
    if len(nbest) > 1:
        row["nbest"] = [
            {"text": " ".join(word.text for word in words), "score": hypothesis.score}
            for words, hypothesis in zip(nbest, recognizer.hypotheses, strict=True)
        ]
    return row


def describe(
    network: Student | Teacher, conf: DecodeConf, chunk_ms: int | None, threads: int, token_type: str
) -> dict[str, Any]:
    """Contents of about.json: the network's size and the decoder's settings.

    ``text`` is "tokens" if phones are recognised without a lexicon, else "words".
    """
    has_words = token_type != "phn" or (conf.decoder == "wfst" and conf.lm_unit == "word")
    parameters = list(network.parameters())
    about: dict[str, Any] = {
        "params": sum(p.numel() for p in parameters),
        "model_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "threads": threads,
        "chunk_ms": chunk_ms,
        "decoder": conf.decoder,
        "text": "words" if has_words else "tokens",
    }
    if conf.decoder != "greedy":
        about["lm"] = None if conf.lm is None else str(conf.lm)
        about |= {"lm_weight": conf.lm_weight, "word_bonus": conf.word_bonus, "nbest": conf.nbest}
        about["beam"] = conf.wfst_beam if conf.decoder == "wfst" else conf.beam
    return about
