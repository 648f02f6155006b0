"""Checks before a run: every wrong option, configuration and length limit is one line with a cure that works."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from distill.bin.option_strings import string_problems
from distill.preflight import problems, report_lengths
from distill.preflight.lengths import histogram

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "egs2/TEMPLATE/asr_distill1"
TEACHER = {
    "network": "teacher",
    "network_conf": {"config": {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
                                "intermediate_size": 16, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16,
                                "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": True,
                                "feat_extract_norm": "layer"}},
    "max_epoch": 1,
}  # fmt: skip
NETWORK = {"front_end": "fbank", "front_end_conf": {"channels": 8}, "width": 8, "layers": 2, "heads": 2, "ffn": 8}
SEQUENCES = dict.fromkeys(
    ("student_full_args", "student_stream_args"), "--distill_conf beta=1.0 --distill_conf target=pseudo"
)
STUDENT = {"network": "student", "network_conf": NETWORK, "distill_conf": {"alpha": 0.5}, "max_epoch": 1}


def defaults() -> dict[str, str]:
    """The defaults of distill.sh, as its own lines set them."""
    text = (TEMPLATE / "distill.sh").read_text()
    lines = text[text.index("before=$(compgen -v)") : text.index('. "${steps}/options.sh"')]
    script = f'{lines}\nfor name in "${{names[@]}}"; do printf "%s=%s\\n" "${{name}}" "${{!name}}"; done'
    printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in printed.splitlines())
    return {**found, "ngpu": "0", "gpus": "0", "cuda_cmd": "run.pl"}  # which the script finds out later


DEFAULTS = defaults()


def write(name: str, content: dict) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return name


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's directory with a teacher's and two students' configurations."""
    monkeypatch.chdir(tmp_path)
    write("conf/train_teacher.yaml", TEACHER)
    write("conf/train_student_full.yaml", STUDENT)
    for name in ("train", "valid", "test"):  # as stage 4 leaves them
        Path("dump/raw", name).mkdir(parents=True)
        Path("dump/raw", name, "wav.scp").touch()
    Path("exp/.stages").mkdir(parents=True)
    for number in (6, 7, 9, 10, 11):
        Path(f"exp/.stages/{number}").touch()
    write("conf/train_student_stream.yaml", {**STUDENT, "chunk_conf": {"chunk_ms": [160, 960]}})
    return tmp_path


def check(**changes: str) -> list[str]:
    options = {**DEFAULTS, **changes}
    return [*problems(options), *string_problems(options)]


def durations(*seconds: float) -> None:
    """Lengths of the training set's utterances, as stage 3 leaves them."""
    path = Path("dump/raw/org/train/utt2num_samples")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"u{n} {int(s * 16000)}\n" for n, s in enumerate(seconds)))


