"""n-grams from text and ARPA files, what is refused, saving."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_graphs import dense_witten_bell, random_text

from distill.errors import UserError
from distill.lfmmi import DenominatorGraph, ngram, ngram_counts

ARPA = """\\data\\
ngram 1=5
ngram 2=5
ngram 3=2

\\1-grams:
-99 <s> -0.30103
-0.60206 </s>
-0.60206 a -0.30103
-0.60206 b -0.1
-0.60206 <unk>

\\2-grams:
-0.2 <s> a -0.2
-0.4 a b -0.15
-0.7 a a
-0.3 b </s>
-0.9 b a -0.05

\\3-grams:
-0.2 <s> a b
-0.2 a b </s>

\\end\\
"""
TOKEN_LIST = ["<blank>", "a", "b", "<sos/eos>"]


def log_prob(graph, *tokens):
    row = torch.tensor([tokens], dtype=torch.long).reshape(1, -1)
    return graph.log_prob(row, torch.tensor([len(tokens)]))[0].item()


def write(tmp_path, text):
    path = tmp_path / "lm.arpa"
    path.write_text(text)
    return path


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_rows_from_text_are_distributions(order):
    graph = DenominatorGraph.from_text(random_text(6, 40), order=order, vocab_size=6)
    torch.testing.assert_close(graph.log_p.exp().sum(1), torch.ones(len(graph.log_p), dtype=torch.double))
    assert graph.vocab_size == 6


def test_witten_bell_by_hand():
    """After a: 2 x b, 1 x end, so c = 3, n = 2; over all: 2 a, 2 b, 2 ends, so c = 6, n = 3; uniform is 1/4."""
    graph = DenominatorGraph.from_text([[1, 2], [1, 2, 1]][:1] + [[2, 1]], order=2, vocab_size=4)
    # text "a b" and "b a": unigram c = 6 (a 2, b 2, end 2), n = 3; after a: b 1, end 1, c = 2, n = 2
    unigram = {token: (count + 3 / 4) / 9 for token, count in ((0, 2), (1, 2), (2, 2), (3, 0))}
    for token, count in ((0, 1), (1, 0), (2, 1), (3, 0)):
        assert graph.log_p[1, token].exp().item() == pytest.approx((count + 2 * unigram[token]) / 4)
    assert graph.log_p[3, 2].exp().item() == pytest.approx(unigram[2])  # nothing was seen after token 3


def test_sequences_follow_the_longest_history():
    """Every token is weighed after the longest known ending of what came before."""
    lines = random_text(5, 30)
    for order in (1, 2, 3, 4):
        rows = dense_witten_bell(lines, order, 5)
        graph = DenominatorGraph.from_text(lines, order=order, vocab_size=5)
        for sequence in random_text(5, 20, seed=1) + [[]]:
            history, total = (-1,), 0.0
            for token in [*sequence, 0]:
                key = history[-max(order - 1, 1) :]
                while key not in rows:
                    key = key[1:]
                total += rows[key][token]
                history += (token,)
            assert log_prob(graph, *sequence) == pytest.approx(total)


def test_higher_orders_fit_the_text_better():
    lines = [[1, 1, 2, 3], [2, 1, 3, 3], [1, 1, 2, 3], [2, 1, 3, 3]]
    scores = [
        sum(log_prob(DenominatorGraph.from_text(lines, order=order, vocab_size=4), *line) for line in lines)
        for order in (1, 2, 3)
    ]
    assert scores == sorted(scores) and scores[2] > scores[1] > scores[0]


def test_arpa_uses_what_is_listed_and_else_back_off(tmp_path):
    graph = DenominatorGraph.from_arpa(write(tmp_path, ARPA), TOKEN_LIST)
    ten = math.log(10)
    # <s> a b </s>: two listed 3-grams after a listed 2-gram
    assert log_prob(graph, 1, 2) == pytest.approx(ten * (-0.2 - 0.2 - 0.2))
    # <s> b a </s>: b by back-off of <s>; (<s> b) is unknown, so b a; (b a) backs off to (a), and that to the 1-gram
    assert log_prob(graph, 2, 1) == pytest.approx(ten * (-0.30103 - 0.60206 - 0.9 - 0.05 - 0.30103 - 0.60206))
    # the empty sentence, by back-off
    assert log_prob(graph) == pytest.approx(ten * (-0.30103 - 0.60206))
    assert log_prob(graph, 3) == -math.inf  # a special token that the file lacks


def test_arpa_of_order_2_is_a_bigram(tmp_path):
    text = ARPA.replace("ngram 3=2\n", "").split("\\3-grams:")[0] + "\\end\\\n"
    graph = DenominatorGraph.from_arpa(write(tmp_path, text), TOKEN_LIST)
    assert graph.automaton.is_bigram
    assert log_prob(graph, 1, 2) == pytest.approx(math.log(10) * (-0.2 - 0.4 - 0.3))


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda text: text[: len(text) // 2], "2-grams|cut off|not in the token list"),
        (lambda text: text.replace("\\end\\\n", ""), "cut off"),
        (lambda text: text.replace("-0.2 <s> a b\n", ""), "cut off"),
        (lambda text: text.replace("-0.7 a a", "-0.7 a c"), r":16: token 'c'"),
        (lambda text: text.replace("-0.4 a b", "x a b"), ":15: "),
        (lambda text: text.replace("-0.4 a b -0.15", "-0.4 a b b b"), ":15: "),
        (lambda text: text.replace("-0.3 b </s>", "0.3 b </s>"), ":17: a log10 probability of 0.3"),
        (lambda text: text.replace("-0.3 b </s>", "nan b </s>"), ":17: a log10 probability of nan"),
        (lambda text: text.replace("-0.3 b </s>", "-0.01 b </s>"), "sum to"),
        (lambda text: text.replace("-0.60206 b -0.1", "-0.60206 <s> -0.1"), "no 1-gram for token 'b'"),
        (lambda text: "", "cut off|no n-grams"),
        (lambda text: text.replace("</s>", "<unk>"), "sentence end"),
    ],
)
def test_refuses_a_damaged_arpa(tmp_path, damage, message):
    path = write(tmp_path, damage(ARPA))
    with pytest.raises(UserError, match=message) as error:
        DenominatorGraph.from_arpa(path, TOKEN_LIST)
    assert "\n" not in str(error.value)


def test_refuses_a_missing_arpa(tmp_path):
    with pytest.raises(UserError, match="not found"):
        DenominatorGraph.from_arpa(tmp_path / "none.arpa", TOKEN_LIST)


def bigram(**changes):
    log_p = torch.full((4, 4), 0.25).log()
    for change in changes.values():
        log_p[change[0]] = change[1]
    return log_p


@pytest.mark.parametrize(
    "log_p,message",
    [
        (bigram(a=((slice(None), 2), -math.inf)), "token 2"),
        (bigram(a=((slice(None), 0), -math.inf)), "sentence end"),
        (bigram(a=((1, 1), 2.0)), "row 1"),
        (bigram(a=((2, slice(None)), -3.0)), "row 2"),
        (bigram(a=((1, 1), math.nan)), "not a number"),
        (bigram(a=((1, 1), math.inf)), "not a number"),
        (torch.full((4, 4), 0.25), "row 0"),  # probabilities, not their logs
        (torch.zeros(3, 4), "matrix"),
        (torch.zeros(4), "matrix"),
    ],
)
def test_refuses_a_bad_bigram(log_p, message):
    with pytest.raises(UserError, match=message) as error:
        DenominatorGraph.from_bigram(log_p)
    assert "\n" not in str(error.value)


def test_unchecked_bigram():
    log_p = bigram(a=((slice(None), 2), -1e30))
    graph = DenominatorGraph.from_bigram(log_p, check=False)
    assert log_prob(graph, 2) == -math.inf
    x = torch.zeros(1, 2, 4)
    x[..., 2] = 500.0  # a token with no way in does not count, however large
    assert graph.score(x, torch.tensor([2])).item() == pytest.approx(
        graph.score(torch.zeros(1, 2, 4), torch.tensor([2])).item()
    )


@pytest.mark.parametrize(
    "lines,order,vocab_size,message",
    [
        ([[1, 2], [3, 4]], 2, 4, "line 2: token 4"),
        ([[1, 0]], 2, 4, "line 1: token 0"),
        ([], 2, 4, "no lines"),
        ([[1]], 5, 4, "order 5"),
        ([[1]], 0, 4, "order 0"),
    ],
)
def test_refuses_bad_text(lines, order, vocab_size, message):
    with pytest.raises(UserError, match=message):
        DenominatorGraph.from_text(lines, order=order, vocab_size=vocab_size)


@pytest.mark.parametrize("order", [2, 3])
def test_saved_and_loaded(tmp_path, order):
    graph = DenominatorGraph.from_text(random_text(5), order=order, vocab_size=5)
    graph.save(tmp_path / "den.npz")
    again = DenominatorGraph.load(tmp_path / "den.npz")
    x = torch.randn(2, 8, 5)
    assert torch.equal(graph.score(x, torch.tensor([8, 5])), again.score(x, torch.tensor([8, 5])))
    np.load(tmp_path / "den.npz", allow_pickle=False)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_refuses_what_is_no_graph(tmp_path, content):
    path = tmp_path / "den.npz"
    if content is None:
        np.savez(path, something=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="not a denominator graph"):
        DenominatorGraph.load(path)
    with pytest.raises(UserError, match="stage 6"):
        DenominatorGraph.load(tmp_path / "none.npz")


def test_an_older_file_is_refused_with_the_cure(tmp_path):
    np.savez(tmp_path / "den.npz", log_p=np.zeros((3, 3)), next_state=np.zeros((3, 3), int), last=np.arange(3))
    with pytest.raises(UserError, match="older version.*stage 6"):
        DenominatorGraph.load(tmp_path / "den.npz")


def test_the_file_of_a_large_vocabulary_is_small(tmp_path):
    rng = np.random.default_rng(0)
    lines = [(rng.zipf(1.3, 20) % 9999 + 1).tolist() for _ in range(500)]
    for order in (2, 4):
        graph = DenominatorGraph.from_text(lines, order=order, vocab_size=10_000)
        graph.save(tmp_path / "den.npz")
        assert (tmp_path / "den.npz").stat().st_size < 1_000_000  # a dense table would have 800 MB and more
        assert len(graph.automaton.arc_node) < 10_000 + 10_000 * order


def test_log_prob_of_any_batch():
    """Every sequence as it would be alone, token by token through the dense table."""
    for order in (1, 2, 3, 4):
        graph = DenominatorGraph.from_text(random_text(6, 40), order=order, vocab_size=6)
        sequences = random_text(6, 15, seed=3) + [[], [5] * 9]
        width = max(map(len, sequences))
        tokens = torch.tensor([row + [-1] * (width - len(row)) for row in sequences])
        found = graph.log_prob(tokens, torch.tensor([len(row) for row in sequences]))
        for row, value in zip(sequences, found.tolist(), strict=True):
            state, total = 0, 0.0
            for token in row:
                total += float(graph.log_p[state, token])
                state = int(graph.next_state[state, token])
            assert value == pytest.approx(total + float(graph.log_p[state, 0]))


def test_an_n_gram_that_is_too_large_is_refused_while_it_is_counted(monkeypatch):
    monkeypatch.setattr(ngram_counts, "MAX_ARCS", 20)
    monkeypatch.setattr(ngram_counts, "BLOCK", 12)

    def lines():
        yield [1, 2, 3]
        yield [4, 3, 2, 1, 4]
        raise AssertionError("was read on")

    with pytest.raises(UserError, match="more than 20 n-grams; lower the order"):
        ngram.from_text(lines(), 3, 5)
    assert ngram.from_text([[1, 2, 3], [1, 2, 3]], 1, 5).states


@pytest.mark.parametrize("order", [1, 3])
def test_the_blocks_in_which_a_text_is_counted_change_nothing(monkeypatch, order):
    text = random_text(6, 40) + [[], [5] * 9]
    whole = ngram.from_text(text, order, 7)
    monkeypatch.setattr(ngram_counts, "BLOCK", 5)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(ngram.from_text(text, order, 7), field.name), getattr(whole, field.name))


def test_a_token_out_of_range_is_named_with_its_line_in_any_block(monkeypatch):
    monkeypatch.setattr(ngram_counts, "BLOCK", 5)
    for wrong in (0, 5, -1):
        with pytest.raises(UserError, match=f"text line 4: token {wrong} is not from 1 to 4"):
            ngram.from_text([[1, 2], [], [3, 4, 2], [1, wrong], [1]], 2, 5)


def test_a_vocabulary_whose_n_grams_have_no_code_is_refused():
    with pytest.raises(UserError, match="n-grams of order 4 of 60000 tokens; lower the order"):
        ngram.from_text([[1, 2]], 4, 60_000)
