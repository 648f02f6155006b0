"""The commands in the documentation: those on models are run, of all others the options, files and targets must exist.

A block is taken for commands if one of its lines begins like a command. Then all its lines must, so none is skipped.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_networks import CHANNELS, VOCAB, student, teacher
from tiny_networks import TEACHER as TEACHER_CONF

ROOT = Path(__file__).parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
READMES = [*sorted(ROOT.glob("egs2/*/asr_distill1/README.md")), ROOT / "models/README.md"]
DOCUMENTS = [*TOP, *sorted(ROOT.glob("docs/*.md")), *READMES]
STARTS = (
    r"(\w+=\S+ )?(\./run\.sh|distill|\$python|python3|make|cd|\. \./path\.sh|python=\$\(make)( |$)"
    r"|egs2/TEMPLATE/\S+/setup.sh|\$distill/local/"
)
# Programs of others: their options are not checked.
EXTERNAL = {"arecord", "hf", "sclite", "cp", "export", "pip", "decode-faster", "echo"}
TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]


class Command(NamedTuple):
    """A command of a document: where it stands, its words, and the block that it is part of."""

    document: Path
    words: list[str]
    block: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}: {' '.join(self.words)}"


def blocks(document: Path) -> list[str]:
    """Indented blocks and fenced ones without a language or of a shell, without indentation."""
    text = document.read_text(encoding="utf-8")
    fences = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    fenced = [block for language, block in fences if language in ("", "bash", "sh", "console")]
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    indented = re.findall(r"(?m)^\n((?: {4,}\S.*\n)+)", text)
    return [*fenced, *("\n".join(line.strip() for line in block.splitlines()) for block in indented)]


def commands(document: Path) -> list[Command]:
    """Commands in the blocks of a document, and commands and options named in its prose (program "?")."""
    result = []
    for block in blocks(document):
        lines = re.sub(r"(\\|\|)\n", lambda end: " " if end[1] == "\\" else "| ", block).splitlines()
        if not any(re.match(STARTS, line) or line.split(" ")[0] in EXTERNAL for line in lines):
            continue
        for line in lines:
            words = shlex.split(line, comments=True)
            while "|" in words:
                at = words.index("|")
                result.append(Command(document, words[:at], block))
                words = words[at + 1 :]
            result.append(Command(document, words, block))
    prose = re.sub(r"(?m)^ {4,}.*$|(?ms:^```.*?^```$)", "", document.read_text(encoding="utf-8"))
    for inline in re.findall(r"`([^`]+)`", prose):
        inline = re.sub(r"^(\w+=\S+ )+", "", " ".join(inline.split()))
        if re.match(r"\./run\.sh |make -s |make \w+$|\$?python3? (-m |\w+/)|distill [a-z]", inline):
            result.append(Command(document, shlex.split(inline), ""))
        elif re.match(r"--[a-z]\w+( |$)", inline):  # an option named in passing
            result.append(Command(document, ["?", *shlex.split(inline)], ""))
    return result


ALL = [command for document in DOCUMENTS for command in commands(document)]


@functools.cache
def options_of(module: str) -> frozenset[str]:
    """Long options that a module's --help lists."""
    if module == "distill.bin.train":
        from distill.training.distill_task import DistillTask

        text = DistillTask.get_parser().format_help()
    elif module == "torch.distributed.run":
        from torch.distributed.run import get_args_parser

        text = get_args_parser().format_help().replace("-per-", "_per_")
    else:
        output, sys.stdout = sys.stdout, io.StringIO()
        try:
            importlib.import_module(module).main(["--help"])
        except SystemExit:
            pass
        finally:
            text, sys.stdout = sys.stdout.getvalue(), output
    return frozenset(re.findall(r"--\w+", text))


@functools.cache
def options_of_recipes() -> frozenset[str]:
    """Long options that ./run.sh --help lists, and those that the run.sh of a recipe reads itself."""
    done = subprocess.run([ROOT / "egs2/TEMPLATE/asr_distill1/distill.sh", "--help"], capture_output=True, text=True)
    added = [
        option
        for script in ROOT.glob("egs2/*/asr_distill1/run.sh")
        for option in re.findall(r'(?m)^ *(?:if \[ "\$1" = )?(--\w+)(?:\)| \])', script.read_text())
    ]
    return frozenset([*re.findall(r"--\w+", done.stdout), *added])


@functools.cache
def options_of_script(name: str) -> frozenset[str]:
    """Long options that a script of the top-level local/ lists."""
    done = subprocess.run([ROOT / "local" / name, "--help"], capture_output=True, text=True, check=True)
    return frozenset(re.findall(r"--[\w-]+", done.stdout))


def scripts() -> list[str]:
    return sorted(path.name for path in (ROOT / "local").glob("*.sh") if os.access(path, os.X_OK))


def given(words: list[str]) -> set[str]:
    """Long options among the words of a command."""
    return {word.split("=")[0] for word in words if re.match(r"--\w+(=|$)", word)}


