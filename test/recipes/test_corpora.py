"""The recipes of LibriSpeech, GigaSpeech and Kaldi directories, whole, on miniatures in the corpora's own layouts.

The audio is spoken digits, spliced. Networks are tiny; what is tested is that every stage takes what the corpus
gives it, not how well such networks recognise.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ctm_sums import ctm_sums
from tiny_recipe import FSDD_DIR, ROOT, make_recipe, run_recipe

from distill.data.fsdd import Recordings, connected, read_recordings
from distill.scoring.counts import count_errors
from distill.scoring.sclite import find_sclite

RATE = 16000
QUICK = ["--ngpu", "0", "--nj", "1", "--threads", "1", "--latencies", "480"]
QUICK += ["--teacher_init_config", "", "--student", ""]  # networks and trainings of test/recipes/conf

pytestmark = pytest.mark.usefixtures("digits_made")


@pytest.fixture(scope="module")
def recordings(digits_made: None) -> Recordings:
    return read_recordings(FSDD_DIR)


def recipe_of(corpus: str, directory: Path) -> Path:
    path = directory / "egs2" / corpus / "asr_distill1"
    make_recipe(path, corpus)
    return path


def run(recipe: Path, *options: str, status: int = 0) -> str:
    """Run the recipe with this file's options; its output."""
    return run_recipe(recipe, *options, *QUICK, status=status)


def check_results(recipe: Path, words: dict[str, int], units: set[str]) -> list[dict]:
    """Three systems on every test set; as many words of reference as the corpus has, scored in those units."""
    rows = json.loads((recipe / "exp/results.json").read_text())["rows"]
    systems = {(row["system"], row["latency_ms"]) for row in rows}
    assert systems == {("teacher", None), ("student_full", None), ("student_stream", 480)}
    rows = [row for row in rows if row["wer"] is not None]
    assert {row["test_set"]: row["words"] for row in rows} == words
    for row in rows:
        assert row["sub"] + row["del"] + row["ins"] == round(row["wer"] * row["words"] / 100)
        assert row["scores"].keys() == units
    assert "relative loss" in (recipe / "exp/RESULTS.md").read_text()
    check_scores(recipe)
    return rows


def check_scores(recipe: Path) -> None:
    """sclite counts the ctm as it does the trn, and both as our own count."""
    if find_sclite() is None:
        return
    for score_file in recipe.glob("exp/*/decode_*/*/score_wer/score.json"):
        folder, scores = score_file.parent, json.loads(score_file.read_text())
        texts = [
            [line.rpartition("(")[0].lower().split() for line in (folder / f"{side}.trn").read_text().splitlines()]
            for side in ("ref", "hyp")
        ]
        totals = map(sum, zip(*count_errors(*texts), strict=True))
        assert list(totals) == [scores[kind] for kind in ("words", "sub", "del", "ins")], folder
        sums = ctm_sums(folder)
        assert sums == {name: scores[name] for name in sums}, folder


def spoken(name: str, recordings: Recordings, speaker: str, count: int) -> Iterator[tuple[str, np.ndarray]]:
    for utterance in connected(name, recordings, [speaker], range(0, 50), count, seed=0):
        yield utterance.text, utterance.audio


def words_in(*texts: Path) -> int:
    return sum(len(line.split()) - 1 for text in texts for line in text.read_text().splitlines())


# ------------------------------------------------------------------------------------------------- LibriSpeech
LIBRISPEECH = {
    "train-clean-100": {"103": ("george", ("1240", "1241")), "1034": ("jackson", ("121119",))},
    "train-clean-360": {"100": ("nicolas", ("121669",))},
    "train-other-500": {"20": ("yweweler", ("205",))},
    "dev-clean": {"1272": ("george", ("128104",))},
    "dev-other": {"116": ("jackson", ("288045",))},
    "test-clean": {"1089": ("lucas", ("134686",))},
    "test-other": {"1688": ("lucas", ("142285",))},
}


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory: pytest.TempPathFactory, recordings: Recordings) -> Path:
    root = tmp_path_factory.mktemp("corpora") / "LibriSpeech"
    for part, readers in LIBRISPEECH.items():
        for reader, (speaker, chapters) in readers.items():
            for chapter in chapters:
                directory = root / part / reader / chapter
                directory.mkdir(parents=True)
                lines = []
                for number, (text, audio) in enumerate(spoken(part + chapter, recordings, speaker, 4)):
                    key = f"{reader}-{chapter}-{number:04d}"
                    soundfile.write(directory / f"{key}.flac", audio, RATE)
                    lines.append(f"{key} {text.upper()}\n")
                (directory / f"{reader}-{chapter}.trans.txt").write_text("".join(lines))
    return root


