"""ARPA files: ours, read back, and damaged ones."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.decode import estimate_lm
from distill.decode.estimate_lm import write_arpa
from distill.decode.lm import NgramLM
from distill.errors import UserError
from distill.lfmmi import DenominatorGraph
from distill.lfmmi.ngram import arpa_entries

SENTENCES = [["a", "b", "c"], ["a", "b"], ["c"], ["a", "c", "a", "b"], ["a", "a"]]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_same_estimate_as_the_denominators(tmp_path, order):
    write_arpa(SENTENCES, order, tmp_path / "lm.arpa")
    lm = NgramLM(tmp_path / "lm.arpa")
    ids = {"a": 1, "b": 2, "c": 3, "<unk>": 4}
    graph = DenominatorGraph.from_text([[ids[w] for w in s] for s in SENTENCES], order, 5)
    for sentence in [*SENTENCES, ["b", "b", "zebra", "a"]]:
        state, total = lm.start, 0.0
        for word in sentence:
            p, state = lm.score(state, word)
            total += p
        tokens = torch.tensor([[ids.get(word, 4) for word in sentence]])
        expected = graph.log_prob(tokens, torch.tensor([len(sentence)]))
        assert total + lm.end(state) == pytest.approx(float(expected), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6), min_size=1, max_size=8), st.integers(1, 4))
def test_every_history_has_a_distribution(tmp_path_factory, sentences, order):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa(sentences, order, path)
    lm = NgramLM(path)
    words = [word for word in lm.word_ids if word not in ("<s>", "</s>")]
    for sentence in sentences:
        state = lm.start
        for word in sentence:
            state = lm.score(state, word)[1]
            total = sum(math.exp(lm.score(state, w)[0]) for w in words) + math.exp(lm.end(state))
            assert total == pytest.approx(1.0, abs=1e-4)


def arpa(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(text)
    return path


GOOD = """
\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99 <s> -0.3
-0.5 </s>
-0.4 a -0.2
-0.6 b

\\2-grams:
-0.1 <s> a
-0.2 a b

\\end\\
"""


def test_back_off_by_hand(tmp_path):
    lm = NgramLM(arpa(tmp_path, GOOD))
    ten = math.log(10)
    p, after_a = lm.score(lm.start, "a")
    assert p == pytest.approx(-0.1 * ten)
    p, after_b = lm.score(after_a, "b")
    assert p == pytest.approx(-0.2 * ten)
    assert lm.end(after_a) == pytest.approx((-0.2 - 0.5) * ten)
    assert lm.score(lm.start, "b")[0] == pytest.approx((-0.3 - 0.6) * ten)
    assert lm.end(after_b) == pytest.approx(-0.5 * ten)
    assert lm.score(after_a, "zebra") == (pytest.approx(-0.6 * ten), 0)  # as rare as the rarest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("-0.2 a b\n", ""), "cut off"),
        (lambda text: text.replace("-0.2 a b", "-0.2 a"), "fields in the 2-grams"),
        (lambda text: text.replace("-0.2 a b", "-0.2 a z"), "'z' has no 1-gram"),
        (lambda text: text.replace("-0.2 a b", "x a b"), "damaged"),
        (lambda text: text.replace("</s>", "c"), "no 1-gram for </s>"),
        (lambda text: "", "cut off"),
    ],
)
def test_damage_is_told(tmp_path, damage, message):
    with pytest.raises(UserError, match=message):
        NgramLM(arpa(tmp_path, damage(GOOD)))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="not found"):
        NgramLM(tmp_path / "none.arpa")


def test_order_and_text_are_checked(tmp_path):
    with pytest.raises(UserError, match="order 0"):
        write_arpa(SENTENCES, 0, tmp_path / "lm.arpa")
    with pytest.raises(UserError, match="no sentences"):
        write_arpa([], 2, tmp_path / "lm.arpa")
    assert not list(tmp_path.iterdir())


def test_from_a_large_text_what_occurs_once_is_left_out_and_every_history_has_a_distribution(tmp_path, monkeypatch):
    generator = random.Random(0)
    sentences = [generator.choices("abcdef", weights=range(1, 7), k=generator.randint(1, 9)) for _ in range(60)]
    whole = write_arpa(sentences, 4, tmp_path / "whole.arpa")
    monkeypatch.setattr(estimate_lm, "CUT_OFF_WORDS", 100)
    assert write_arpa(sentences, 4, tmp_path / "lm.arpa") < whole
    times = Counter(
        tuple(padded[end - n : end])
        for sentence in sentences
        for padded in [["<s>", *sentence, "</s>"]]
        for end in range(2, len(padded) + 1)
        for n in range(2, min(end, 4) + 1)
    )
    listed = {words for _, words, _, _ in arpa_entries(tmp_path / "lm.arpa") if len(words) > 1}
    assert listed == {words for words, count in times.items() if len(words) == 2 or count > 1}
    lm = NgramLM(tmp_path / "lm.arpa")
    for sentence in sentences:
        state = lm.start
        for word in sentence:
            state = lm.score(state, word)[1]
            total = sum(math.exp(lm.score(state, w)[0]) for w in [*"abcdef", "<unk>"]) + math.exp(lm.end(state))
            assert total == pytest.approx(1.0, abs=1e-4)


def test_a_text_that_is_too_large_asks_for_an_n_gram(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate_lm, "MAX_WORDS", 20)
    with pytest.raises(UserError, match="more than 20 words are too many to count here; give --lm FILE.arpa"):
        write_arpa(SENTENCES * 3, 2, tmp_path / "lm.arpa")


def test_memory_for_a_word_of_text_is_bounded(tmp_path):
    """Tuples in dictionaries took about 600 bytes for each word."""
    generator = np.random.default_rng(0)
    words = [f"w{n}" for n in range(5000)]
    sentences = [[words[int(n)] for n in row] for row in generator.zipf(1.2, (4000, 25)) % 5000]
    tracemalloc.start()
    write_arpa(iter(sentences), 3, tmp_path / "lm.arpa")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 100_000 + 30_000_000  # and what is written at a time


def test_places_of_millions_of_n_grams_have_64_bits(tmp_path):
    write_arpa(SENTENCES, 3, tmp_path / "lm.arpa")
    assert NgramLM(tmp_path / "lm.arpa")._find(np.zeros((4, 2), np.int32)).dtype == np.int64