def check_recipe(command: Command, words: list[str]) -> None:
    """Options of ./run.sh, and the options within its options."""
    assert given(words) <= options_of_recipes(), command
    corpus = command.document.parents[1].name
    prepare = ROOT / f"distill/bin/prepare_{corpus}.py"
    data = f"distill.bin.{prepare.stem}" if prepare.is_file() else "distill.bin.import_data"
    inner = {"--local_data_opts": data, "--decode_options": "distill.bin.decode", "--plan_options": "distill.bin.plan"}
    inner["--pack_options"] = "distill.bin.pack"
    for option, value in zip(words, words[1:], strict=False):
        if option in inner and option != value:
            assert given(shlex.split(value)) <= options_of(inner[option]), command
        if value.startswith("conf/"):
            assert (ROOT / value).is_file(), command


def check_module(command: Command, module: str, words: list[str]) -> None:
    """That a module exists and has the options it is given."""
    if module.startswith("distill."):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), command
    if options := given(words):
        assert options <= options_of(module), command


def check(command: Command) -> None:
    """Every program, option and file of a command exists.

    Raises:
        AssertionError: one does not; the message is the command with its document.
    """
    words = command.words
    while len(words) > 1 and re.match(r"\w+=[^$]", words[0]):  # variables of this command's environment
        words = words[1:]
    program, rest = words[0], words[1:]
    if program == "?":
        recipes = given(rest) <= options_of_recipes()
        of_a_script = any(given(rest) <= options_of_script(name) for name in scripts())
        assert recipes or of_a_script or any(given(rest) <= options_of(module) for module in modules()), command
    elif program == "./run.sh":
        check_recipe(command, rest)
    elif program == "make":
        targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
        assert set(rest) - {"-s"} <= set(targets), command
    elif program in ("$python", "python3", "python") and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), command
    elif program in ("$python", "python3", "python"):
        if rest[:2] == ["-m", "http.server"]:  # any Python has it
            return
        assert program != "python3" or not command.block or "path.sh" in command.block, f"no path.sh: {command}"
        while rest:
            assert rest[0] == "-m", command
            module, rest = rest[1], rest[2:]
            end = rest.index("-m") if "-m" in rest else len(rest)
            check_module(command, module, rest[:end])
            rest = rest[end:]
    elif program == "distill":
        if rest != ["--help"]:
            check_module(command, f"distill.bin.{rest[0]}", rest[1:])
    elif program == "cd":
        new_recipe = "egs2/TEMPLATE/asr_distill1/setup.sh" in command.block
        assert new_recipe or (ROOT / rest[0]).is_dir(), command
    elif program.startswith("$distill/local/"):
        name = program.removeprefix("$distill/local/")
        assert {word for word in rest if word.startswith("--")} <= options_of_script(name), command
    elif (
        re.match(r"\w+=(?!\$\()", program) and f"${program.partition('=')[0]}" in command.block
    ):  # a variable of the block
        assert not rest, command
    elif program == "./run.py":
        files = [word for word in rest if word.startswith("conf/")]
        assert files and all((ROOT / "egs3/demo/asr_distill" / name).is_file() for name in files), command
    elif program.startswith("egs2/"):
        assert (ROOT / program).is_file(), command
    else:
        known = program in EXTERNAL or program == "." or re.match(r"python=\$\(make$", program)
        assert known, f"unknown program: {command}"


def modules() -> list[str]:
    """Every module with options, the one last whose help takes ESPnet."""
    files = [
        path
        for path in ROOT.glob("distill/bin/*.py")
        if path.stem
        not in ("__init__", "arguments", "decoding_arguments", "endpoint_arguments", "main", "option_strings")
    ]
    names = [f"distill.bin.{path.stem}" for path in files]
    return sorted(names, key=lambda name: (name == "distill.bin.train", name))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_options_and_files_are_there(document):
    for command in ALL:
        if command.document == document:
            check(command)