# A wrong value of every option that run.sh takes, and what its message advises; "" is the option's default
WRONG: dict[str, tuple[str, dict[str, str]]] = {
    "stage": ("17", {"stage": "12"}),
    "stop_stage": ("99", {"stop_stage": "16"}),
    "force_stage": ("15", {"force_stage": "15", "stop_stage": "15"}),
    "check": ("yes", {"check": "true"}),
    "dry_run": ("1", {"dry_run": "true"}),
    "plan_options": ("--our 960", {"plan_options": "--hours 960"}),
    "train_set": ("train/clean", {"train_set": "train_clean"}),
    "valid_set": ("train", {"valid_set": "valid"}),
    "test_sets": ("test valid", {"test_sets": "test"}),
    "speed_perturb_factors": ("0.9,1.1", {"speed_perturb_factors": "0.9 1.1"}),
    "audio_format": ("mp3", {"audio_format": "flac"}),
    "min_wav_duration": ("20", {"min_wav_duration": "0.5"}),
    "max_wav_duration": ("-1", {"max_wav_duration": "1.5"}),
    "allow_pipes": ("yes", {"allow_pipes": "true"}),
    "unlabelled": ("true", {"unlabelled": "true", "teacher": "trained"}),
    "resample": ("8000", {"resample": "true"}),
    "token_type": ("phn", {"token_type": "phn", "lexicon": "lexicon.txt"}),
    "nbpe": ("1", {"nbpe": "2"}),
    "lexicon": ("lexicon.txt", {"lexicon": "", "decode_options": "--lexicon lexicon.txt"}),
    "lang_dir": ("lang", {"lang_dir": "lang", "token_type": "phn"}),
    "ngram_order": ("5", {"ngram_order": "4"}),
    "ngram_lm": ("none.arpa", {"ngram_lm": "words.arpa"}),
    "teacher": ("conf", {"teacher": "trained"}),
    "from_scratch": ("large", {"from_scratch": "medium"}),
    "teacher_tokens": ("true", {"teacher_tokens": "true", "teacher": "hf", "token_type": "char"}),
    "keep_teacher_tokens": ("true", {"keep_teacher_tokens": "true", "teacher": "hf", **SEQUENCES}),
    "allow_bad_teacher": ("TRUE", {"allow_bad_teacher": "true"}),
    "teacher_init": ("conf", {"teacher_init": "trained"}),
    "teacher_init_config": ("none.yaml", {"teacher_init_config": "conf/train_teacher.yaml"}),
    "teacher_init_max_s": ("short", {"teacher_init_max_s": "auto", "teacher_init_config": "conf/train_teacher.yaml"}),
    "teacher_config": ("conf", {"teacher_config": "conf/train_teacher.yaml"}),
    "teacher_args": ("--max_epoch two", {"teacher_args": "--max_epoch 2"}),
    "teacher_targets": ("offline", {"teacher_targets": "stored"}),
    "target_dtype": ("float8", {"target_dtype": "float16"}),
    "targets": ("nowhere", {"targets": "targets"}),
    "student": ("trained/config.yaml", {"student": "student.yaml"}),
    "student_full_config": ("none.yaml", {"student_full_config": "conf/train_student_full.yaml"}),
    "student_stream_config": ("none.yaml", {"student_stream_config": "conf/train_student_stream.yaml"}),
    "student_full_args": ("--max_epochs", {"student_full_args": "--max_epoch 3"}),
    "student_stream_args": ("--max_epoch x", {"student_stream_args": "--max_epoch 3"}),
    "stage2_teacher": ("student", {"stage2_teacher": "student_full"}),
    "no_kd": ("no", {"no_kd": "false"}),
    "fixed_chunks": ("full", {"fixed_chunks": "480"}),
    "latencies": ("160 500", {"latencies": "160 480"}),
    "decoders": ("greedy greedy", {"decoders": "greedy"}),
    "lm": ("none.arpa", {"lm": "words.arpa"}),
    "lm_order": ("0", {"lm_order": "1"}),
    "decode_options": ("--n_best 10", {"decode_options": "--nbest 10"}),
    "scoring": ("sclite", {"scoring": "plain"}),
    "export_chunks": ("0.48", {"export_chunks": "480"}),
    "pack_options": ("--licence mit", {"pack_options": "--license mit"}),
    "ngpu": ("2", {"ngpu": "0"}),
    "num_nodes": ("2", {"num_nodes": "1"}),
    "nj": ("0", {"nj": "1"}),
    "threads": ("all", {"threads": "2"}),
    "expdir": ("conf/train_teacher.yaml/exp", {"expdir": "other"}),
    "dumpdir": ("my dump", {"dumpdir": "dump"}),
    "seed": ("-1", {"seed": "0"}),
}  # fmt: skip


def test_every_option_but_those_of_data_preparation_has_a_wrong_value_here():
    assert {*WRONG, "local_data_opts"} == DEFAULTS.keys() - {"gpus", "cuda_cmd"}
    listed = (TEMPLATE / "distill_help.txt").read_text()
    assert {option for option in DEFAULTS if f"--{option}" not in listed} == {"gpus", "cuda_cmd"}


