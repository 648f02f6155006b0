"""OpenFst text: read as ARPA's back-off means it, written and read again, refused where it is damaged."""

import math
import re

import pytest
import torch
from small_graphs import random_bigram, random_text
from test_denominator_graph import ARPA, TOKEN_LIST, log_prob

from distill.errors import UserError
from distill.lfmmi import DenominatorGraph

# The ARPA file of test_denominator_graph, order 2, as kaldilm prints it:
# state 0 after <s>, 1 after a, 2 after b, 3 the back-off.
TEN = math.log(10)
COSTS = [
    (0, 1, 1, 0.2), (0, 3, 4, 0.30103), (1, 2, 2, 0.4), (1, 1, 1, 0.7), (1, 3, 4, 0.30103), (2, 1, 1, 0.9),
    (2, 3, 4, 0.1), (3, 1, 1, 0.60206), (3, 2, 2, 0.60206),
]  # fmt: skip
FST = "".join(f"{s}\t{t}\t{k}\t{0 if k == 4 else k}\t{c * TEN:.8f}\n" for s, t, k, c in COSTS)
FST += f"2\t{0.3 * TEN:.8f}\n3\t{0.60206 * TEN:.8f}\n"


def read(tmp_path, text, token_list=TOKEN_LIST):
    path = tmp_path / "P.fst.txt"
    path.write_text(text)
    return DenominatorGraph.from_openfst(path, token_list)


def arpa_bigram(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA.replace("ngram 3=2\n", "").split("\\3-grams:")[0] + "\\end\\\n")
    return DenominatorGraph.from_arpa(path, TOKEN_LIST)


def test_back_off_means_what_it_means_in_arpa(tmp_path):
    fst, arpa = read(tmp_path, FST), arpa_bigram(tmp_path)
    for tokens in [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2), (2, 2, 1, 1, 2)]:
        assert log_prob(fst, *tokens) == pytest.approx(log_prob(arpa, *tokens), abs=1e-6)
    assert log_prob(fst, 3) == -math.inf  # <sos/eos>
    assert fst.automaton.is_bigram


@pytest.mark.parametrize("order", [1, 2, 3])
def test_written_and_read_again(tmp_path, order):
    graph = DenominatorGraph.from_text(random_text(5, 20), order=order, vocab_size=5)
    graph.to_openfst(tmp_path / "P.fst.txt")
    again = DenominatorGraph.from_openfst(tmp_path / "P.fst.txt", list("_abcd"))
    x, lengths = torch.randn(2, 9, 5, dtype=torch.double), torch.tensor([9, 4])
    torch.testing.assert_close(again.score(x, lengths), graph.score(x, lengths), rtol=0, atol=1e-6)


def test_absent_arcs_stay_absent(tmp_path):
    graph = random_bigram(6, seed=3, absent=0.4)
    graph.to_openfst(tmp_path / "P.fst.txt")
    again = DenominatorGraph.from_openfst(tmp_path / "P.fst.txt", list("_abcde"))
    torch.testing.assert_close(again.log_p, graph.log_p, rtol=0, atol=1e-8)


def test_an_acceptor_has_a_column_less(tmp_path):
    lines = [line.split("\t") for line in FST.splitlines()]
    acceptor = "\n".join(" ".join(f[:3] + f[4:] if len(f) == 5 else f) for f in lines)
    assert log_prob(read(tmp_path, acceptor), 1, 2) == pytest.approx(log_prob(read(tmp_path, FST), 1, 2))


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda text: "", "has no arcs"),
        (lambda text: text[: text.index("\n2\t") + 1], "has no final state"),
        (lambda text: text[: len(text) // 2], "fields|no final state|could not convert|sum to"),
        (lambda text: text.replace("3\t2\t2\t2", "3\t1\t2\t2").replace("1\t2\t2\t2", "1\t2\tx\t2"), ":3: .*'x'"),
        (lambda text: text + "0\t2\t1\t1\t0.5\n", ":12: a second arc with token 1"),
        (lambda text: text + "0\t2\t5\t0\t0.5\n", ":12: a second back-off"),
        (lambda text: text + "3\t1\t-2\t0\t0.5\n", ":12: token -2"),
        (lambda text: text + "3\t1\t4\t0\t0.5\n", "circle"),
        (lambda text: re.sub(r"3\t2\t2\t2.*\n", "", re.sub(r"1\t2\t2\t2.*\n", "", text)), "token 2 .'b'"),
        (lambda text: text.replace("0\t1\t1\t1\t0.4", "0\t1\t1\t1\t-0.4"), "sum to"),
    ],
)
def test_refuses_a_damaged_file(tmp_path, damage, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, damage(FST))
    assert "\n" not in str(error.value) and "P.fst.txt" in str(error.value)


def test_refuses_what_is_no_text(tmp_path):
    (tmp_path / "P.fst").write_bytes(b"\xd6\xfd\xb2\x7e")
    with pytest.raises(UserError, match="fstprint"):
        DenominatorGraph.from_openfst(tmp_path / "P.fst", TOKEN_LIST)
    with pytest.raises(UserError, match="not found"):
        DenominatorGraph.from_openfst(tmp_path / "none", TOKEN_LIST)


def test_refuses_another_token_list(tmp_path):
    DenominatorGraph.from_text(random_text(5, 20), order=2, vocab_size=5).to_openfst(tmp_path / "P.fst.txt")
    text = (tmp_path / "P.fst.txt").read_text()
    with pytest.raises(UserError, match="token list"):
        read(tmp_path, text, list("_abc"))  # token 4 is beyond the list, and so a back-off
    with pytest.raises(UserError, match="same token list"):
        read(tmp_path, text, list("_abcde"))  # the back-off arcs are taken for token 5
    with pytest.raises(UserError, match="token 5 .'e'"):
        read(tmp_path, text.replace(" 5 0 ", " 6 0 "), list("_abcde"))
