"""Recognise test sets with a teacher or a student; a streaming student goes through a real session.

    python -m distill.bin.decode --model exp/student_stream --chunk_ms 160 320 480 960 \\
        --data_dirs dump/raw/test dump/raw/test_unseen

writes MODEL/decode_480ms/SET/hyp.JOB.jsonl (a line per utterance: id, text, tokens and words with times, seconds of
audio and of computation), and without --chunk_ms, or for full, MODEL/decode_full/SET. A file that is there is not made
again. Decoders other than greedy have directories of their own, such as MODEL/decode_480ms_beam:

    python -m distill.bin.decode --model exp/student_stream --data_dirs dump/raw/test --decoder beam wfst \\
        --lm exp/lm/words.arpa --tuned exp/student_stream/tuned.json --nbest 5
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.decode.settings import DECODERS, DecodeConf, add_arguments, conf_of
from distill.errors import UserError, cli
from distill.files import atomic_write

if TYPE_CHECKING:
    from distill.models.student import Student
    from distill.models.teacher import Teacher
    from distill.streaming.recognizer import Result, StreamingRecognizer


def chunk_length(text: str) -> int | None:
    """Milliseconds of a chunk, or None for ``full``."""
    return None if text == "full" else int(text)


def row_of(
    utterance: str, recognizer: StreamingRecognizer, result: Result, audio_s: float, compute_s: float
) -> dict[str, Any]:
    """What is written of an utterance."""
    from distill.decode.hypothesis import words_of

    frame_s = recognizer.network.frame_ms / 1000
    said = [words_of(found, recognizer.token_list, recognizer.token_type) for found in recognizer.hypotheses]
    row = {
        "utterance": utterance,
        "text": result["text"],
        "tokens": result["tokens"],
        "words": [
            {
                "word": word.text,
                "start_s": round(min(word.start_frame * frame_s, audio_s), 6),
                "end_s": round(min(word.end_frame * frame_s, audio_s), 6),
                "confidence": round(word.confidence, 6),
            }
            for word in said[0]
        ],
        "score": recognizer.hypotheses[0].score,
        "audio_s": audio_s,
        "compute_s": compute_s,
    }
    if len(said) > 1:
        row["nbest"] = [
            {"text": " ".join(word.text for word in words), "score": found.score}
            for words, found in zip(said, recognizer.hypotheses, strict=True)
        ]
    return row


def describe(
    network: Student | Teacher, conf: DecodeConf, chunk_ms: int | None, threads: int, token_type: str
) -> dict[str, Any]:
    """What about.json holds of a decode directory: the network's size and how it was decoded.

    ``text`` is tokens where phones were recognised without a lexicon, else words.
    """
    found_words = token_type != "phn" or (conf.decoder == "wfst" and conf.lm_unit == "word")
    parameters = list(network.parameters())
    about: dict[str, Any] = {
        "params": sum(p.numel() for p in parameters),
        "model_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "threads": threads,
        "chunk_ms": chunk_ms,
        "decoder": conf.decoder,
        "text": "words" if found_words else "tokens",
    }
    if conf.decoder != "greedy":
        about["lm"] = None if conf.lm is None else str(conf.lm)
        about |= {"lm_weight": conf.lm_weight, "word_bonus": conf.word_bonus, "nbest": conf.nbest}
        about["beam"] = conf.wfst_beam if conf.decoder == "wfst" else conf.beam
    return about


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="training's directory, or packed model")
    parser.add_argument("--output", type=Path, help="write below this directory (default: --model, if it is one)")
    parser.add_argument("--data_dirs", type=Path, nargs="+", required=True, help="directories with wav.scp")
    parser.add_argument(
        "--chunk_ms", type=chunk_length, nargs="*", default=[], help="latencies in ms, or full (default: full)"
    )
    parser.add_argument("--job", type=int, default=1, help="this job, from 1")
    parser.add_argument("--num_jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, so that speeds compare)")
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, default=["greedy"], help="(default: greedy)")
    add_arguments(parser)
    args = parser.parse_args(argv)
    confs = [conf_of(args, decoder) for decoder in args.decoder]
    if args.output is None and args.model.is_file():
        raise UserError(f"{args.model}: is a packed model; give --output DIR for what is recognised")
    if not 1 <= args.job <= args.num_jobs:
        raise UserError(f"--job {args.job}: must be from 1 to --num_jobs {args.num_jobs}")

    import torch
    from tqdm import tqdm

    from distill.audio import read_audio, read_wav_scp
    from distill.checkpoints.load import load_network
    from distill.decode.settings import search_factory
    from distill.streaming.recognizer import StreamingRecognizer

    torch.set_num_threads(args.threads)
    tables = {data_dir: read_wav_scp(data_dir / "wav.scp") for data_dir in args.data_dirs}
    mine = {data_dir: list(table.items())[args.job - 1 :: args.num_jobs] for data_dir, table in tables.items()}
    latencies = args.chunk_ms or [None]
    progress = tqdm(
        total=len(confs) * len(latencies) * sum(map(len, mine.values())),
        desc=args.model.name,
        unit="utt",
        mininterval=1,
    )
    network, token_list, config = load_network(args.model)
    for conf in confs:
        new_search = search_factory(conf, token_list, config)
        for chunk_ms in latencies:
            recognizer = StreamingRecognizer(network, token_list, config, chunk_ms, new_search=new_search)
            warm = False
            for data_dir, utterances in mine.items():
                name = "decode_full" if chunk_ms is None else f"decode_{chunk_ms}ms"
                if conf.decoder != "greedy":
                    name += f"_{conf.decoder}"
                output = (args.output or args.model) / name / data_dir.name / f"hyp.{args.job}.jsonl"
                if output.is_file():
                    progress.update(len(utterances))
                    continue
                if not warm:  # the first pass allocates; keep it out of times
                    recognizer.accept_waveform(torch.zeros(16000).numpy())
                    recognizer.finish()
                    recognizer.reset()
                    warm = True
                with atomic_write(output) as stream:
                    for utterance, path in utterances:
                        speech = read_audio(path)
                        started = time.perf_counter()
                        recognizer.accept_waveform(speech)
                        result = recognizer.finish()
                        seconds = time.perf_counter() - started
                        row = row_of(utterance, recognizer, result, len(speech) / 16000, seconds)
                        recognizer.reset()
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                        progress.update()
                if args.job == 1:
                    about = describe(network, conf, chunk_ms, args.threads, recognizer.token_type)
                    with atomic_write(output.with_name("about.json")) as stream:
                        json.dump(about, stream, indent=1)
    progress.close()


if __name__ == "__main__":
    main()
