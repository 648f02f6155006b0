"""Choice of the language model's weight and the word bonus on a validation set."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import editdistance
import torch
from torch import Tensor
from tqdm import tqdm

from distill.audio import read_wav_scp
from distill.checkpoints.load import LoadedNetwork, load_network
from distill.decode.greedy import GreedySearch
from distill.decode.hypothesis import Search, words_of
from distill.decode.settings import DecodeConf, graph_builder, search_factory
from distill.errors import UserError
from distill.files import atomic_write
from distill.models.teacher import Teacher
from distill.recognition.posteriors import log_posteriors
from distill.scoring.text import read_text

PART_WORDS = 500  # of the utterances on which every pair is tried
LEADING = 0.25  # share of the pairs that are then tried on the other utterances too


class ValidationSet(NamedTuple):
    """Utterances with their reference words and the network's (T, V) log-posteriors, in the same order."""

    references: list[list[str]]
    logits: list[Tensor]
    token_list: list[str]
    token_type: str

    def words(self, utterances: Iterable[int]) -> int:
        """Number of words in the references of utterances, which are given by their places."""
        return sum(len(self.references[place]) for place in utterances)

    def errors(self, search: Search, utterances: Iterable[int]) -> int:
        """Word errors in utterances when they are decoded with a search."""
        errors = 0
        for place in utterances:
            search.accept(self.logits[place])
            words = words_of(search.finish()[0], self.token_list, self.token_type)
            errors += editdistance.eval(self.references[place], [word.text for word in words])
        return errors


def tune(
    model: Path,
    data_dir: Path,
    chunk_ms: int | None,
    decoders: Sequence[DecodeConf],
    lm_weights: Sequence[float],
    word_bonuses: Sequence[float],
    max_utterances: int,
    threads: int,
    output: Path,
) -> None:
    """Write the best weight and bonus of each decoder, and the whole grid, to a JSON file.

    The network runs once, each decoder for every pair of the grid on a part of the utterances, and for those that lead
    there on all. Among pairs with equal word error rate the lowest weight is chosen, then the bonus nearest to 0.

    Args:
        model: a training's directory or a packed model.
        data_dir: the validation set, a Kaldi data directory with wav.scp and text.
        chunk_ms: chunk length; None for full context.
        decoders: settings with an n-gram; their weight and bonus are ignored.
        lm_weights: values to try.
        word_bonuses: values to try.
        max_utterances: largest number of utterances, spread evenly over the set.
        threads: CPU threads.
        output: the JSON file.
    """
    if any(conf.lm is None for conf in decoders):
        raise UserError("--lm: required, as its weight is tuned")
    torch.set_num_threads(threads)
    loaded = load_network(model)
    validation = run_network(loaded, data_dir, chunk_ms, max_utterances, f"{model.name}, {data_dir.name}")
    # Phones have no words to compare unless there is a lexicon.
    everything = range(len(validation.references))
    words = validation.words(everything)
    greedy = None
    if validation.token_type != "phn":
        greedy = 100 * sum(validation.errors(GreedySearch(), [place]) for place in everything) / words
    pairs = [(weight, bonus) for weight in sorted(lm_weights) for bonus in sorted(word_bonuses)]
    tuned: dict[str, dict[str, Any]] = {}
    for conf in decoders:
        new_search = search_builder(conf, loaded.token_list, loaded.config)
        grid = try_pairs(validation, pairs, new_search, conf.decoder)
        complete = [point for point in grid if point["words"] == words]
        best = min(complete, key=lambda point: (point["wer"], point["lm_weight"], abs(point["word_bonus"])))
        tuned[conf.decoder] = {
            **best,
            "wer_greedy": greedy,
            "lm": str(conf.lm),
            "set": str(data_dir),
            "chunk_ms": chunk_ms,
            "utterances": len(validation.logits),
            "grid": grid,
        }
        print(
            f"{model.name}, {conf.decoder}: {best['wer']:.2f} % WER on {data_dir.name} with lm_weight "
            f"{best['lm_weight']:g}, word_bonus {best['word_bonus']:g}"
            + ("" if greedy is None else f" (greedy: {greedy:.2f} %)")
        )
    with atomic_write(output) as stream:
        json.dump(tuned, stream, indent=1)