def test_librispeech(librispeech: Path, tmp_path: Path) -> None:
    recipe = recipe_of("librispeech", tmp_path)
    where = f"--librispeech {librispeech}"
    flac = librispeech / "train-clean-100/103/1241/103-1241-0002.flac"
    flac.rename(librispeech / "away")
    output = run(recipe, "--local_data_opts", where, "--stop_stage", "1", status=2)
    assert "103-1241.trans.txt:3: 103-1241-0002.flac is not beside it; unpack the part again" in output
    (librispeech / "away").rename(flac)
    run(recipe, "--token_type", "char", "--local_data_opts", where)
    assert len((recipe / "data/train/text").read_text().splitlines()) == 20
    assert len((recipe / "data/valid/text").read_text().splitlines()) == 8
    speakers = {line.split()[1] for line in (recipe / "data/train/utt2spk").read_text().splitlines()}
    assert speakers == {"103", "1034", "100", "20"}
    sets = {"dev_clean": "dev-clean", "dev_other": "dev-other", "test_clean": "test-clean", "test_other": "test-other"}
    words = {name: words_in(*(librispeech / part).rglob("*.txt")) for name, part in sets.items()}
    check_results(recipe, words, {"wer", "cer"})


@pytest.mark.skipif(shutil.which("sox") is None, reason="sox, which speeds audio up, is not installed")
def test_speed_perturbation_trebles_the_training_set_but_not_the_text_of_the_language_model(
    librispeech: Path, tmp_path: Path
) -> None:
    recipe = recipe_of("mini_librispeech", tmp_path)
    (recipe / "conf/speakers.txt").write_text("1089 test\n1688 valid\n* train\n")
    corpus = f"--corpus {librispeech} --cut conf/speakers.txt"
    run(recipe, "--local_data_opts", corpus, "--speed_perturb_factors", "0.9 1.0 1.1", "--stop_stage", "6")
    original = (recipe / "data/train/text").read_text().splitlines()
    perturbed = (recipe / "dump/raw/train_sp/text").read_text().splitlines()
    assert len(perturbed) == 3 * len(original) and (recipe / "exp/graph/den.npz").is_file()
    words = [line.split(maxsplit=1)[1] for line in original]
    assert [line.split(maxsplit=1)[1] for line in (recipe / "dump/raw/lm_train.txt").read_text().splitlines()] == words


