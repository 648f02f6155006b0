"""Which decoder, with which models and weights: from options of a command to searches."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError

if TYPE_CHECKING:
    from distill.decode.hypothesis import Search
    from distill.decode.wfst import GraphBuilder

DECODERS = ("greedy", "beam", "wfst")


@dataclass(frozen=True)
class DecodeConf:
    """See the help of :func:`add_arguments`."""

    decoder: str = "greedy"
    lm: Path | None = None
    lm_unit: str = "word"
    lm_weight: float = 0.5
    word_bonus: float = 0.0
    beam: int = 8
    wfst_beam: float = 16.0
    nbest: int = 1
    lexicon: Path | None = None
    hotwords: Path | None = None
    hotword_boost: float = 3.0

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise UserError(f"decoder: {self.decoder!r} is none of {', '.join(DECODERS)}")
        if self.decoder == "wfst" and self.lm is None:
            raise UserError("decoder wfst: needs an n-gram; give --lm FILE.arpa")
        if self.nbest < 1:
            raise UserError(f"nbest: {self.nbest} must be at least 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of decoding."""
    group = parser.add_argument_group("decoding")
    group.add_argument("--lm", type=Path, help="n-gram, an ARPA file (beam: optional; wfst: needed)")
    group.add_argument(
        "--lm_unit", choices=("word", "token"), default="word", help="what the n-gram counts (default: word)"
    )
    group.add_argument("--lm_weight", type=float, help="weight of the n-gram's ln P (default: 0.5, or as tuned)")
    group.add_argument("--word_bonus", type=float, help="added for each word (default: 0, or as tuned)")
    group.add_argument(
        "--tuned", type=Path, help="take lm_weight and word_bonus from this file, which tune_decoding wrote"
    )
    group.add_argument("--beam", type=int, default=8, help="hypotheses that beam keeps (default: 8)")
    group.add_argument(
        "--wfst_beam", type=float, default=16.0, help="cost above the best that wfst follows (default: 16)"
    )
    group.add_argument("--nbest", type=int, default=1, help="different results of an utterance (default: 1)")
    group.add_argument(
        "--lexicon",
        type=Path,
        help="words and their tokens for wfst (default: the n-gram's words, as the model spells; needed for phones)",
    )
    group.add_argument("--hotwords", type=Path, help="phrases that beam should listen for, one a line")
    group.add_argument(
        "--hotword_boost", type=float, default=3.0, help="added for each such phrase, in nats (default: 3)"
    )


def conf_of(args: argparse.Namespace, decoder: str) -> DecodeConf:
    """The settings of one decoder from a command's options."""
    weights: dict[str, Any] = {"lm_weight": DecodeConf.lm_weight, "word_bonus": DecodeConf.word_bonus}
    if args.tuned is not None and decoder != "greedy":
        try:
            tuned = json.loads(args.tuned.read_text(encoding="utf-8"))
            weights = {name: float(tuned[decoder][name]) for name in weights}
        except FileNotFoundError:
            raise UserError(f"{args.tuned}: not found; tune_decoding writes it") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{args.tuned}: has no weights for {decoder}; tune it again") from None
    weights |= {name: getattr(args, name) for name in weights if getattr(args, name) is not None}
    names = ("lm", "lm_unit", "beam", "wfst_beam", "nbest", "lexicon", "hotwords", "hotword_boost")
    return DecodeConf(decoder, **{name: getattr(args, name) for name in names}, **weights)


def search_factory(conf: DecodeConf, token_list: Sequence[str], config: Mapping[str, Any]) -> Callable[[], Search]:
    """What makes a new search for each stream; models are read once.

    ``config`` is the training's, for ``token_type`` and ``bpemodel``.
    """
    if conf.decoder == "greedy":
        from distill.decode.greedy import GreedySearch

        return GreedySearch
    token_type = config.get("token_type", "char")
    if conf.decoder == "wfst":
        graph = graph_builder(conf, token_list, config).build(conf.lm_weight, conf.word_bonus)
        from distill.decode.wfst import WfstSearch

        return lambda: WfstSearch(graph, conf.wfst_beam, nbest=conf.nbest)
    from distill.decode.beam import BeamSearch, Fusion
    from distill.decode.hotwords import Hotwords
    from distill.decode.lm import NgramLM

    lm = None if conf.lm is None else NgramLM(conf.lm)
    hotwords = None
    if conf.hotwords is not None:
        try:
            hotwords = Hotwords(conf.hotwords.read_text(encoding="utf-8").splitlines(), conf.hotword_boost)
        except (FileNotFoundError, UnicodeDecodeError):
            raise UserError(f"{conf.hotwords}: not a text file; expected a phrase on each line") from None
    fusion = Fusion(token_list, token_type, lm, conf.lm_weight, conf.word_bonus, hotwords, conf.lm_unit)
    return lambda: BeamSearch(fusion, conf.beam, conf.nbest)


def graph_builder(conf: DecodeConf, token_list: Sequence[str], config: Mapping[str, Any]) -> GraphBuilder:
    """The :class:`distill.decode.wfst.GraphBuilder` of the settings' n-gram and lexicon."""
    from distill.decode.wfst import GraphBuilder, read_lexicon, spell
    from distill.lfmmi.ngram import arpa_entries

    assert conf.lm is not None
    token_type = config.get("token_type", "char")
    if conf.lexicon is not None:
        lexicon = read_lexicon(conf.lexicon, token_list)
    elif token_type == "phn" and conf.lm_unit == "word":
        raise UserError("decoder wfst: a model of phones needs a lexicon; give --lexicon FILE")
    else:
        words = [entry[1][0] for entry in arpa_entries(conf.lm) if len(entry[1]) == 1]
        kind = "word" if conf.lm_unit == "token" else token_type
        lexicon = spell(words, token_list, kind, config.get("bpemodel"))
    return GraphBuilder(conf.lm, lexicon, token_list, words_are_tokens=conf.lm_unit == "token")
