"""sherpa-onnx's program in C++ and its packages for Node on an exported model, as docs/deploy.md has it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sherpa_onnx
import soundfile
from tiny_exports import TOKENS, audio_16_bit, config, export, student

from distill.export import parity
from distill.streaming import Recognizer

DEPLOY = Path(__file__).parents[2] / "docs/deploy.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "distillw2v2")
NODE = "1.13.8"
PROGRAM = "2.0.1"
SILENCE = np.zeros(14400, np.float32)  # 0.9 s, as there


def node_packages() -> Path:
    """A folder with both packages in node_modules, fetched by npm once."""
    folder = CACHE / f"sherpa-onnx-npm-{NODE}"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            packages = [f"sherpa-onnx@{NODE}", f"sherpa-onnx-node@{NODE}"]
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", made, *packages]
            try:
                subprocess.run(command, check=True, timeout=300, capture_output=True)
            except (OSError, subprocess.SubprocessError):
                pytest.skip("npm cannot fetch sherpa-onnx")
            if not folder.is_dir():
                shutil.copytree(made, folder, symlinks=True)
    return folder


def program() -> Path:
    """The program sherpa-onnx: an installed one, or that of PyPI's wheel sherpa-onnx-bin, fetched by pip once."""
    if (installed := shutil.which("sherpa-onnx")) is not None:
        return Path(installed)
    file = CACHE / f"sherpa-onnx-bin-{PROGRAM}/sherpa-onnx"
    if not file.is_file():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary",
                ":all:",
                "-d",
                folder,
            ]
            try:
                subprocess.run([*command, f"sherpa-onnx-bin=={PROGRAM}"], check=True, timeout=300, capture_output=True)
            except (OSError, subprocess.SubprocessError):
                pytest.skip("sherpa-onnx is not installed, and pip cannot fetch sherpa-onnx-bin")
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as members:
                (name,) = (name for name in members.namelist() if name.endswith("/bin/sherpa-onnx"))
                content = members.read(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.chmod(0o755)
        partial.replace(file)
    return file


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, str]:
    """Text by file; it is that of sherpa-onnx in Python, and begins with that of torch."""
    folder, found = tmp_path_factory.mktemp("wavs"), {}
    exported = export("fbank", 480, 0.5)
    recogniser, rate = parity.sherpa_recognizer(exported / "sherpa_480ms.onnx", exported / "tokens.txt", True)
    in_torch = Recognizer(student("fbank"), TOKENS, config(480, 0.5), 480)
    for number, samples in enumerate((9000, 30000, 61234)):
        audio = audio_16_bit(samples, number)
        soundfile.write(folder / f"{number}.wav", audio, 16000, "PCM_16")
        text = parity.sherpa_text(recogniser, np.concatenate((audio, SILENCE)), rate)
        assert text.startswith(in_torch.recognize(audio)["text"]) and text
        found[str(folder / f"{number}.wav")] = text
    return found


def model() -> tuple[str, str]:
    folder = export("fbank", 480, 0.5)
    return str(folder / "sherpa_480ms.onnx"), str(folder / "tokens.txt")


@pytest.mark.parametrize("package", ["sherpa-onnx", "sherpa-onnx-node"])
def test_in_node(package, recordings, tmp_path):
    """WebAssembly and native, with the page's program."""
    packages = node_packages()
    (script,) = re.findall(r"(?ms)^```js\n(.*?)^```$", DEPLOY.read_text(encoding="utf-8"))
    if package == "sherpa-onnx-node":
        changes = {
            "require('sherpa-onnx')": "require('sherpa-onnx-node')",
            "sherpa.createOnlineRecognizer(": "new sherpa.OnlineRecognizer(",
            "acceptWaveform(wave.sampleRate, wave.samples)": "acceptWaveform(wave)",
            "acceptWaveform(wave.sampleRate, new Float32Array(0.9 * wave.sampleRate))":
                "acceptWaveform({ sampleRate: wave.sampleRate, samples: new Float32Array(0.9 * wave.sampleRate) })",
        }  # fmt: skip
        for old, new in changes.items():
            assert old in script
            script = script.replace(old, new)
    (tmp_path / "recognize.js").write_text(script)
    libraries = str(packages / "node_modules/sherpa-onnx-linux-x64")
    env = os.environ | {"NODE_PATH": str(packages / "node_modules"), "LD_LIBRARY_PATH": libraries}
    for file, text in recordings.items():
        command = ["node", str(tmp_path / "recognize.js"), *model(), file]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].split() == text.split()


def test_the_program(recordings):
    name, tokens = model()
    options = [f"--zipformer2-ctc-model={name}", f"--tokens={tokens}", "--left-padding=0", "--right-padding=0.9"]
    env = os.environ | {"LD_LIBRARY_PATH": str(Path(sherpa_onnx.__file__).parent / "lib")}  # onnxruntime, for a wheel's
    done = subprocess.run([program(), *options, *recordings], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = (done.stdout + done.stderr).replace("\n", " ")
    for text in recordings.values():
        assert f'"text": "{text}"' in shown or f'"text": " {text}"' in shown, shown[-3000:]