@pytest.mark.parametrize("option", WRONG)
def test_the_cure_for_a_wrong_value_works(recipe, option):
    """A wrong value is a line that names the option or the file, and with what it advises nothing is wrong."""
    shutil.copytree("conf", "trained")
    write("trained/config.yaml", {**TEACHER, "token_list": ["<blank>", "a", "<sos/eos>"]})
    torch.save({}, "trained/model.pth")
    for directory in ("hf", "lang", "targets/train", "targets/valid"):
        Path(directory).mkdir(parents=True)
    Path("hf/config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    for name in ("lang/phones.txt", "lexicon.txt", "words.arpa", "targets/train/manifest.json"):
        Path(name).touch()
    Path("targets/valid/manifest.json").touch()
    write("student.yaml", STUDENT)
    value, cure = WRONG[option]
    found = check(**{option: value})
    assert found and all("\n" not in line and len(line) < 300 for line in found)
    assert [line for line in found if f"--{option}" in line or value in line or "conf/train" in line], found
    assert check(**cure) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense", "3"], "--nonsense: no such option; --help lists all"),
        (["--PATH", "/tmp"], "--PATH: no such option"),
        (["--latency", "480"], "--latency: no such option; --latencies? --help lists all"),
        (["--student-full-arg", "x"], "--student-full-arg: no such option; --student_full_args"),
        (["--stage"], "--stage: needs a value"),
        (["--stage=3"], "--stage=3: write --stage 3"),
        (["--check", "yes"], "--check yes: must be true or false"),
        (["stray"], "run.sh: unexpected argument 'stray'; --help lists the options"),
    ],
)
def test_what_is_no_option_is_one_line(arguments, message):
    done = subprocess.run(["./distill.sh", *arguments], cwd=TEMPLATE, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_from_scratch_leaves_a_configuration_that_is_given(tmp_path):
    """The others are those of conf/from_scratch, which are there and right."""
    command = ["./distill.sh", "--from_scratch", "small", "--teacher_config", "mine.yaml", "--check", "true"]
    command += ["--expdir", str(tmp_path / "exp")]
    done = subprocess.run(command, cwd=TEMPLATE, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr
    assert "--teacher_config mine.yaml: not found" in done.stderr


def test_a_test_set_that_was_not_prepared(recipe):
    (line,) = check(test_sets="test later", stage="12")
    assert line.startswith("--test_sets later: dump/raw/later/wav.scp not found; add it with --stage 1 --stop_stage 4")
    assert check(test_sets="test later") == []  # stage 1 makes it


@pytest.mark.parametrize(("stage", "needed"), [("10", "6"), ("11", "6"), ("12", "7"), ("14", "7"), ("15", "11")])
def test_a_stage_whose_predecessors_were_not_run(recipe, stage, needed):
    found = check(stage=stage, stop_stage=stage, expdir="exp_other")
    assert [line for line in found if line.startswith(f"--stage {stage}: stage {needed} has not been run in --expdir")]


def test_latencies_are_checked_when_only_recognition_is_run(recipe):
    assert check(stage="12", stop_stage="12", latencies="160 480") == []
    (line,) = check(stage="12", stop_stage="12", latencies="50 480")
    assert line.startswith("--latencies 50: not a multiple of 40 ms")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(["--source_train", "conf"], "test"), (["--source_test", "conf"], "train"), (["--source_valid", "conf"], "train")],
)
def test_kaldi_dir_needs_two_sets(arguments, missing):
    directory = TEMPLATE.parents[1] / "kaldi_dir/asr_distill1"
    command = ["./run.sh", *arguments, "--lm", "none.arpa"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: --source_{missing}: is missing; give the Kaldi data directory" in done.stderr
    assert "error: --lm none.arpa: not found" in done.stderr  # what else is wrong is listed as well


def test_kaldi_dirs_own_options_are_spelt_right():
    directory = TEMPLATE.parents[1] / "kaldi_dir/asr_distill1"
    command = ["./run.sh", "--source_tests", "conf", "--from_scratch", "smal"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: --source_tests: no such option; --source_train, --source_valid or --source_test",
        "error: --from_scratch smal: must be small or medium",
    ]


def test_help_shows_what_a_recipe_sets_otherwise():
    directory = TEMPLATE.parents[1] / "kaldi_dir/asr_distill1"
    printed = subprocess.run(["./run.sh", "--help"], cwd=directory, capture_output=True, text=True).stdout
    assert printed.startswith("Beside the options below: --source_train DIR")
    given = printed[printed.index("Given already, in place of these defaults:") :].splitlines()
    assert "  --no_kd 'false'" in given and "  --latencies '160 320 480 960 full'" in given


def test_a_misspelt_option_inside_an_option_has_the_nearest_name(recipe):
    (line,) = check(student_full_args="--max_epochs 2")
    assert "unrecognized arguments: --max_epochs 2 (--max_epoch?); python -m distill.bin.train --help" in line


def test_sections_inside_options_are_checked(recipe):
    (line,) = check(student_full_args="--max_epoch 2 --distill_conf alhpa=0.5")
    assert line.startswith("--student_full_args --max_epoch 2 --distill_conf alhpa=0.5: distill_conf: ")
    assert check(student_full_args="--distill_conf alpha=0.5") == []


def test_values_are_taken_as_they_are(tmp_path):
    """No part of a value is run, and values may begin with two dashes."""
    script = tmp_path / "script.sh"
    script.write_text(
        f"help_message=help\nopts=\nother=\n. {TEMPLATE.parents[2]}/local/options.sh\n"
        'printf "%s|%s|%s" "${opts}" "${other}" "$*"\n'
    )
    value = '--corpus $(touch ran) `touch ran` "quoted" $HOME'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", script, "--opts", value, "--other", "", "rest"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{value}||rest", done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_disk_that_is_nearly_full(recipe, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage._replace(free=5 * 10**8))
    assert [line.split(";")[0] for line in check()] == [
        "--expdir exp: 0.5 GB are free on its disk, less than 1 GB",
        "--dumpdir dump: 0.5 GB are free on its disk, less than 1 GB",
    ]


def test_a_right_recipe_has_no_problem(recipe):
    assert check() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "x"}, "--stage x: must be a whole number from 1 to 16"),
        ({"stage": "-1"}, "--stage -1: must be a whole number"),
        ({"stage": "14"}, "--stage 14: after --stop_stage 13"),
        ({"nj": "0"}, "--nj 0: must be a whole number from 1 to 1024"),
        ({"dry_run": "yes"}, "--dry_run yes: must be true or false"),
        ({"token_type": "bytes"}, "--token_type bytes: must be char, bpe, word or phn"),
        ({"decoders": "greedy viterbi"}, "--decoders viterbi: must be any of"),
        ({"latencies": "160 half"}, "--latencies half: must be milliseconds such as 480 or full"),
        ({"fixed_chunks": "full"}, "--fixed_chunks full: must be milliseconds such as 480"),
        ({"latencies": ""}, "--latencies: is empty"),
        ({"latencies": "160 150"}, "--latencies 150: not a multiple of 40 ms"),
        ({"export_chunks": "100"}, "--export_chunks 100: not a multiple of 40 ms"),
        ({"max_wav_duration": "nan"}, "--max_wav_duration nan: must be seconds"),
        ({"min_wav_duration": "30"}, "--min_wav_duration 30: not below --max_wav_duration"),
        ({"speed_perturb_factors": "0.9 fast"}, "--speed_perturb_factors fast: must be factors"),
        ({"lm": "none.arpa"}, "--lm none.arpa: not found"),
        ({"token_type": "phn"}, "--token_type phn: needs either --lexicon FILE or --lang_dir DIR"),
        ({"lang_dir": "conf"}, "--lexicon, --lang_dir: need --token_type phn"),
        ({"unlabelled": "true"}, "--unlabelled true: needs a --teacher"),
        ({"teacher_tokens": "true"}, "--teacher_tokens true: needs --token_type char"),
        ({"teacher": "nowhere"}, "--teacher nowhere: not found"),
        ({"teacher": "conf"}, "--teacher: conf/config.yaml: not found"),
        ({"teacher_init": "nowhere"}, "--teacher_init nowhere: not found"),
        ({"teacher_init": "conf"}, "--teacher_init: conf/config.yaml: not found"),
        ({"teacher_init": "hf", "teacher": "hf"}, "--teacher_init: begins the training of a teacher"),
        ({"targets": "conf"}, "--targets conf: conf/train/manifest.json not found"),
        ({"teacher_init_max_s": "2"}, "--teacher_init_max_s: limits the first training"),
        ({"student_full_config": "nofile.yaml"}, "--student_full_config nofile.yaml: not found; give a"),
        ({"student": "conf/train_teacher.yaml"}, "conf/train_student_full.yaml: network_conf"),
    ],
)
def test_a_wrong_option_is_one_line(recipe, changes, message):
    found = check(**changes)
    assert [line for line in found if message in line], found
    assert all("\n" not in line for line in found)


