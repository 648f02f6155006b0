"""Lexicons and Kaldi lang directories, and texts spelt by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.bin.phone_tokens import main
from distill.data.lexicon import read_lang_dir, read_lexicon
from distill.errors import UserError

LEXICON = "<unk> SPN\ncat K AE T\nread R EH D\nread R IY D\nthe DH AH\n"
ALIGNED = """\
<eps> <eps> SIL
!SIL !SIL SIL_S
<UNK> <UNK> SPN_S
a a AH_S
cat cat K_B AE_I T_E
read read R_B EH_I D_E
read read R_B IY_I D_E
"""


@pytest.fixture
def lang_dir(tmp_path: Path) -> Path:
    """As Kaldi's prepare_lang.sh leaves it, with phones that know their position in the word."""
    lang = tmp_path / "lang"
    (lang / "phones").mkdir(parents=True)
    positions = [
        f"{phone}_{where}" for phone in ("AE", "AH", "D", "EH", "IY", "K", "R", "SIL", "SPN", "T") for where in "BEIS"
    ]
    names = ["<eps>", "SIL", "SPN", *positions, "#0", "#1"]
    (lang / "phones.txt").write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    (lang / "phones/align_lexicon.txt").write_text(ALIGNED)
    (lang / "phones/optional_silence.txt").write_text("SIL\n")
    (lang / "phones/word_boundary.txt").write_text("".join(f"{name} {name[-1]}\n" for name in positions))
    (lang / "oov.txt").write_text("<UNK>\n")
    return lang


def test_a_lang_directory(lang_dir):
    lexicon = read_lang_dir(lang_dir)
    assert lexicon.words == {
        "<UNK>": [("SPN",)],
        "a": [("AH",)],
        "cat": [("K", "AE", "T")],
        "read": [("R", "EH", "D"), ("R", "IY", "D")],
    }
    assert lexicon.unknown == "<UNK>"
    assert lexicon.phones == ["AE", "AH", "D", "EH", "IY", "K", "R", "SPN", "T"]
    (lang_dir / "phones/word_boundary.txt").unlink()  # then a phone is what it is called
    assert read_lang_dir(lang_dir).words["cat"] == [("K_B", "AE_I", "T_E")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("phones.txt", None, r"phones.txt: not found; is it a lang directory\?"),
        ("phones/align_lexicon.txt", None, "align_lexicon.txt: not found.*--lexicon"),
        ("phones/align_lexicon.txt", "a a AH_S\nb b XX_S\n", "align_lexicon.txt:2: XX_S is not in .*phones.txt"),
        ("phones/align_lexicon.txt", "<eps> <eps> SIL\n", "has no word with phones"),
    ],
)
def test_damaged_lang_directories(lang_dir, name, content, message):
    if content is None:
        (lang_dir / name).unlink()
    else:
        (lang_dir / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_lang_dir(lang_dir)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat K AE T\nread\n", "lexicon.txt:2: expected a word"),
        (b"", "lexicon.txt: empty"),
        (b"caf\xe9 K\n", "lexicon.txt:1: not UTF-8"),
        (b"cat 1.0 K AE T\nread 0.5 R EH D\n", "lexicon.txt:1: has probabilities"),
        (None, "lexicon.txt: not found"),
    ],
)
def test_damaged_lexicons(tmp_path, content, message):
    if content is not None:
        (tmp_path / "lexicon.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_lexicon(tmp_path / "lexicon.txt")


def make_phones(tmp_path: Path, lexicon: str, text: str) -> None:
    (tmp_path / "lexicon.txt").write_text(lexicon)
    (tmp_path / "text").write_text(text)
    main(["--lexicon", f"{tmp_path}/lexicon.txt", "--texts", f"{tmp_path}/text", "--output", f"{tmp_path}/phn"])


def test_texts_get_the_first_pronunciation_and_unknown_words_are_told(tmp_path, capsys):
    make_phones(tmp_path, LEXICON, "u1 the cat\nu2 read zebra the zebra gnu\nu3\n")
    assert (tmp_path / "text.phn").read_text() == "u1 DH AH K AE T\nu2 R EH D SPN DH AH SPN SPN\nu3 \n"
    tokens = (tmp_path / "phn/tokens.txt").read_text().split()
    assert tokens == ["<blank>", "<unk>", "AE", "AH", "D", "DH", "EH", "IY", "K", "R", "SPN", "T", "<sos/eos>"]
    assert (tmp_path / "phn/lexicon.txt").read_text() == LEXICON
    output = capsys.readouterr().out
    assert f"{tmp_path}/text:2: 'zebra' is not in {tmp_path}/lexicon.txt; taken as <unk>" in output
    assert "(2 such words, 3 times in all)" in output


def test_unknown_words_are_refused_where_nothing_stands_for_them(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_phones(tmp_path, LEXICON.replace("<unk> SPN\n", ""), "u1 the cat\nu2 read zebra the zebra gnu\n")
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert f"text:2: 'zebra' is not in {tmp_path}/lexicon.txt (2 such words in all); add them" in output
    assert not (tmp_path / "text.phn").exists() and not (tmp_path / "phn").exists()
