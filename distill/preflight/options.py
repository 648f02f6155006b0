"""Checks of option values, of the files that they name, and of this machine."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from distill.checkpoints.load import checkpoint_path, read_config
from distill.errors import UserError

SOUND = {  # values with which the checks go on where that of an option is wrong
    "from_scratch": "", "audio_format": "flac", "token_type": "char", "teacher_targets": "online",
    "target_dtype": "float32", "stage2_teacher": "teacher", "scoring": "plain", "latencies": "480", "fixed_chunks": "",
    "export_chunks": "480", "decoders": "greedy", "speed_perturb_factors": "", "min_wav_duration": "0.1",
    "max_wav_duration": "20", "teacher_init_max_s": "", "force_stage": "", "train_set": "train", "valid_set": "valid",
    "test_sets": "test", "expdir": "exp", "dumpdir": "dump", "nbpe": "500", "ngram_order": "2", "lm_order": "3",
    "num_nodes": "1", "nj": "1", "threads": "1", "ngpu": "0", "seed": "0", "check": "false", "dry_run": "false",
    "allow_pipes": "false", "unlabelled": "false", "resample": "false", "teacher_tokens": "false",
    "keep_teacher_tokens": "false", "allow_bad_teacher": "false", "no_kd": "true",
}  # fmt: skip
Options = Mapping[str, str]  # values of all options of run.sh by name, as text
CHOICES = {
    "from_scratch": ("", "small", "medium"),
    "audio_format": ("flac", "wav", "flac.ark", "wav.ark"),
    "token_type": ("char", "bpe", "word", "phn"),
    "teacher_targets": ("stored", "online"),
    "target_dtype": ("float32", "float16", "compressed", "codebook"),
    "stage2_teacher": ("teacher", "student_full", "both"),
    "scoring": ("plain", "gigaspeech"),
}
DECODERS = ("greedy", "beam", "wfst")
DURATIONS: dict[str, tuple[str, ...]] = {  # seconds, and the words that may stand instead
    "min_wav_duration": (), "max_wav_duration": (), "teacher_init_max_s": ("", "auto"),
}  # fmt: skip
FLAGS = (
    "check", "dry_run", "allow_pipes", "unlabelled", "resample", "teacher_tokens", "keep_teacher_tokens",
    "allow_bad_teacher", "no_kd",
)  # fmt: skip
LAST_STAGE = 16
MOST_CPUS = 1024
NUMBERS: dict[str, tuple[int, int]] = {  # whole numbers, their smallest and largest values
    "stage": (1, LAST_STAGE), "stop_stage": (1, LAST_STAGE), "force_stage": (1, LAST_STAGE),
    "nbpe": (2, 65_535), "ngram_order": (1, 4), "lm_order": (1, 9), "num_nodes": (1, 1024), "nj": (1, MOST_CPUS),
    "threads": (1, MOST_CPUS), "ngpu": (0, 1024), "seed": (0, 2**32 - 1),
}  # fmt: skip
NAMES = ("train_set", "valid_set", "test_sets", "expdir", "dumpdir")
LEAST_FREE_GB = 1.0  # on the disks of expdir and dumpdir, below which no recipe comes far


def runs(options: Options, stage: int) -> bool:
    """Whether a stage is among those to be run."""
    return int(options["stage"]) <= stage <= int(options["stop_stage"])


def is_hugging_face(options: Options, name: str = "teacher") -> bool:
    """Whether an option names a teacher's directory in Hugging Face's format."""
    teacher = options[name]
    return bool(teacher) and not Path(teacher, "config.yaml").exists() and Path(teacher, "config.json").exists()


def check_values(options: Options) -> Iterator[tuple[str, str]]:
    """Names of options whose values are not of their kind, each with the problem in one line."""
    for name, choices in CHOICES.items():
        if options[name] not in choices:
            named = [choice for choice in choices if choice]
            yield name, f"--{name} {options[name]}: must be {', '.join(named[:-1])} or {named[-1]}"
    for name in FLAGS:
        if options[name] not in ("true", "false"):
            yield name, f"--{name} {options[name]}: must be true or false"
    for name, (least, most) in NUMBERS.items():
        text = options[name]
        if (name, text) != ("force_stage", "") and not (_is_number(text) and least <= int(text) <= most):
            yield name, f"--{name} {text}: must be a whole number from {least} to {most}"
    for name in NAMES:
        if not options[name].split():
            yield name, f"--{name}: is empty; give {'at least one' if name == 'test_sets' else 'a name'}"
        for part in options[name].split() if name == "test_sets" else [options[name]]:
            if re.search(r"[^\w./-]|^-", part, re.ASCII) or ("/" in part and name not in ("expdir", "dumpdir")):
                yield name, f"--{name} {part}: must be letters, digits, '_', '-' and '.', as Kaldi's scripts need it"
    for name, words in DURATIONS.items():
        if options[name] not in words and not _is_duration(options[name]):
            allowed = ["seconds above 0 such as 1.5", *filter(None, words)]
            yield name, f"--{name} {options[name]}: must be {' or '.join(allowed)}"
    for name in ("latencies", "fixed_chunks", "export_chunks"):
        for chunk in options[name].split():
            if not (_is_number(chunk) and int(chunk) > 0) and (name, chunk) != ("latencies", "full"):
                yield (
                    name,
                    f"--{name} {chunk}: must be milliseconds such as 480{' or full' if name == 'latencies' else ''}",
                )
    for factor in options["speed_perturb_factors"].split():
        if not _is_duration(factor):
            yield "speed_perturb_factors", f"--speed_perturb_factors {factor}: must be factors above 0, such as 0.9"
    for decoder in options["decoders"].split():
        if decoder not in DECODERS:
            yield "decoders", f"--decoders {decoder}: must be any of greedy, beam and wfst"
    if not options["latencies"].split():
        yield "latencies", "--latencies: is empty; give at least one"
    for name in ("test_sets", "latencies", "fixed_chunks", "export_chunks", "decoders"):
        parts = options[name].split()
        for part in sorted({part for part in parts if parts.count(part) > 1}):
            cure = ", or under another name (kaldi_dir: --source_test NAME=DIR)" if name == "test_sets" else ""
            yield name, f"--{name} {options[name].strip()}: {part} is given twice; give it once{cure}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_duration(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def check_together(options: Options) -> Iterator[str]:
    """Options that do not go together."""
    lexicon, lang_dir, phones = options["lexicon"], options["lang_dir"], options["token_type"] == "phn"
    if phones and bool(lexicon) == bool(lang_dir):
        yield "--token_type phn: needs either --lexicon FILE or --lang_dir DIR"
    if phones and "beam" in options["decoders"].split():
        yield "--decoders beam: finds no words in phones; take wfst"
    if not phones and (lexicon or lang_dir):
        yield (
            '--lexicon, --lang_dir: need --token_type phn; for wfst\'s spellings give --decode_options "--lexicon FILE"'
        )
    if options["teacher_tokens"] == "true" and not (is_hugging_face(options) and options["token_type"] == "char"):
        yield "--teacher_tokens true: needs --token_type char and a --teacher in Hugging Face's format"
    if options["keep_teacher_tokens"] == "true" and (phones or not is_hugging_face(options)):
        yield "--keep_teacher_tokens true: needs a --teacher in Hugging Face's format, and no --token_type phn"
    if options["keep_teacher_tokens"] == options["teacher_tokens"] == "true":
        yield "--keep_teacher_tokens, --teacher_tokens: either the teacher keeps its tokens, or the recipe takes them"
    if options["unlabelled"] == "true" and not options["teacher"]:
        yield "--unlabelled true: needs a --teacher that is trained already"
    if float(options["min_wav_duration"]) >= float(options["max_wav_duration"]):
        yield f"--min_wav_duration {options['min_wav_duration']}: not below --max_wav_duration"
    if int(options["stage"]) > int(options["stop_stage"]):
        yield f"--stage {options['stage']}: after --stop_stage {options['stop_stage']}, so nothing is run"
    force = options["force_stage"]
    if force and not runs(options, int(force)):
        yield f"--force_stage {force}: not from --stage {options['stage']} to --stop_stage {options['stop_stage']}"
    for name in ("valid_set", "test_sets"):
        if options["train_set"] in options[name].split():
            yield f"--{name} {options[name]}: {options['train_set']} is the training set; give another one"
    if options["valid_set"] in options["test_sets"].split():
        yield f"--test_sets {options['test_sets']}: {options['valid_set']} is the validation set; give another one"
    if options["teacher_init"] and options["teacher"]:
        yield "--teacher_init: begins the training of a teacher, which --teacher has behind it; give one of them"
    if options["teacher_init_max_s"] and not options["teacher_init_config"]:
        yield "--teacher_init_max_s: limits the first training of the teacher; give its --teacher_init_config"


def check_files(options: Options) -> Iterator[str]:
    """Files and directories that options name."""
    for name in ("lexicon", "ngram_lm", "lm"):
        if options[name] and not Path(options[name]).is_file():
            yield f"--{name} {options[name]}: not found; give a file that is there"
    if options["lang_dir"] and not Path(options["lang_dir"], "phones.txt").is_file():
        yield f"--lang_dir {options['lang_dir']}: has no phones.txt; give a lang directory as Kaldi makes it"
    for name in ("teacher", "teacher_init"):
        teacher = options[name]
        if teacher and not Path(teacher).is_dir():
            yield f"--{name} {teacher}: not found; give the directory of a trained teacher"
        elif teacher and not is_hugging_face(options, name):
            try:
                read_config(teacher)
                checkpoint_path(teacher)
            except UserError as error:
                yield f"--{name}: {error}"
    if options["targets"] and runs(options, 10):
        for name in (options["train_set"] + ("_sp" if options["speed_perturb_factors"] else ""), options["valid_set"]):
            manifest = Path(options["targets"], name, "manifest.json")
            if not manifest.is_file():
                yield f"--targets {options['targets']}: {manifest} not found; give a directory that stage 8 filled"


def check_machine(options: Options) -> Iterator[str]:
    """Programs and GPUs that the wanted stages need."""
    if options["speed_perturb_factors"] and runs(options, 2) and shutil.which("sox") is None:
        yield "--speed_perturb_factors: needs sox, which is not installed; apt install sox"
    for name in ("expdir", "dumpdir"):
        yield from _place(name, Path(options[name]))
    gpus, on_this_machine = options["gpus"], options["cuda_cmd"].split()[:1] == ["run.pl"]
    computes = options["dry_run"] == "false" and any(runs(options, stage) for stage in (7, 8, 10, 11, 12))
    if on_this_machine and int(options["num_nodes"]) > 1:
        yield (
            f"--num_nodes {options['num_nodes']}: run.pl is for one machine; give --num_nodes 1, or choose a cluster "
            "in cmd.sh"
        )
    if on_this_machine and computes and int(options["ngpu"]) > int(gpus):
        yield (
            f"--ngpu {options['ngpu']}: this machine has {gpus} GPUs; give --ngpu {gpus}, or choose a cluster in cmd.sh"
        )


def _place(name: str, directory: Path) -> Iterator[str]:
    """A directory that cannot be written, or whose disk is nearly full."""
    place = directory.absolute()
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    if not place.is_dir():
        yield f"--{name} {directory}: {place} is not a directory; give another --{name}"
    elif not os.access(place, os.W_OK | os.X_OK):
        yield f"--{name} {directory}: {place} cannot be written; give another --{name}"
    elif (free := shutil.disk_usage(place).free / 1e9) < LEAST_FREE_GB:
        yield (
            f"--{name} {directory}: {free:.1f} GB are free on its disk, less than {LEAST_FREE_GB:g} GB; make room, or "
            f"give a directory on another disk"
        )
