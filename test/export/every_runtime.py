"""Recognise whole data directories in every runtime of an exported log-mel student, and count texts that differ.

    python test/export/every_runtime.py EXPORT MODEL DATA [DATA ...]

EXPORT is a directory of ``distill export`` with chunks of 480 ms, MODEL the student, and each DATA has a wav.scp. The
runtimes are torch, onnxruntime, sherpa-onnx in Python (one stream at a time, and ten streams in each call of
decode_streams), its program in C++, its packages for Node (native and WebAssembly), and the page in headless Chromium.
Each ends the audio in its own way, as docs/deploy.md has it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import sherpa_onnx
import soundfile
import torch
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
from browser import browse  # noqa: E402
from test_sherpa_programs import DEPLOY, SILENCE, node_packages, program  # noqa: E402
from test_web_page import STATE, TEXT, give, served  # noqa: E402

from distill import streaming  # noqa: E402
from distill.audio import SAMPLE_RATE, read_audio, read_wav_scp  # noqa: E402
from distill.export import parity  # noqa: E402
from distill.export.recognizer import Recognizer  # noqa: E402

CHUNK_MS = 480
Audio = dict[str, np.ndarray]  # samples by id
Texts = dict[str, str]


def bar(items, name: str) -> tqdm:
    return tqdm(items, desc=name, unit="utt", mininterval=10)


def in_ten_streams(recognizer, audio: Audio) -> Texts:
    """sherpa-onnx in Python: each call of decode_streams has a chunk of up to ten utterances."""
    texts: Texts = {}
    keys = list(audio)
    for first in range(0, len(keys), 10):
        streams = {key: recognizer.create_stream() for key in keys[first : first + 10]}
        for key, stream in streams.items():
            stream.accept_waveform(SAMPLE_RATE, np.concatenate((audio[key], SILENCE)))
            stream.input_finished()
        while ready := [stream for stream in streams.values() if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
        texts |= {key: recognizer.get_result(stream) for key, stream in streams.items()}
    return texts


def in_program(model: Path, tokens: Path, files: dict[str, Path]) -> Texts:
    """sherpa-onnx's program in C++."""
    options = [f"--zipformer2-ctc-model={model}", f"--tokens={tokens}", "--left-padding=0", "--right-padding=0.9"]
    env = os.environ | {"LD_LIBRARY_PATH": str(Path(sherpa_onnx.__file__).parent / "lib")}
    done = subprocess.run([program(), *options, *files.values()], env=env, capture_output=True, text=True, check=True)
    shown = re.findall(r'"text": "(.*?)",', (done.stdout + done.stderr).replace("\n", " "))
    return dict(zip(files, shown, strict=True))


def in_node(package: str, model: Path, tokens: Path, files: dict[str, Path], folder: Path) -> Texts:
    """sherpa-onnx's packages for Node: sherpa-onnx is WebAssembly, sherpa-onnx-node native."""
    (script,) = re.findall(r"(?ms)^```js\n(.*?)^```$", DEPLOY.read_text(encoding="utf-8"))
    script = script.replace("[model, tokens, file]", "[model, tokens, ...files]")
    script = script.replace("const stream =", "for (const file of files) {\nconst stream =") + "}\n"
    if package == "sherpa-onnx-node":
        script = script.replace("require('sherpa-onnx')", "require('sherpa-onnx-node')")
        script = script.replace("sherpa.createOnlineRecognizer(", "new sherpa.OnlineRecognizer(")
        script = re.sub(r"acceptWaveform\((.*?), (.*)\);", r"acceptWaveform({ sampleRate: \1, samples: \2 });", script)
    (folder / "recognize.js").write_text(script)
    modules = node_packages() / "node_modules"
    env = os.environ | {"NODE_PATH": str(modules), "LD_LIBRARY_PATH": str(modules / "sherpa-onnx-linux-x64")}
    command = ["node", str(folder / "recognize.js"), str(model), str(tokens), *map(str, files.values())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return dict(zip(files, done.stdout.splitlines()[-len(files) :], strict=True))


async def in_browser(folder: Path, profile: Path, files: dict[str, Path]) -> Texts:
    """The page that ``distill export`` writes, in Chromium; ``folder`` is it, and holds the files as well."""
    texts: Texts = {}
    with served(folder) as (url, _):
        async with browse(url, profile) as page:
            await page.evaluate("document.querySelector('#aloud').checked = false")
            for key, file in bar(files.items(), "browser"):
                await page.evaluate("document.body.dataset.state = 'given'")
                await page.evaluate(give(file))
                await page.until(f"{STATE} === 'idle'", 60)
                assert await page.evaluate("document.querySelector('#problem').hidden")
                texts[key] = " ".join(await page.evaluate(TEXT))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokens = args.export / f"sherpa_{CHUNK_MS}ms.onnx", args.export / "tokens.txt"
    recognizers = {
        "torch": streaming.Recognizer.from_pretrained(args.model, CHUNK_MS),
        "onnxruntime": Recognizer.from_pretrained(args.export, CHUNK_MS),
    }
    sherpa, _ = parity.sherpa_recognizer(model, tokens, True)
    different = 0
    for data in args.data:
        audio = {key: read_audio(path).astype(np.float32) for key, path in read_wav_scp(data / "wav.scp").items()}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            web = folder / "web"
            web.mkdir()
            for file in (args.export / "web").iterdir():
                (web / file.name).write_bytes(file.read_bytes())
            files = {key: web / f"{number}.wav" for number, key in enumerate(audio)}
            for key, file in files.items():
                soundfile.write(file, audio[key], SAMPLE_RATE, "PCM_16")
                audio[key] = soundfile.read(file, dtype="float32")[0]
            found: dict[str, Texts] = {
                runtime: {key: recognizer.recognize(samples)["text"] for key, samples in bar(audio.items(), runtime)}
                for runtime, recognizer in recognizers.items()
            }
            found["sherpa-onnx"] = {
                key: parity.sherpa_text(sherpa, np.concatenate((samples, SILENCE)), SAMPLE_RATE)
                for key, samples in bar(audio.items(), "sherpa-onnx")
            }
            found["sherpa-onnx, ten streams"] = in_ten_streams(sherpa, audio)
            found["sherpa-onnx, C++ program"] = in_program(model, tokens, files)
            found["sherpa-onnx, Node native"] = in_node("sherpa-onnx-node", model, tokens, files, folder)
            found["sherpa-onnx, Node WebAssembly"] = in_node("sherpa-onnx", model, tokens, files, folder)
            found["browser page"] = asyncio.run(in_browser(web, folder / "profile", files))
        for runtime, texts in found.items():
            wrong = [key for key in audio if texts[key].split() != found["torch"][key].split()]
            different += len(wrong)
            print(f"{data.name}: {runtime}: {len(audio) - len(wrong)} of {len(audio)} texts are torch's", *wrong[:5])
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
