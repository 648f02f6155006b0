"""ARPA files: ours, read back, and damaged ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.decode.lm import NgramLM, write_arpa
from distill.errors import UserError
from distill.lfmmi import DenominatorGraph

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