def test_all_problems_are_reported_together(recipe):
    assert len(check(lm="none.arpa", student_full_config="nofile.yaml", export_chunks="100")) == 3
    found = check(lm="none.arpa", nbpe="abc", student="conf/s9.yaml", latencies="240 foo", decoders="bean", nj="x")
    assert len(found) == 6, found
    for name in ("lm", "nbpe", "student", "latencies", "decoders", "nj"):
        assert len([line for line in found if line.startswith(f"--{name} ")]) == 1


def test_what_is_not_run_is_not_checked(recipe):
    assert check(stage="12", student_full_config="nofile.yaml", teacher_config="nofile.yaml") == []
    assert check(stop_stage="7", student_full_config="nofile.yaml") == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("conf/train_teacher.yaml", {**TEACHER, "max_epochs": 3}, "max_epochs: no such key in a training's"),
        ("conf/train_student_full.yaml", {**STUDENT, "distill_conf": {"alfa": 1}}, "distill_conf: no key 'alfa'"),
        ("conf/train_student_full.yaml", {**STUDENT, "chunk_conf": 3}, "chunk_conf: must be a mapping"),
        ("conf/train_student_stream.yaml", {**STUDENT, "network_conf": {**NETWORK, "heads": 3}}, "network_conf"),
        ("conf/train_student_stream.yaml", {**STUDENT, "network_conf": {**NETWORK, "layers": 6}}, "has 6 layers"),
        (
            "conf/train_student_stream.yaml",
            {**STUDENT, "distill_conf": {"alpha": 0.5, "layer_map": [2, 5]}},
            "layer_map: must name one of the teacher's 4 layers for each of the student's 2",
        ),
        ("conf/train_teacher.yaml", {**TEACHER, "network_conf": {"config": "models/large"}}, "models/large/config"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_named(recipe, name, content, message):
    write(name, content)
    found = check()
    assert len(found) == 1 and name in found[0] and message in found[0], found


def test_a_file_that_is_not_yaml_is_named_with_its_line(recipe):
    Path("conf/train_teacher.yaml").write_text("max_epoch: 1\noptim: [\n")
    assert check()[0].startswith("conf/train_teacher.yaml:3: not YAML")


def test_the_cures_for_too_many_layers_work(recipe):
    write("student.yaml", {"network": "student", "network_conf": {**NETWORK, "layers": 6}})
    assert '--student "" takes the students of the two configurations' in check(student="student.yaml")[0]
    assert check(student="") == []
    mapped = {**STUDENT, "distill_conf": {"alpha": 0.5, "layer_map": [1, 1, 2, 3, 4, 4]}}
    write("conf/train_student_full.yaml", mapped)
    write("conf/train_student_stream.yaml", mapped)
    assert check(student="student.yaml") == []
    # without a loss on hidden layers there is nothing to map
    write("conf/train_student_full.yaml", {**STUDENT, "distill_conf": {"alpha": 1.0}})
    assert len(check(student="student.yaml")) == 0


def test_layers_of_a_given_teacher(recipe):
    write("conf/train_student_full.yaml", {**STUDENT, "network_conf": {**NETWORK, "layers": 3}})
    Path("hf").mkdir()
    Path("hf/config.json").write_text(json.dumps({"model_type": "wav2vec2", "num_hidden_layers": 2}))
    assert "has 3 layers, its teacher 2" in check(teacher="hf")[0]
    write("trained/config.yaml", {**TEACHER, "token_list": ["<blank>", "a", "<sos/eos>"]})
    torch.save({}, "trained/model.pth")
    assert check(teacher="trained") == []


def test_frames_of_a_given_teacher(recipe):
    """Frames of logits that are longer than the student's are not compared, which is known before anything runs."""
    sequences = {"beta": 1.0, "target": "pseudo"}
    for name in ("conf/train_student_full.yaml", "conf/train_student_stream.yaml"):
        config = yaml.safe_load(Path(name).read_text())
        write(name, {**config, "distill_conf": {**config.get("distill_conf", {}), **sequences}})
    Path("hf").mkdir()
    config = {"model_type": "parakeet_ctc", "encoder_config": {"num_hidden_layers": 4}}
    Path("hf/config.json").write_text(json.dumps(config))
    assert check(teacher="hf") == []
    write("conf/train_student_full.yaml", {**STUDENT, "distill_conf": {"alpha": 0.5, "beta": 0.5}})
    (problem,) = check(teacher="hf")
    assert "conf/train_student_full.yaml: does not fit the teacher hf" in problem and "of 80 ms, are longer" in problem


def test_a_teacher_that_keeps_its_tokens(recipe):
    Path("hf").mkdir()
    Path("hf/config.json").write_text(json.dumps({"model_type": "wav2vec2", "num_hidden_layers": 4}))
    problems = check(teacher="hf", keep_teacher_tokens="true")
    assert len(problems) == 2 and all("its tokens are not this training's" in problem for problem in problems)
    assert check(teacher="hf", keep_teacher_tokens="true", **SEQUENCES) == []
    sequences = {"alpha": 1.0, "beta": 1.0, "target": "pseudo"}
    write("conf/train_student_full.yaml", {**STUDENT, "distill_conf": sequences})
    write("conf/train_student_stream.yaml", {**STUDENT, "distill_conf": {**sequences, "token_delay_ms": 40}})
    problems = check(teacher="hf", keep_teacher_tokens="true")
    assert len(problems) == 1 and "conf/train_student_stream.yaml" in problems[0] and "no token_delay_ms" in problems[0]
    assert "needs a --teacher in Hugging Face's format" in check(keep_teacher_tokens="true")[0]


def test_limits_that_leave_too_little(recipe):
    durations(*([1.0] * 5 + [2.0] * 400 + [8.0] * 600))
    write("conf/init.yaml", TEACHER)
    init = {"teacher_init_config": "conf/init.yaml"}
    assert check(**init, teacher_init_max_s="2") == []
    found = check(**init, teacher_init_max_s="1.6")
    assert found == ["--teacher_init_max_s 1.6: leaves 5 of 1005 utterances; 2 leaves 300 or more"]
    durations(*([1.0] * 30 + [8.0] * 70))  # a small corpus
    assert check(**init, teacher_init_max_s="1.6") == []
    durations(*([1.0] * 29 + [8.0] * 71))
    (problem,) = check(**init, teacher_init_max_s="1.6")
    assert problem == "--teacher_init_max_s 1.6: leaves 29 of 100 utterances; 8 leaves 30 or more"
    durations(*([1.0] * 5 + [2.0] * 400 + [8.0] * 600))
    assert check(**init, teacher_init_max_s="1.6", teacher="hf") != found  # no first training of a given teacher
    found = check(min_wav_duration="9")
    assert found == [
        "--min_wav_duration 9, --max_wav_duration 20: no utterance of train is that long; they take 1.0 to 8.0 s"
    ]


def test_report_of_lengths(recipe, capsys):
    durations(1.0, 2.0, 10.0, 30.0)
    report_lengths({**DEFAULTS})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 4 utterances, 0.01 h; 3 of 0.1 to 20 s are trained on, 0.00 h"
    assert len(lines) == 11 and lines[-1].split()[-2:] == ["1", "####################"]
    report_lengths({**DEFAULTS, "train_set": "other"})
    assert capsys.readouterr().out == ""


def test_a_histogram_counts_every_utterance():
    lines = list(histogram([0.5, 1.0, 9.99, 10.0]))
    assert [int(line.split()[4]) for line in lines] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_a_dry_run_needs_no_pretrained_model_and_writes_nothing(recipe):
    write("conf/train_teacher.yaml", {**TEACHER, "network_conf": {"config": "pretrained/none"}})
    assert [line for line in check() if "pretrained/none" in line]
    shutil.rmtree("exp", ignore_errors=True)
    assert not [line for line in check(dry_run="true") if "pretrained/none" in line]
    assert not Path("exp").exists()


def test_more_gpus_than_there_are(recipe):
    (line,) = [line for line in check(ngpu="2", gpus="1", stage="10", stop_stage="10") if "--ngpu" in line]
    assert line == "--ngpu 2: this machine has 1 GPUs; give --ngpu 1, or choose a cluster in cmd.sh"
    for changes in (
        {"ngpu": "1"},
        {"stop_stage": "6"},
        {"dry_run": "true"},
        {"cuda_cmd": "slurm.pl --config conf/slurm.conf"},
    ):
        options = {"ngpu": "2", "gpus": "1", "stage": "10", "stop_stage": "10", **changes}
        if "stop_stage" in changes:
            options["stage"] = "1"
        assert not [line for line in check(**options) if "--ngpu" in line]


@pytest.mark.parametrize(
    ("visible", "listed", "expected"),
    [(None, 2, 2), (None, 0, 0), (None, None, 0), ("", 2, 0), ("-1", 2, 0), ("0", 2, 1), ("GPU-1a,GPU-2b", 8, 2)],
)
def test_gpus_of_this_machine(tmp_path, visible, listed, expected):
    """By nvidia-smi, which may be missing, or as CUDA_VISIBLE_DEVICES says."""
    if listed is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {n}: card (UUID: GPU-{n})'\n" for n in range(listed)))
        tool.chmod(0o755)
    options = TEMPLATE.parents[2] / "local/options.sh"
    text = options.read_text()
    function = text[text.index("gpus_here() {") : text.index("# on_gpus")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{function}\ngpus_here"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


def test_what_is_trained_from_scratch_fits_together(recipe):
    """Of both sizes, as distill.sh sets the options."""
    for size in ("small", "medium"):
        folder = ROOT / "conf/from_scratch" / size
        names = ("teacher_init", "teacher", "student_full", "student_stream")
        options = {f"{name}_config": str(folder / f"train_{name}.yaml") for name in names}
        assert check(**options, from_scratch=size, teacher_init_max_s="auto", student="") == []