def save(directory: Path, network: torch.nn.Module, config: dict[str, object]) -> None:
    directory.mkdir(parents=True)
    config = {"token_list": TOKENS, "token_type": "char", **config}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({f"network.{key}": value for key, value in network.state_dict().items()}, directory / "model.pth")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's top folder as a finished run of a recipe leaves it, as far as commands on models need it."""
    from distill.bin import make_lm, pack

    assert len(TOKENS) == VOCAB
    root = tmp_path_factory.mktemp("clone")
    recipe = root / "egs2/fsdd/asr_distill1"
    conf = {"front_end": "cnn", "front_end_conf": {"channels": list(CHANNELS)}, "width": 32, "layers": 3, "heads": 2}
    conf |= {"ffn": 48, "kernel": 7}
    config = {"network": "student", "network_conf": conf, "chunk_conf": {"chunk_ms": 480, "left_ms": 2000}}
    save(recipe / "exp/student_stream", student(), config)
    pack.main(["--model", str(recipe / "exp/student_stream"), "--output", str(root / "student_stream.zip")])
    teacher_conf = {"config": {**TEACHER_CONF, "conv_dim": list(CHANNELS)}}
    save(recipe / "exp/teacher", teacher(), {"network": "teacher", "network_conf": teacher_conf})
    pack.main(["--model", str(recipe / "exp/student_stream"), "--output", str(recipe / "exp/student_stream.zip")])
    for directory in (root, recipe):
        audio = 0.1 * np.random.default_rng(0).standard_normal(24000).astype(np.float32)
        soundfile.write(directory / "some.wav", audio, 16000)
    save_export(recipe / "exp/export", config)
    (root / "egs2/demo").symlink_to(root / "egs2/fsdd")
    (root / "models").symlink_to(ROOT / "models")
    (recipe / "text").write_text("u1 a cab\nu2 bad cab a\n")
    for arpa in ("words.arpa", "exp/lm/words.arpa"):
        make_lm.main(["--text", str(recipe / "text"), "--order", "2", "--output", str(recipe / arpa)])
    (recipe / "names.txt").write_text("bad cab\n")
    lexicon = recipe / "data/token_list/phn/lexicon.txt"
    lexicon.parent.mkdir(parents=True)
    lexicon.write_text("a a\ncab c a b\nbad b a d\n")
    return root


def save_export(folder: Path, config: dict) -> None:
    """What stage 15 would write, without its check."""
    from distill.export import model as onnx_model
    from distill.export.sherpa import sherpa_tokens

    network = student("fbank")
    tokens = TOKENS[: network.vocab_size]
    shapes = onnx_model.shapes_for(network, config, 480, folder)
    step = onnx_model.step_model(network, shapes)
    folder.mkdir()
    (folder / "tokens.txt").write_text(sherpa_tokens(tokens, "char"))
    models = {"float32": step, "int8": onnx_model.quantized(step)}
    for kind, (wrapped, about) in onnx_model.sherpa_models(network, shapes, models).items():
        end = ".onnx" if kind == "float32" else ".int8.onnx"
        onnx_model.save(wrapped, folder / f"sherpa_480ms{end}", about)
        properties = onnx_model.metadata(network, shapes, tokens, "char", 480)
        onnx_model.save(models[kind], folder / f"student_480ms{end}", properties)


def transcribes(command: Command) -> bool:
    called = command.words[:2] == ["distill", "transcribe"] or "distill.bin.transcribe" in command.words
    return called and "--model" in command.words


TRANSCRIBE = [command for command in ALL if transcribes(command)]


def test_there_are_commands_to_run():
    assert len(TRANSCRIBE) >= 7 and len(ALL) > 100


@pytest.mark.parametrize("command", TRANSCRIBE, ids=str)
def test_recognition_as_it_is_written(command, clone, monkeypatch, capsys):
    """In the recipe's directory if the model is exp/NAME, else in the top folder; a microphone is 3 s of noise."""
    model = command.words[command.words.index("--model") + 1]
    monkeypatch.chdir(clone / "egs2/fsdd/asr_distill1" if model.startswith("exp/") else clone)
    noise = (3000 * np.random.default_rng(1).standard_normal(48000)).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(noise)))
    arguments = command.words[2 if command.words[0] == "distill" else 3 :]
    importlib.import_module("distill.bin.transcribe").main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines
    if "--json" in command.words:
        assert json.loads(lines[-1])["event"] == "final"
    else:
        assert lines[-1].split(" ")[0] == command.words[-1]


@pytest.mark.parametrize("corpus", ["gigaspeech", "librispeech", "fsdd", "demo", "kaldi_dir"])
def test_help_of_every_recipe(corpus):
    done = subprocess.run(
        ["./run.sh", "--help"], cwd=ROOT / f"egs2/{corpus}/asr_distill1", capture_output=True, text=True
    )
    assert done.returncode == 0 and "--stop_stage" in done.stdout


def python_blocks() -> list[tuple[Path, str]]:
    return [
        (document, block)
        for document in DOCUMENTS
        for block in re.findall(r"(?ms)^```python\n(.*?)^```$", document.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("document", "block"), python_blocks(), ids=lambda value: getattr(value, "name", ""))
def test_python_examples(document, block, clone, monkeypatch, capsys):
    monkeypatch.chdir(clone / "egs2/fsdd/asr_distill1")
    samples = 0.1 * np.random.default_rng(2).standard_normal(20000).astype(np.float32)
    scores = torch.randn(2, 30, 5).log_softmax(-1)
    names = {
        "samples": samples,
        "pieces": [samples, samples[:9000]],
        "token_ids_of_each_line": [[1, 2], [3, 1, 1]],
        "V": 5,
        "log_probs": scores,
        "teacher": scores.flip(0),
        "lengths": torch.tensor([30, 20]),
        "tokens": torch.tensor([[1, 2, 3], [3, 1, -1]]),
        "token_lengths": torch.tensor([3, 2]),
    }
    exec(compile(block, str(document), "exec"), names)
    if "loss" in names:
        assert torch.isfinite(names["loss"]).all()
