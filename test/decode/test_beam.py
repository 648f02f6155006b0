"""Prefix beam search against brute force over every alignment, greedy decoding, and itself in pieces."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.decode.beam import SETTLE_EVERY, BeamSearch, Fusion
from distill.decode.estimate_lm import write_arpa
from distill.decode.greedy import greedy
from distill.decode.hotwords import Hotwords
from distill.decode.hypothesis import words_of
from distill.decode.lm import NgramLM
from distill.errors import UserError

WORDS = ["<blank>", "a", "b", "zebra"]  # the n-gram does not know the last


def draw(frames: int, vocab: int, seed: int, sharpness: float = 1.0) -> torch.Tensor:
    return sharpness * torch.randn(frames, vocab, generator=torch.Generator().manual_seed(seed))


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


def all_alignments(logits: torch.Tensor) -> dict[tuple[int, ...], float]:
    """ln P of every token sequence, by summing over every path."""
    log_p = logits.double().log_softmax(-1)
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        p = math.exp(sum(float(log_p[t, token]) for t, token in enumerate(path)))
        sums[collapse(path)] = sums.get(collapse(path), 0.0) + p
    return {tokens: math.log(p) for tokens, p in sums.items()}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> NgramLM:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa([["a", "b"], ["a", "b", "b"], ["b"], []], 3, path)
    return NgramLM(path)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_is_the_exact_sum_over_all_alignments(lm, seed):
    logits = draw(5, 4, seed)
    exact = all_alignments(logits)
    fusion = Fusion(WORDS, "word", lm, lm_weight=0.7, word_bonus=0.3)
    found = BeamSearch(fusion, beam=5000, nbest=5000)
    found.accept(logits)
    hypotheses = found.finish()

    def whole(tokens: tuple[int, ...]) -> float:
        state, score = lm.start, exact[tokens]
        for token in tokens:
            p, state = lm.score(state, WORDS[token])
            score += 0.7 * p + 0.3
        return score + 0.7 * lm.end(state)

    assert {tuple(t.id for t in h.tokens) for h in hypotheses} == set(exact)
    for hypothesis in hypotheses:
        assert hypothesis.score == pytest.approx(whole(tuple(t.id for t in hypothesis.tokens)), abs=1e-4)
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert scores == sorted(scores, reverse=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(2, 6), st.sampled_from([0.3, 1.0, 4.0]))
def test_beam_1_without_a_language_model_is_greedy(seed, frames, vocab, sharpness):
    logits = draw(frames, vocab, seed, sharpness)
    search = BeamSearch(Fusion(["<blank>", *"abcdef"[: vocab - 1]], "word"), beam=1)
    search.accept(logits)
    (hypothesis,) = search.finish()
    expected = greedy(logits)
    assert [t[:3] for t in hypothesis.tokens] == [t[:3] for t in expected]
    assert [t.confidence for t in hypothesis.tokens] == pytest.approx([t.confidence for t in expected], abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_pieces_give_what_the_whole_gives(lm, seed, sizes):
    logits = draw(sum(sizes), 4, seed, 2.0)
    fusion = Fusion(WORDS, "word", lm, 0.5, 0.2, Hotwords(["a b"], 2.0))
    whole, pieces = (BeamSearch(fusion, beam=6, nbest=4) for _ in range(2))
    whole.accept(logits)
    for piece in logits.split(sizes):
        pieces.accept(piece)
        assert len(pieces.best.tokens) >= pieces.settled
    assert pieces.best == whole.best
    assert pieces.finish() == whole.finish()


def test_settling_forgets_nothing_that_counts(lm, monkeypatch):
    """Long streams: the same tokens, times and scores as without settling, with no long chain kept."""
    logits = draw(6 * SETTLE_EVERY, 4, 5, 3.0)
    fusion = Fusion(WORDS, "word", lm, 0.6, 0.1)
    settling = BeamSearch(fusion, beam=6, nbest=3)
    settling.accept(logits)
    assert settling.settled > 0.5 * len(settling.best.tokens)
    node, depth = settling._beam[0][0], 0
    while node is not None:
        node, depth = node.parent, depth + 1
    assert depth < 2 * SETTLE_EVERY < len(settling.best.tokens)
    monkeypatch.setattr(BeamSearch, "_settle", lambda self: None)
    plain = BeamSearch(fusion, beam=6, nbest=3)
    plain.accept(logits)
    for one, other in zip(settling.finish(), plain.finish(), strict=True):
        assert [t.id for t in one.tokens] == [t.id for t in other.tokens]
        assert one.score == pytest.approx(other.score)
    assert settling.frames == plain.frames == len(logits)


def test_an_utterance_ends_and_another_begins(lm):
    fusion = Fusion(WORDS, "word", lm, 0.6)
    logits = draw(20, 4, 1, 3.0)
    search = BeamSearch(fusion)
    search.accept(logits)
    first = search.finish()[0]
    search.accept(logits)
    second = search.finish()[0]
    assert [t.id for t in first.tokens] == [t.id for t in second.tokens]
    assert [t.start_frame + 20 for t in first.tokens] == [t.start_frame for t in second.tokens]
    assert first.score == pytest.approx(second.score)


def test_the_language_model_decides_what_the_acoustics_leave_open(lm):
    logits = torch.full((3, 4), -5.0)
    logits[0, 1], logits[1, 0], logits[2, 1], logits[2, 2] = 5.0, 5.0, 5.0, 4.9  # a, then a or slightly less b
    without, with_lm = BeamSearch(Fusion(WORDS, "word")), BeamSearch(Fusion(WORDS, "word", lm, 1.0))
    for search in (without, with_lm):
        search.accept(logits)
    assert [t.id for t in without.finish()[0].tokens] == [1, 1]
    assert [t.id for t in with_lm.finish()[0].tokens] == [1, 2]


@pytest.mark.parametrize(
    ("token_type", "tokens", "sounds", "plain", "hot"),
    [
        ("char", ["<blank>", "<space>", "c", "a", "t", "p"], ["c", "a", "t p"], "cat", "cap"),
        ("bpe", ["<blank>", "▁", "▁ca", "t", "p", "▁a"], ["▁ca", "t p"], "cat", "cap"),
        ("word", ["<blank>", "the", "cat", "cap"], ["the", "cat cap"], "the cat", "the cap"),
    ],
)
def test_hot_words_in_every_kind_of_token(token_type, tokens, sounds, plain, hot):
    frames = []
    for sound in sounds:
        row = torch.full((len(tokens),), -8.0)
        for rank, token in enumerate(sound.split()):
            row[tokens.index(token)] = 3.0 - 0.5 * rank
        frames += [row, torch.eye(len(tokens))[0] * 20]
    texts = []
    for hotwords in (None, Hotwords(["cap"], 3.0)):
        search = BeamSearch(Fusion(tokens, token_type, hotwords=hotwords))
        search.accept(torch.stack(frames))
        texts.append(" ".join(word.text for word in words_of(search.finish()[0], tokens, token_type)))
    assert texts == [plain, hot]


@pytest.mark.parametrize(
    ("token_type", "tokens", "ids"),
    [
        ("char", ["<blank>", "<space>", "a", "b"], [2, 3, 1, 3]),
        ("bpe", ["<blank>", "\u2581a", "b", "\u2581b"], [1, 2, 3]),
    ],
)
def test_a_word_is_scored_when_it_ends_and_ahead_until_then(tmp_path, token_type, tokens, ids):
    write_arpa([["ab", "b"], ["ab", "b"], ["b"]], 2, tmp_path / "lm.arpa")
    lm = NgramLM(tmp_path / "lm.arpa")
    fusion = Fusion(tokens, token_type, lm, 2.0, 0.5)
    prefix = fusion.extend(fusion.empty(), ids[0])
    assert prefix.score == pytest.approx(2 * lm.score(0, "ab")[0] + 0.5)  # the only word in a
    for token in ids[1:]:
        prefix = fusion.extend(prefix, token)
    first, state = lm.score(lm.start, "ab")
    assert prefix.score == pytest.approx(2 * (first + lm.score(0, "b")[0]) + 1.0)
    second, state = lm.score(state, "b")
    assert fusion.end(prefix) == pytest.approx(2 * (first + second + lm.end(state)) + 1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=12))
def test_the_look_ahead_changes_no_complete_sentence(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa([["ab", "b"], ["cab", "b", "ab"], ["b"]], 3, path)
    lm = NgramLM(path)
    tokens = ["<blank>", "<space>", "a", "b", "c"]
    fusion = Fusion(tokens, "char", lm, 0.7, 0.3, Hotwords(["cc"], 0.0))
    prefix = fusion.empty()
    for token in ids:
        prefix = fusion.extend(prefix, token)
    score, state = 0.0, lm.start
    for word in "".join(" abc"[token - 1] for token in ids).split():
        log_p, state = lm.score(state, word)
        # an unknown word also costs its letters, of which the n-gram's words have three; a hot word does not
        letters = 0 if word in ("ab", "b", "cab", "cc") else len(word)
        score += 0.7 * (log_p - letters * math.log(3)) + 0.3
    assert fusion.end(prefix) == pytest.approx(score + 0.7 * lm.end(state), abs=1e-4)


def test_a_narrow_beam_finds_words_in_doubtful_letters(tmp_path):
    """Where every letter is in doubt, a long unknown word is never a better beginning than the words of a sentence."""
    sentences = ["the old man went home", "a young girl sang", "the girl went to the old town", "a man sang at home"]
    write_arpa([sentence.split() for sentence in sentences], 2, tmp_path / "lm.arpa")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<blank>", "<space>", *letters]
    fusion = Fusion(tokens, "char", NgramLM(tmp_path / "lm.arpa"), 0.7, 1.0)
    correct = 0
    for number, sentence in enumerate(sentences):
        logits = draw(2 * len(sentence), len(tokens), number, 1.4)
        for place, letter in enumerate(sentence):
            logits[2 * place, tokens.index(letter.replace(" ", "<space>"))] += 4.0
            logits[2 * place + 1, 0] += 6.0
        search = BeamSearch(fusion, beam=8)
        search.accept(logits)
        found = words_of(search.finish()[0], tokens, "char")
        correct += " ".join(word.text for word in found) == sentence
    assert correct == len(sentences)


def test_the_n_best_have_different_texts():
    tokens = ["<blank>", "<space>", "a", "b"]
    search = BeamSearch(Fusion(tokens, "char"), beam=5000, nbest=10)
    logits = draw(4, 4, 3)
    search.accept(logits)
    hypotheses = search.finish()
    texts = ["".join("_ab"[t.id - 1] for t in h.tokens) for h in hypotheses]
    assert len(hypotheses) == 10
    assert len({" ".join(text.replace("_", " ").split()) for text in texts}) == 10
    assert all(h.score == pytest.approx(all_alignments(logits)[tuple(t.id for t in h.tokens)]) for h in hypotheses)


def test_a_beam_of_nothing_is_refused():
    with pytest.raises(UserError, match="beam: 0"):
        BeamSearch(Fusion(WORDS, "word"), beam=0)


def test_hot_words_gain_whole_phrases_only():
    hotwords = Hotwords(["new york", "york city", ""], 4.0)

    def gain(text: str) -> float:
        first, state = hotwords.read(0, " " + text)
        return first + hotwords.end(state)

    assert gain("new york") == pytest.approx(4.0)
    assert gain("in new york city") == pytest.approx(8.0)
    for text in ("", "new", "new yorker", "anew york", "york", "new new"):
        assert gain(text) == pytest.approx(0.0), text
    partial, _ = hotwords.read(0, " new yo")
    assert 0 < partial < 4.0
