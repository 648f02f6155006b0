"""GigaSpeech.json: read piece by piece, subsets and tags as the corpus means them, and what is refused by name."""

import json
from pathlib import Path

import pytest

from distill.bin.prepare_gigaspeech import main
from distill.data import gigaspeech
from distill.data.gigaspeech import read_recordings, words_of


def recording(aid: str, *segments: tuple[str, list[str]]) -> dict:
    return {
        "aid": aid,
        "title": 'brackets ]} and "quotes" \\ é',
        "path": f"audio/{aid}.opus",
        "segments": [
            {"sid": f"{aid}_S{n}", "begin_time": n, "end_time": n + 0.5, "text_tn": text, "subsets": subsets}
            for n, (text, subsets) in enumerate(segments)
        ],
    }


RECORDINGS = [
    recording("POD1", ("ONE <COMMA> TWO <PERIOD>", ["{XL}", "{L}"]), ("<NOISE>", ["{XL}"]), ("SIX", ["{XL}"])),
    recording("YOU2", ("YES <QUESTIONMARK>", ["{DEV}"]), ("<SIL>", ["{DEV}"])),
    recording("YOU3", ("NO <EXCLAMATIONPOINT>", ["{TEST}"]), ("<PERIOD>", ["{TEST}"])),
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    for entry in RECORDINGS:
        (tmp_path / entry["path"]).touch()
    content = {"dataset": "GigaSpeech", "audios": RECORDINGS, "after": [1]}
    (tmp_path / "GigaSpeech.json").write_text(json.dumps(content, ensure_ascii=False, indent=1))
    return tmp_path


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
def test_pieces_of_any_length(corpus, monkeypatch, block):
    monkeypatch.setattr(gigaspeech, "BLOCK", block)
    assert list(read_recordings(corpus / "GigaSpeech.json")) == RECORDINGS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A <COMMA> B <PERIOD>", "A B"),
        ("<MUSIC>", None),
        ("A <OTHER>", None),
        ("<PERIOD>", None),
        ("I'M <UNK>", "I'M <UNK>"),
    ],
)
def test_tags(text, words):
    assert words_of(text) == words


def test_sets(corpus):
    main(["--gigaspeech", str(corpus), "--subset", "XL", "--data", str(corpus / "data")])
    train = corpus / "data/train"
    assert (train / "text").read_text() == "POD1_S0 ONE TWO\nPOD1_S2 SIX\n"
    assert (train / "segments").read_text() == "POD1_S0 POD1 0 0.5\nPOD1_S2 POD1 2 2.5\n"
    assert (train / "wav.scp").read_text() == f"POD1 {corpus}/audio/POD1.opus\n"
    for name, text in (("valid", "YOU2_S0 YES\n"), ("dev", "YOU2_S0 YES\n"), ("test", "YOU3_S0 NO\n")):
        assert (corpus / "data" / name / "text").read_text() == text
    main(["--gigaspeech", str(corpus), "--subset", "L", "--data", str(corpus / "data")])
    assert (train / "text").read_text() == "POD1_S0 ONE TWO\n"


def cut_off(corpus: Path) -> None:
    path = corpus / "GigaSpeech.json"
    path.write_bytes(path.read_bytes()[:500])


def lose_audio(corpus: Path) -> None:
    (corpus / "audio/YOU3.opus").unlink()


def lose_a_key(corpus: Path) -> None:
    path = corpus / "GigaSpeech.json"
    path.write_text(path.read_text().replace('"begin_time"', '"begin"'))


@pytest.mark.parametrize(
    ("damage", "subset", "message"),
    [
        (cut_off, "XL", "GigaSpeech.json: not JSON with a list of audios, or cut off"),
        (lose_audio, "XL", "YOU3.opus, which is not there"),
        (lose_a_key, "XL", "recording POD1 lacks 'begin_time'"),
        (lambda corpus: None, "S", "holds no speech of subset S"),
    ],
)
def test_faults(corpus, capsys, damage, subset, message):
    damage(corpus)
    with pytest.raises(SystemExit) as stopped:
        main(["--gigaspeech", str(corpus), "--subset", subset, "--data", str(corpus / "data")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (corpus / "data").exists()
