"""Options of the decoders, which several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.decode.settings import DecodeConf, tuned_weights


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`decode_conf` reads."""
    group = parser.add_argument_group("decoding")
    group.add_argument("--lm", type=Path, help="n-gram in ARPA format (beam: optional; wfst: required)")
    group.add_argument("--lm_unit", choices=("word", "token"), default="word", help="(default: word)")
    group.add_argument("--lm_weight", type=float, help="weight of the n-gram's ln P (default: 0.5, or as tuned)")
    group.add_argument("--word_bonus", type=float, help="score added for each word (default: 0, or as tuned)")
    group.add_argument("--tuned", type=Path, help="file of tune_decoding with lm_weight and word_bonus")
    group.add_argument("--beam", type=int, default=8, help="number of hypotheses that beam keeps (default: 8)")
    group.add_argument(
        "--wfst_beam", type=float, default=16.0, help="wfst prunes paths this much costlier than the best (default: 16)"
    )
    group.add_argument("--nbest", type=int, default=1, help="hypotheses of each utterance to write (default: 1)")
    group.add_argument(
        "--lexicon",
        type=Path,
        help="words and their tokens for wfst (default: the n-gram's words, as the model spells; required for phones)",
    )
    group.add_argument("--hotwords", type=Path, help="phrases that beam prefers, one on each line")
    group.add_argument(
        "--hotword_boost", type=float, default=3.0, help="score added for such a phrase, in nats (default: 3)"
    )


def decode_conf(args: argparse.Namespace, decoder: str) -> DecodeConf:
    """Settings of one decoder from the options of :func:`add_decoding`."""
    weights: dict[str, Any] = {} if args.tuned is None or decoder == "greedy" else tuned_weights(args.tuned, decoder)
    for name in ("lm_weight", "word_bonus"):
        if getattr(args, name) is not None:
            weights[name] = getattr(args, name)
    names = ("lm", "lm_unit", "beam", "wfst_beam", "nbest", "lexicon", "hotwords", "hotword_boost")
    return DecodeConf(decoder, **{name: getattr(args, name) for name in names}, **weights)
