"""The wheel, in an environment that holds only what it requires: commands run with their extras and without ESPnet."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from packaging.requirements import Requirement
from tiny_networks import CHANNELS, speech, student

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKENS = ["<blank>", "<unk>", *"abcdefg", "<space>", "<sos/eos>"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that pip builds of a copy of the tree."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "distill", source / "distill", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(output)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (path,) = output.glob("*.whl")
    return path


class Environment:
    """A virtual environment with the wheel, and with links to those installed packages that it requires."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self._bin = folder / "bin"
        (self._packages,) = folder.glob("lib/python3*/site-packages")
        options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "--python", str(self._bin / "python"), "install", *options, str(wheel)]
        subprocess.run(command, check=True)
        self._linked: set[tuple[str, frozenset[str]]] = set()

    def add(self, extra: str = "") -> None:
        """Link the packages that the wheel requires with an extra."""
        (wheel,) = importlib.metadata.distributions(name="distillw2v2", path=[str(self._packages)])
        self._link_requirements(wheel, frozenset({extra}))

    def _link_requirements(self, distribution: importlib.metadata.Distribution, extras: frozenset[str]) -> None:
        for text in distribution.requires or ():
            requirement = Requirement(text)
            markers = ({"extra": extra} for extra in extras or {""})
            if requirement.marker is None or any(map(requirement.marker.evaluate, markers)):
                self._link(requirement.name, frozenset(requirement.extras))

    def _link(self, name: str, extras: frozenset[str]) -> None:
        if (name, extras) in self._linked:
            return
        self._linked.add((name, extras))
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (self._packages / top).exists():
                (self._packages / top).symlink_to(Path(str(distribution.locate_file(top))))
        self._link_requirements(distribution, extras)

    def start(self, *arguments: object, **options) -> subprocess.Popen[str]:
        """Start a program of the environment, away from this tree."""
        program, *rest = map(str, arguments)
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.Popen(
            [str(self._bin / program), *rest], env=variables, cwd=self._packages, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a program that is expected to end with ``status``."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == status, errors
        return output, errors


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"), wheel)
    made.add()
    return made


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A streaming student's training, and a data directory with one utterance."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "model").mkdir()
    (folder / "data").mkdir()
    conf = {
        "front_end_conf": {"channels": list(CHANNELS)},
        "width": 32,
        "layers": 3,
        "heads": 2,
        "ffn": 48,
        "kernel": 7,
    }
    config = {"network": "student", "network_conf": conf, "chunk_conf": {"chunk_ms": [160, 960], "left_ms": 2000}}
    config |= {"token_list": TOKENS, "token_type": "char"}
    (folder / "model/config.yaml").write_text(yaml.safe_dump(config))
    weights = {f"network.{key}": value for key, value in student().state_dict().items()}
    torch.save(weights, folder / "model/model.pth")
    soundfile.write(folder / "a.wav", speech(32000).numpy(), 16000)
    (folder / "data/wav.scp").write_text(f"a {folder}/a.wav\n")
    (folder / "data/text").write_text("a bad cab\n")
    return folder


@pytest.fixture(scope="module")
def text(environment, work) -> str:
    """What the wheel recognises with no extra."""
    output, _ = environment.run("distill", "transcribe", "--model", work / "model", work / "a.wav")
    return output.removeprefix(f"{work}/a.wav ")


def test_the_wheel_holds_the_files_that_are_no_modules(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith(".py")}
    tracked = subprocess.run(["git", "ls-files", "distill"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {name for name in tracked.stdout.split() if not name.endswith(".py")}
    assert {"distill/serve/page/index.html", "distill/serve/page/app.js"} <= files
    assert files <= names


def test_without_extras_it_transcribes_and_names_the_extra_that_a_command_needs(environment, work, text):
    assert len(text.strip()) > 5
    _, errors = environment.run("python", "-c", "import espnet2", status=1)
    assert "No module named 'espnet2'" in errors
    assert environment.run("python", "-m", "distill", "--help")[0].startswith("usage: distill COMMAND")
    data = ["--data_dirs", work / "data", "--output", work / "none"]
    for command, extra in (["serve"], "serve"), (["export", *data], "deploy"):
        _, errors = environment.run("distill", *command, "--model", work / "model", status=2)
        assert re.fullmatch(rf"error: \w+: not installed; pip install 'distillw2v2\[{extra}\]'\n", errors)


def test_with_its_extra_it_serves_the_page_and_a_client(environment, work, text):
    environment.add("serve")
    with environment.start("distill", "serve", "--model", work / "model", "--port", "0") as server:
        try:
            line = server.stdout.readline()
            assert line.startswith("captions at http://"), line or server.stderr.read()
            address = line.split()[-1]
            for name in ("", "app.js", "style.css"):
                assert urllib.request.urlopen(address + name, timeout=60).read(), name
            url = f"{address.replace('http', 'ws')}stream"
            options = ["--fast", "--silence", 9000]
            assert environment.run("distill", "stream_client", "--url", url, *options, work / "a.wav")[0] == text
        finally:
            server.terminate()


def test_with_its_extra_it_exports_and_transcribes_the_export(environment, work, text):
    environment.add("deploy")
    arguments = ["--model", work / "model", "--data_dirs", work / "data", "--output", work / "export"]
    output, _ = environment.run("distill", "export", *arguments)
    assert f"exported to {work}/export\n" in output
    program = "import sys; sys.modules['torch'] = None; from distill.bin.main import main; main(sys.argv[1:])"
    arguments = ["transcribe", "--model", work / "export", work / "a.wav"]
    assert environment.run("python", "-c", program, *arguments)[0] == f"{work}/a.wav {text}"