def try_pairs(
    validation: ValidationSet,
    pairs: Sequence[tuple[float, float]],
    new_search: Callable[[float, float], Search],
    description: str,
) -> list[dict[str, float]]:
    """Word error rates with pairs of weight and bonus, by which the best one can be chosen.

    Every pair is tried on a part of the utterances, spread evenly, of about PART_WORDS words but at least an eighth of
    the set. The LEADING share of them is tried on the rest too.

    Returns:
        a mapping for each pair, with its ``lm_weight`` and ``word_bonus``, ``wer`` in percent, and the number of
        ``words`` on which it was tried.
    """
    everything = range(len(validation.references))
    step = max(1, min(8, validation.words(everything) // PART_WORDS))
    rest = [place for place in everything if place % step]
    leading = math.ceil(LEADING * len(pairs)) if rest else 0
    tried = dict.fromkeys(pairs, validation.words(everything[::step]))
    with tqdm(total=len(pairs) + leading, desc=description, unit="pair", mininterval=1) as bar:
        errors = {}
        for pair in pairs:
            errors[pair] = validation.errors(new_search(*pair), everything[::step])
            bar.update()
        for pair in sorted(pairs, key=lambda pair: errors[pair])[:leading]:
            errors[pair] += validation.errors(new_search(*pair), rest)
            tried[pair] += validation.words(rest)
            bar.update()
    grid = []
    for pair in pairs:
        wer = 100 * errors[pair] / max(1, tried[pair])
        grid.append({"lm_weight": pair[0], "word_bonus": pair[1], "wer": wer, "words": tried[pair]})
    return grid


def run_network(
    loaded: LoadedNetwork, data_dir: Path, chunk_ms: int | None, max_utterances: int, description: str
) -> ValidationSet:
    """Compute the log-posteriors of at most ``max_utterances`` utterances of a set; ``description`` is the bar's.

    Raises:
        UserError: wav.scp and text differ in their utterances, or there are no words.
    """
    texts, waves = read_text(data_dir / "text"), read_wav_scp(data_dir / "wav.scp")
    if unmatched := sorted(texts.keys() ^ waves.keys()):
        raise UserError(f"{data_dir}: {unmatched[0]} is only in one of text and wav.scp")
    keys = sorted(texts)[:: -(-len(texts) // max_utterances)]
    references = [texts[key].split() for key in keys]
    if not any(references):
        raise UserError(f"{data_dir / 'text'}: no words to tune on")
    network, token_list, config = loaded
    streams = config.get("chunk_conf") and not isinstance(network, Teacher)
    matrices = log_posteriors(loaded, {key: waves[key] for key in keys}, chunk_ms if streams else None)
    shown = tqdm(matrices, total=len(keys), desc=description, unit="utt", mininterval=1)
    logits = [torch.from_numpy(matrix) for _, matrix in shown]
    return ValidationSet(references, logits, token_list, config.get("token_type", "char"))


def search_builder(
    conf: DecodeConf, token_list: Sequence[str], config: Mapping[str, Any]
) -> Callable[[float, float], Search]:
    """A function of ``lm_weight`` and ``word_bonus`` that returns a search; the n-gram's file is read once for wfst."""
    if conf.decoder != "wfst":
        return lambda weight, bonus: search_factory(
            dataclasses.replace(conf, lm_weight=weight, word_bonus=bonus), token_list, config
        )()
    builder = graph_builder(conf, token_list, config)
    from distill.decode.wfst import WfstSearch

    return lambda weight, bonus: WfstSearch(builder.build(weight, bonus), conf.wfst_beam)
