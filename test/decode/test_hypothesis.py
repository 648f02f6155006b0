"""Words from tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.decode.hypothesis import Hypothesis, Token, words_of
from distill.decode.token_text import tokens_to_text

TOKENS = {
    "char": ["<blank>", "<space>", "a", "b", "<unk>", "<sos/eos>"],
    "bpe": ["<blank>", "▁", "▁a", "b", "▁ab", "<unk>", "<sos/eos>"],
    "word": ["<blank>", "one", "<unk>", "<sos/eos>"],
    "phn": ["<blank>", "W", "AH1", "<sos/eos>"],
}


@pytest.mark.parametrize("token_type", TOKENS)
@given(ids=st.lists(st.integers(1, 6), max_size=12))
def test_words_spell_the_text_and_span_their_tokens(token_type, ids):
    names = TOKENS[token_type]
    tokens = [Token(1 + i % (len(names) - 1), 3 * n, 3 * n + 2, 0.5 + n / 100) for n, i in enumerate(ids)]
    words = words_of(Hypothesis(tokens, None, 0.0), names, token_type)
    assert " ".join(word.text for word in words) == tokens_to_text((names[t.id] for t in tokens), token_type)
    ends = [0]
    for word in words:
        assert ends[-1] <= word.start_frame < word.end_frame
        inside = [t.confidence for t in tokens if word.start_frame <= t.start_frame < word.end_frame]
        assert word.confidence == min(inside)
        ends.append(word.end_frame)


def test_words_are_timed_by_their_own_tokens():
    tokens = [Token(2, 1, 3, 0.9), Token(1, 4, 5, 0.2), Token(2, 7, 8, 0.8), Token(3, 8, 10, 0.7)]
    words = words_of(Hypothesis(tokens, None, 0.0), TOKENS["char"], "char")
    assert words == [("a", 1, 3, 0.9), ("ab", 7, 10, 0.7)]
