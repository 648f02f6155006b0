"""Settings of a decoder, and the searches that they describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError, require

if TYPE_CHECKING:
    from distill.decode.hypothesis import Search
    from distill.decode.tlg_graph import GraphBuilder

DECODERS = ("greedy", "beam", "wfst")


@dataclass(frozen=True)
class DecodeConf:
    """A decoder and its settings.

    Attributes:
        decoder: greedy; beam, a prefix beam search; or wfst, a search through a graph.
        lm: n-gram in ARPA format; wfst requires one.
        lm_unit: unit of the n-gram, word or token.
        lm_weight: weight of the n-gram's ln P.
        word_bonus: score added for each word.
        beam: number of hypotheses that beam keeps.
        wfst_beam: wfst prunes paths whose cost exceeds the best path's by more than this.
        nbest: hypotheses of each utterance.
        lexicon: words and their tokens for wfst; None: the n-gram's words as the model's tokens spell them.
        hotwords: file of phrases that beam prefers, one on each line.
        hotword_boost: score added for such a phrase, in nats.
    """

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


def tuned_weights(path: Path, decoder: str) -> dict[str, float]:
    """``lm_weight`` and ``word_bonus`` of a decoder from a file that :mod:`distill.recognition.tune` wrote.

    Raises:
        UserError: the file is missing, damaged, or has no weights for this decoder.
    """
    try:
        tuned = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(tuned[decoder][name]) for name in ("lm_weight", "word_bonus")}
    except FileNotFoundError:
        raise UserError(f"{path}: not found; tune_decoding writes it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: has no weights for {decoder}; tune it again") from None


def search_factory(conf: DecodeConf, token_list: Sequence[str], config: Mapping[str, Any]) -> Callable[[], Search]:
    """A function that creates a new search for each stream; language models and graphs are loaded once, here.

    Args:
        token_list: tokens by id, blank first.
        config: the training's configuration, of which ``token_type`` and ``bpemodel`` are used.
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
    """The builder of graphs from the settings' n-gram and lexicon; arguments as of :func:`search_factory`."""
    require("kaldi_decoder", "kaldifst", "numba", extra="decode")
    from distill.decode.tlg_graph import GraphBuilder, read_lexicon, spell
    from distill.lfmmi.ngram import arpa_entries

    assert conf.lm is not None
    token_type = config.get("token_type", "char")
    if conf.lexicon is not None:
        lexicon = read_lexicon(conf.lexicon, token_list)
    elif token_type == "phn" and conf.lm_unit == "word":
        raise UserError("decoder wfst: a model of phones needs a lexicon; give --lexicon FILE")
    else:
        unigrams = takewhile(lambda entry: len(entry[1]) == 1, arpa_entries(conf.lm))  # the rest may be millions
        words = [entry[1][0] for entry in unigrams]
        kind = "word" if conf.lm_unit == "token" else token_type
        lexicon = spell(words, token_list, kind, config.get("bpemodel"))
    return GraphBuilder(conf.lm, lexicon, token_list, words_are_tokens=conf.lm_unit == "token")