# -------------------------------------------------------------------------------------------------- GigaSpeech
@pytest.fixture(scope="module")
def gigaspeech(tmp_path_factory: pytest.TempPathFactory, recordings: Recordings) -> Path:
    """Four opus recordings of minutes and their GigaSpeech.json, with tags, noise and the nested subsets."""
    root = tmp_path_factory.mktemp("corpora") / "GigaSpeech"
    audios = []
    plan = (
        ("podcast/P0001", "POD1000000001", "george", 12, ["{XL}", "{L}", "{M}", "{S}", "{XS}"]),
        ("youtube/Y0001", "YOU1000000002", "jackson", 8, ["{XL}"]),
        ("audiobook/B0001", "AUD1000000003", "nicolas", 4, ["{DEV}"]),
        ("podcast/P0002", "POD1000000004", "lucas", 4, ["{TEST}"]),
    )
    for folder, recording, speaker, count, subsets in plan:
        path = root / "audio" / folder / f"{recording}.opus"
        path.parent.mkdir(parents=True)
        pieces, segments, at = [np.zeros(RATE // 2)], [], 0.5
        for number, (text, audio) in enumerate(spoken(recording, recordings, speaker, count)):
            first, *rest = text.upper().split()
            tagged = " ".join(
                [first, "<COMMA>", *rest, ("<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>")[number % 3]]
            )
            if number == 3:
                tagged = "<MUSIC>"
            if number == 2 and subsets == ["{DEV}"]:
                tagged = f"UM {tagged} UH"
            segments.append(
                {
                    "sid": f"{recording}_S{number:07d}",
                    "speaker": "N/A",
                    "begin_time": round(at, 3),
                    "end_time": round(at + len(audio) / RATE, 3),
                    "subsets": subsets,
                    "text_tn": tagged,
                }
            )
            pieces += [audio, np.zeros(RATE // 4)]
            at += len(audio) / RATE + 0.25
        soundfile.write(path, np.concatenate(pieces).astype(np.float32), RATE, format="OGG", subtype="OPUS")
        audios.append(
            {
                "title": 'A "title", [1]',
                "path": str(path.relative_to(root)),
                "aid": recording,
                "codec": "opus",
                "sample_rate": RATE,
                "subsets": subsets,
                "segments": segments,
            }
        )
    (root / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": audios}))
    return root


def test_gigaspeech(gigaspeech: Path, tmp_path: Path) -> None:
    recipe = recipe_of("gigaspeech", tmp_path)
    where = f"--gigaspeech {gigaspeech} --subset"
    output = run(recipe, "--local_data_opts", f"{where} XXL", "--stop_stage", "1", status=2)
    assert "XXL" in output
    run(recipe, "--local_data_opts", f"{where} XS", "--stop_stage", "1")
    assert len((recipe / "data/train/text").read_text().splitlines()) == 11
    run(recipe, "--nbpe", "24", "--local_data_opts", f"{where} XL")
    text = (recipe / "data/train/text").read_text()
    assert len(text.splitlines()) == 18 and "<" not in text
    # One utterance of dev has fillers, which GigaSpeech's scoring does not count
    words = {name: words_in(recipe / "data" / name / "text") for name in ("dev", "test")}
    words["dev"] -= 2
    assert words["dev"] > 0
    rows = check_results(recipe, words, {"wer", "cer", "ter"})
    assert {row["scoring"] for row in rows} == {"gigaspeech"}
    assert "Scored as GigaSpeech is" in (recipe / "exp/RESULTS.md").read_text()
    formatted = dict(line.split() for line in (recipe / "dump/raw/test/utt2num_samples").read_text().splitlines())
    for line in (recipe / "data/test/segments").read_text().splitlines():
        key, _, start, end = line.split()
        assert abs(int(formatted[key]) - (float(end) - float(start)) * RATE) <= 1


# ------------------------------------------------------------------------------------------- any Kaldi directory
@pytest.fixture(scope="module")
def kaldi(tmp_path_factory: pytest.TempPathFactory, recordings: Recordings) -> Path:
    """train: segments of an mp3, an opus, a flac and a sph recording, one of them through a pipe; no validation set."""
    root = tmp_path_factory.mktemp("kaldi")
    formats = {
        "george": ("mp3", {}),
        "jackson": ("opus", {"format": "OGG", "subtype": "OPUS"}),
        "nicolas": ("flac", {}),
    }
    formats["yweweler"] = ("sph", {"format": "NIST", "subtype": "PCM_16"})
    sets = {"train": list(formats), "calls": ["lucas"], "meetings": ["lucas"]}
    for name, speakers in sets.items():
        directory = root / "data" / name
        directory.mkdir(parents=True)
        tables: dict[str, list[str]] = {key: [] for key in ("wav.scp", "segments", "text", "utt2spk", "utt2dur")}
        for speaker in speakers:
            ending, options = formats.get(speaker, ("wav", {}))
            recording, pieces, at = f"{speaker}_{name}", [], 0.0
            for number, (text, audio) in enumerate(spoken(name, recordings, speaker, 5)):
                key, seconds = f"{speaker}-{name}-{number}", len(audio) / RATE
                pieces.append(audio)
                tables["segments"].append(f"{key} {recording} {at:.4f} {at + seconds:.4f}")
                tables["text"].append(f"{key} {text}")
                tables["utt2spk"].append(f"{key} {speaker}")
                tables["utt2dur"].append(f"{key} {seconds:.2f}")
                at += seconds
            audio_file = root / f"{recording}.{ending}"
            soundfile.write(audio_file, np.concatenate(pieces), RATE, **options)
            piped = f"cat {audio_file} |" if speaker in ("george", "lucas") else audio_file.name
            tables["wav.scp"].append(f"{recording} {piped}")
        if name == "train":
            tables["text"].reverse()
        for table, lines in tables.items():
            (directory / table).write_text("".join(f"{line}\n" for line in lines))
    return root / "data"


LEXICON = """\
zero Z IH R OW
zero Z IY R OW
one W AH N
two T UW
three TH R IY
four F AO R
five F AY V
six S IH K S
seven S EH V AH N
eight EY T
"""


def test_kaldi_directories_in_phones(kaldi: Path, tmp_path: Path) -> None:
    recipe = recipe_of("kaldi_dir", tmp_path)
    sources = ["--source_train", f"{kaldi}/train", "--source_test", f"{kaldi}/calls {kaldi}/meetings"]
    (tmp_path / "lexicon.txt").write_text(LEXICON)
    options = [*sources, "--token_type", "phn", "--lexicon", f"{tmp_path}/lexicon.txt"]
    assert "--allow_pipes true" in run(recipe, *options, "--stop_stage", "1", status=2)
    options += ["--allow_pipes", "true"]
    output = run(recipe, *options, "--stop_stage", "5", status=2)
    assert "text:2: " in output and "sorted" in output
    assert f"wav.scp:2: jackson_train.opus is relative; taken as relative to {kaldi.parent} (3 in all)" in output
    assert re.search(rf"lm_train.txt:\d+: 'nine' is not in {tmp_path}/lexicon.txt \(1 such words in all\); add", output)
    speakers = {
        name: {line.split()[1] for line in (recipe / "data" / name / "utt2spk").read_text().splitlines()}
        for name in ("train", "valid")
    }
    assert len(speakers["valid"]) == 1 and len(speakers["train"]) == 3 and not speakers["train"] & speakers["valid"]
    with open(tmp_path / "lexicon.txt", "a") as stream:
        stream.write("nine N AY N\n")
    output = run(recipe, *options)
    assert "stage 5: phones" in output and "student_stream, wfst" in output
    spelt = [line.split(maxsplit=1) for line in (tmp_path / "lexicon.txt").read_text().splitlines()]
    first = dict(reversed(spelt))
    for name in ("train", "calls"):
        texts, phones = (
            dict(line.split(maxsplit=1) for line in (recipe / "dump/raw" / name / table).read_text().splitlines())
            for table in ("text", "text.phn")
        )
        assert phones == {key: " ".join(first[word] for word in text.split()) for key, text in texts.items()}
    # Words come from the graph alone; what greedy decoding finds is scored in phones
    rows = check_results(
        recipe, {name: words_in(kaldi / name / "text") for name in ("calls", "meetings")}, {"wer", "cer", "ter"}
    )
    assert {row["decoder"] for row in rows} == {"wfst"}
    others = [row for row in json.loads((recipe / "exp/results.json").read_text())["rows"] if row not in rows]
    assert len(others) == len(rows) and {row["decoder"] for row in others} == {"greedy"}
    assert all(row["scores"].keys() == {"ter"} for row in others)
    for path in (recipe / "exp").glob("*/decode_*_wfst/*/hyp.*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            assert set(row["text"].split()) <= first.keys()
            assert {token["token"] for token in row["tokens"]} <= {phone for _, s in spelt for phone in s.split()}

    # The same lexicon as a lang directory, whose phones know their place in the word, makes the same tokens
    lang, made = tmp_path / "lang", recipe / "data/token_list/phn"
    (lang / "phones").mkdir(parents=True)
    lines, names = ["<eps> <eps> SIL"], {"<eps>", "SIL"}
    for word, phones in spelt:
        first_phone, *inside, last_phone = phones.split()
        placed = [f"{first_phone}_B", *(f"{phone}_I" for phone in inside), f"{last_phone}_E"]
        lines.append(" ".join([word, word, *placed]))
        names |= set(placed)
    (lang / "phones/align_lexicon.txt").write_text("\n".join(lines) + "\n")
    (lang / "phones/optional_silence.txt").write_text("SIL\n")
    (lang / "phones/word_boundary.txt").touch()
    (lang / "phones.txt").write_text("".join(f"{name} {number}\n" for number, name in enumerate(sorted(names))))
    before = {path.name: path.read_text() for path in made.iterdir()}
    lang_options = ["--lang_dir", str(lang), "--token_type", "phn", "--allow_pipes", "true", "--stop_stage", "5"]
    assert "stage 5: changed since it was last run" in run(recipe, *sources, *lang_options).replace(" (phn)", "")
    assert before.keys() == {"tokens.txt", "lexicon.txt"}
    assert before == {path.name: path.read_text() for path in made.iterdir()}


def test_a_corrected_source_is_noticed_and_a_test_set_may_be_named(kaldi: Path, tmp_path: Path) -> None:
    recipe = recipe_of("kaldi_dir", tmp_path)
    source = tmp_path / "corpus/train"
    shutil.copytree(kaldi / "train", source)
    scp = (source / "wav.scp").read_text()
    for name in ("jackson_train.opus", "nicolas_train.flac", "yweweler_train.sph"):
        scp = scp.replace(f" {name}", f" {kaldi.parent}/{name}")
    (source / "wav.scp").write_text(scp)
    options = ["--source_train", str(source), "--source_test", f"{kaldi}/calls named={kaldi}/meetings"]
    options += ["--allow_pipes", "true", "--stop_stage", "4"]
    run(recipe, *options)
    assert (recipe / "data/calls/text").is_file() and (recipe / "data/named/text").is_file()
    assert "stage 1: done before and unchanged" in run(recipe, *options)
    key, words = (recipe / "data/train/text").read_text().splitlines()[0].split(maxsplit=1)
    text = (source / "text").read_text()
    (source / "text").write_text(text.replace(f"{key} {words}", f"{key} nine {words}"))
    again = run(recipe, *options)
    assert f"stage 1: changed since it was last run: {source}/text\n" in again
    assert again.count("stage 3: format wav.scp of") == again.count("stage 3: done before and unchanged") == 3
    assert "stage 4: changed since it was last run: stage 3 (text)\n" in again
    for text in ("data/train/text", "dump/raw/org/train/text", "dump/raw/train/text"):
        assert f"{key} nine {words}" in (recipe / text).read_text().splitlines()
    # one more test set, whose audio alone is formatted
    again = run(recipe, *options, "--source_test", f"more={kaldi}/calls")
    assert again.count("stage 3: done before and unchanged") == 3
    formatted = {path: (recipe / path).read_text() for path in ("dump/raw/calls/text", "dump/raw/more/text")}
    assert len(set(formatted.values())) == 1 and (recipe / "dump/raw/more/wav.scp").is_file()


def test_an_unlabelled_training_set(kaldi: Path, tmp_path: Path) -> None:
    """The teacher's words, here those of an untrained network, become the training text."""
    import string

    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    recipe = recipe_of("kaldi_dir", tmp_path)
    outputs = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_lowercase]
    sizes = {"conv_dim": (8, 8, 8, 8, 8, 8, 16), "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
    kinds = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True, "num_attention_heads": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(outputs), pad_token_id=0, **sizes, **kinds, **positions))
    with torch.no_grad():
        model.lm_head.bias[:5] -= 9.0  # an untrained network's words are letters, not blanks
    model.save_pretrained(recipe / "hf")
    (recipe / "hf/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(outputs)}))
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(kaldi / "train", unlabelled)
    (unlabelled / "text").unlink()
    scp = (unlabelled / "wav.scp").read_text()
    for name in ("jackson_train.opus", "nicolas_train.flac", "yweweler_train.sph"):
        scp = scp.replace(f" {name}", f" {kaldi.parent}/{name}")
    (unlabelled / "wav.scp").write_text(scp)
    options = ["--source_train", str(unlabelled), "--source_valid", f"{kaldi}/calls"]
    options += ["--source_test", f"{kaldi}/meetings"]
    options += ["--allow_pipes", "true", "--token_type", "char", "--stop_stage", "6"]
    assert "text: not found" in run(recipe, *options, status=2)
    options += ["--unlabelled", "true"]
    assert "needs a --teacher" in run(recipe, *options, status=2)
    output = run(recipe, *options, "--teacher", "hf", "--teacher_tokens", "true")
    assert "the teacher's words are the text of 20 utterances" in output
    labels = (recipe / "dump/raw/train/text").read_text().splitlines()
    assert len(labels) == 20 and all(set("".join(line.split()[1:])) <= set(string.ascii_lowercase) for line in labels)
    assert not (recipe / "data/train/text").exists()


@pytest.mark.parametrize(("corpus", "ngpu"), [("librispeech", "4"), ("gigaspeech", "8")])
def test_the_plan_in_the_docs_is_what_a_dry_run_prints(corpus: str, ngpu: str, tmp_path: Path) -> None:
    recipe = recipe_of(corpus, tmp_path)
    shutil.rmtree(recipe / "conf")
    (recipe / "conf").symlink_to(ROOT / "egs2" / corpus / "asr_distill1/conf")
    done = subprocess.run(["./run.sh", "--dry_run", "true", "--ngpu", ngpu], cwd=recipe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# Plan for ")
    plan = done.stdout.replace("# Plan", "## Plan", 1)
    assert plan in (ROOT / "docs/plan.md").read_text()
    other = ["./run.sh", "--dry_run", "true", "--ngpu", ngpu, "--student", "conf/students/s5.yaml"]
    smaller = subprocess.run(other, cwd=recipe, capture_output=True, text=True, check=True).stdout
    assert "student: 1." in smaller and "student: 1." not in done.stdout
    assert not (recipe / "exp").exists() and not (recipe / "dump").exists()
