"""Graph decoding against brute force over every path, and in pieces."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.decode.estimate_lm import write_arpa
from distill.decode.lm import NgramLM
from distill.decode.settings import DecodeConf, graph_builder
from distill.decode.tlg_graph import GraphBuilder, read_lexicon, spell
from distill.decode.wfst import WfstSearch
from distill.errors import UserError

TOKENS = ["<blank>", "x", "y", "z"]
LEXICON = {"ex": [(1,)], "exy": [(1, 2)], "why": [(2,)], "wye": [(2,), (3, 3)]}  # homophones, beginnings, a double


def draw(frames: int, vocab: int, seed: int, sharpness: float = 1.0) -> torch.Tensor:
    return sharpness * torch.randn(frames, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa([["ex", "why"], ["exy", "wye", "ex"], ["why"], ["ex", "zebra"]], 3, path)
    return path


def best_by_brute_force(
    logits: torch.Tensor, lm: NgramLM, lexicon: dict, weight: float, bonus: float, separator: int | None = None
) -> list[tuple[float, tuple[str, ...]]]:
    """Score of the best path of every word sequence, best first."""
    log_p = logits.log_softmax(-1)
    paths: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token)
        score = sum(float(log_p[t, token]) for t, token in enumerate(path))
        paths[tokens] = max(score, paths.get(tokens, -1e9))
    best: dict[tuple[str, ...], float] = {}

    def grow(tokens: tuple[int, ...], words: tuple[str, ...], state: int, score: float) -> None:
        if tokens in paths:
            whole = paths[tokens] + score + weight * lm.end(state)
            best[words] = max(whole, best.get(words, -1e9))
        if len(tokens) > len(logits):
            return
        for word, spellings in lexicon.items():
            p, after = lm.score(state, word)
            for spelling in spellings:
                between = (separator,) if separator and words else ()
                grow((*tokens, *between, *spelling), (*words, word), after, score + weight * p + bonus)

    grow((), (), lm.start, 0.0)
    return sorted(((score, words) for words, score in best.items()), reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_path_and_the_n_best_are_exact(arpa, seed):
    logits = draw(5, 4, seed, 1.5)
    graph = GraphBuilder(arpa, LEXICON, TOKENS).build(0.8, 0.4)
    expected = best_by_brute_force(logits, NgramLM(arpa), LEXICON, 0.8, 0.4)
    search = WfstSearch(graph, beam=100, nbest=4)
    search.accept(logits)
    found = search.finish()
    assert len(found) == 4
    for (score, words), hypothesis in zip(expected, found, strict=False):
        assert hypothesis.score == pytest.approx(score, abs=0.01)
        same = [other for value, other in expected if abs(value - score) < 0.01]
        assert tuple(word.text for word in hypothesis.words) in {words, *same}


@pytest.mark.parametrize("seed", range(3))
def test_spaces_between_words(tmp_path, seed):
    write_arpa([["a", "ab"], ["ab"], ["b", "a"]], 2, tmp_path / "lm.arpa")
    lm = NgramLM(tmp_path / "lm.arpa")
    tokens = ["<blank>", "<space>", "a", "b"]
    lexicon = spell(lm.word_ids, tokens, "char")
    assert lexicon == {"a": [(2,)], "ab": [(2, 3)], "b": [(3,)]}
    logits = draw(6, 4, seed, 2.0)
    score, words = best_by_brute_force(logits, lm, lexicon, 0.5, 0.2, separator=1)[0]
    search = WfstSearch(GraphBuilder(tmp_path / "lm.arpa", lexicon, tokens).build(0.5, 0.2), beam=100)
    search.accept(logits)
    (best,) = search.finish()
    assert tuple(word.text for word in best.words) == words
    assert best.score == pytest.approx(score, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_pieces_give_what_the_whole_gives(arpa, seed, sizes):
    logits = draw(sum(sizes), 4, seed, 2.0)
    graph = GraphBuilder(arpa, LEXICON, TOKENS).build(0.5, 0.0)
    whole, pieces = WfstSearch(graph, 8.0, nbest=2), WfstSearch(graph, 8.0, nbest=2)
    whole.accept(logits)
    for piece in logits.split(sizes):
        pieces.accept(piece)
        pieces.best  # noqa: B018 - asking changes nothing
    assert pieces.best == whole.best
    assert pieces.finish() == whole.finish()


def test_words_have_the_frames_of_their_tokens(arpa):
    path = [0, 1, 1, 0, 2, 2, 0, 3, 0, 3, 3, 0]
    logits = 9.0 * torch.nn.functional.one_hot(torch.tensor(path), 4).float()
    search = WfstSearch(GraphBuilder(arpa, LEXICON, TOKENS).build(0.1, -0.3), 30.0)
    for _ in range(2):  # a second utterance: frames are counted on
        first = search.frames
        search.accept(logits)
        (best,) = search.finish()
        assert [(t.id, t.start_frame - first, t.end_frame - first) for t in best.tokens] == [
            (1, 1, 3),
            (2, 4, 6),
            (3, 7, 8),
            (3, 9, 11),
        ]
        assert [(w.text, w.start_frame - first, w.end_frame - first) for w in best.words] == [
            ("exy", 1, 6),
            ("wye", 7, 11),
        ]
        assert all(0.99 < word.confidence <= 1 for word in best.words)


def test_an_n_gram_of_tokens(tmp_path):
    write_arpa([["x", "y"], ["x", "y", "y"]], 2, tmp_path / "lm.arpa")
    lexicon = spell(TOKENS[1:], TOKENS, "word")
    graph = GraphBuilder(tmp_path / "lm.arpa", lexicon, TOKENS, words_are_tokens=True).build(1.0)
    search = WfstSearch(graph, nbest=2)
    logits = torch.full((3, 4), -5.0)
    logits[0, 1], logits[1, 0], logits[2, 1], logits[2, 2] = 5.0, 5.0, 5.0, 4.9
    search.accept(logits)
    first, second = search.finish()
    assert first.words is None
    assert ([t.id for t in first.tokens], [t.id for t in second.tokens]) == ([1, 2], [1, 1])


def test_nothing_gives_nothing(arpa):
    search = WfstSearch(GraphBuilder(arpa, LEXICON, TOKENS).build(0.5))
    search.accept(torch.zeros(0, 4))
    assert search.best.words == []
    assert search.finish()[0].words == []


def test_lexicon_files(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("ex x\nexy x y\nex z\nex x\n")
    assert read_lexicon(path, TOKENS) == {"ex": [(1,), (3,)], "exy": [(1, 2)]}
    for text, message in (
        ("ex\n", r"lexicon.txt:1: expected"),
        ("ex x\ny q\n", r"lexicon.txt:2: token 'q'"),
        ("", "empty"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_lexicon(path, TOKENS)


def test_foreign_n_grams_are_refused(arpa):
    with pytest.raises(UserError, match="none of its words"):
        GraphBuilder(arpa, {}, TOKENS)
    with pytest.raises(UserError, match="not found"):
        GraphBuilder(arpa.with_name("none.arpa"), LEXICON, TOKENS)


@pytest.mark.parametrize("beam", [0, -1])
def test_a_beam_that_is_not_positive_is_refused(arpa, beam):
    with pytest.raises(UserError, match="must be positive"):
        WfstSearch(GraphBuilder(arpa, LEXICON, TOKENS).build(0.5), beam=beam)


@pytest.mark.parametrize("order", [1, 2])
def test_without_a_lexicon_every_word_of_the_n_gram_is_spelt(tmp_path, order):
    write_arpa([["xy", "z"], ["xy", "z"]], order, tmp_path / "lm.arpa")
    conf = DecodeConf("wfst", lm=tmp_path / "lm.arpa")
    tokens = ["<blank>", "x", "y", "z", "<space>"]
    graph = graph_builder(conf, tokens, {"token_type": "char"}).build(0.1)
    search = WfstSearch(graph)
    search.accept(9.0 * torch.eye(5)[[1, 2, 4, 3]])
    assert [word.text for word in search.finish()[0].words] == ["xy", "z"]


def test_without_a_lexicon_words_are_spelt_in_pieces_of_the_models_own_sentencepiece_model(tmp_path):
    words = ["abba", "cab"]
    (tmp_path / "text").write_text("abba cab\ncab abba\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "bpe"), vocab_size=9, minloglevel=2
    )
    write_arpa([words], 1, tmp_path / "lm.arpa")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    tokens = ["<blank>", *(model.id_to_piece(n) for n in range(model.get_piece_size()))]
    conf, config = DecodeConf("wfst", lm=tmp_path / "lm.arpa"), {"token_type": "bpe"}
    with pytest.raises(UserError, match="bpemodel"):
        graph_builder(conf, tokens, config)
    search = WfstSearch(graph_builder(conf, tokens, {**config, "bpemodel": str(tmp_path / "bpe.model")}).build(0.1))
    pieces = [tokens.index(piece) for piece in model.encode_as_pieces("abba cab")]
    rows = [row for piece in pieces for row in (piece, 0)]  # a blank after each, as a piece may be doubled
    search.accept(9.0 * torch.eye(len(tokens))[rows])
    assert [word.text for word in search.finish()[0].words] == words


def test_phones_need_a_lexicon(tmp_path, arpa):
    with pytest.raises(UserError, match="give --lexicon FILE"):
        graph_builder(DecodeConf("wfst", lm=arpa), TOKENS, {"token_type": "phn"})
    (tmp_path / "lexicon.txt").write_text("ex x\nwhy y\n")
    conf = DecodeConf("wfst", lm=arpa, lexicon=tmp_path / "lexicon.txt")
    search = WfstSearch(graph_builder(conf, TOKENS, {"token_type": "phn"}).build(0.1))
    search.accept(9.0 * torch.eye(4)[[1, 0, 2]])
    (best,) = search.finish()
    assert [word.text for word in best.words or ()] == ["ex", "why"] and [t.id for t in best.tokens] == [1, 2]
