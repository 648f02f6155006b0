"""The denominator graph from text, and from an n-gram made elsewhere."""

import pytest
import torch

from distill.bin.make_graph import main
from distill.lfmmi import DenominatorGraph

TEXT = "utt1 one two\nutt2 two\nutt3 two one one\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "tokens.txt").write_text("<blank>\none\ntwo\n<sos/eos>\n")
    return tmp_path


def make(files, *options):
    main([*options, "--token_list", str(files / "tokens.txt"), "--output", str(files / "den.npz")])
    return DenominatorGraph.load(files / "den.npz")


def log_prob(graph, *tokens):
    return float(graph.log_prob(torch.tensor([tokens]), torch.tensor([len(tokens)])))


@pytest.mark.parametrize("order", ["1", "2", "3"])
def test_text_openfst_and_back(files, order, capsys):
    fst = str(files / "P.fst.txt")
    estimated = make(files, "--text", str(files / "text"), "--order", order, "--openfst", fst)
    assert f"{order}-gram from 3 lines" in capsys.readouterr().out
    read = make(files, "--lm", fst)
    for tokens in [(1, 2), (2,), (2, 1, 1), (1, 1, 1)]:
        assert log_prob(read, *tokens) == pytest.approx(log_prob(estimated, *tokens), abs=1e-7)


def test_arpa(files):
    lines = [
        "\\data\\",
        "ngram 1=4",
        "",
        "\\1-grams:",
        "-99 <s>",
        "-0.4771 </s>",
        "-0.4771 one",
        "-0.4771 two",
        "\\end\\",
    ]
    (files / "P.arpa").write_text("\n".join(lines) + "\n")
    assert log_prob(make(files, "--lm", str(files / "P.arpa")), 1, 2) == pytest.approx(-3 * 0.4771 * 2.302585, abs=1e-5)


@pytest.mark.parametrize(
    "options,message",
    [
        (["--lm", "P.bin"], "must be an ARPA file"),
        (["--lm", "none.arpa"], "not found"),
        (["--text", "text", "--order", "7"], "order 7"),
    ],
)
def test_one_line_and_status_2(files, options, message, capsys, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as end:
        make(files, *options)
    errors = capsys.readouterr().err
    assert end.value.code == 2 and message in errors and errors.count("\n") == 1
    assert not (files / "den.npz").exists()


def test_pieces_need_their_model(files, capsys):
    with pytest.raises(SystemExit) as ended:
        make(files, "--text", str(files / "text"), "--token_type", "bpe")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --bpemodel: not given; token_type bpe needs it\n"
