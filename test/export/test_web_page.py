"""The page that recognises in the browser, in a real one: a file, a microphone, and without its server."""

import asyncio
import contextlib
import functools
import gzip
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, browse
from tiny_exports import audio, export

from distill.decode.greedy import GreedySearch
from distill.decode.stream_results import SHERPA_RULES, EndpointRules, Result, StreamDecoder
from distill.export import web_page
from distill.export.recognizer import Recognizer

RUNTIME = web_page.runtime_files()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
    pytest.mark.skipif(RUNTIME is None, reason="onnxruntime-web is not there and npm cannot fetch it"),
]
STATE = "document.body.dataset.state"
TEXT = "[...document.querySelectorAll('#captions .word > span')].map((w) => w.textContent)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path):
    """The address of a folder behind Python's own file server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def give(file: Path) -> str:
    """What gives the page's file input a file that it fetches from its own server."""
    return f"""(async () => {{
        const bytes = await (await fetch({json.dumps(file.name)})).arrayBuffer();
        const data = new DataTransfer();
        data.items.add(new File([bytes], {json.dumps(file.name)}));
        document.querySelector('#chosen').files = data.files;
        document.querySelector('#chosen').dispatchEvent(new Event('change'));
    }})()"""


RECORD = """(() => {
    const open = globalThis.openSocket;
    globalThis.results = [];
    globalThis.openSocket = () => {
        const socket = open();
        return new Proxy(socket, {
            get: (target, name) => {
                const value = Reflect.get(target, name);
                return typeof value === 'function' ? value.bind(target) : value;
            },
            set: (target, name, value) => {
                if (name !== 'onmessage') return Reflect.set(target, name, value);
                target.onmessage = (event) => {
                    const message = JSON.parse(event.data);
                    if (['partial', 'final'].includes(message.event)) globalThis.results.push(message);
                    value(event);
                };
                return true;
            },
        });
    };
})()"""  # keeps the messages that the page gets


def same(shown: list[dict], expected: list[Result]) -> None:
    """All but the time of computation agrees; confidences almost."""
    for result, other in zip(shown, expected, strict=True):
        keys = ("event", "text", "stable", "start_s", "endpoint", "audio_s")
        assert [result[key] for key in keys] == pytest.approx([other[key] for key in keys], abs=1e-6)
        assert result["emitted_after_s"] >= 0
        for token, wanted in zip(result["tokens"], other["tokens"], strict=True):
            assert token["token"] == wanted["token"] and token == pytest.approx(wanted, abs=1e-3)


def test_decoding_in_javascript_is_that_in_python(tmp_path):
    """Random scores with tokens of every kind and every endpoint rule, silence first, chunks of any length."""
    rng = np.random.default_rng(3)
    spelt = {
        "char": ["a", "b", "<space>", "é", "<unk>"],
        "bpe": ["▁a", "b", "▁", "▁c▁d", "<unk>"],
        "word": ["one", "two", "<unk>", "three"],
        "phn": ["AH", "B", "K"],
    }
    cases, expected = [], []
    for number in range(80):
        token_type = list(spelt)[number % 4]
        tokens = ["<blank>", *spelt[token_type], "<sos/eos>"]
        choices = (None, 60, 100, 330, 900)
        rules = dict(
            zip(("silence", "empty", "length"), map(choices.__getitem__, rng.integers(5, size=3)), strict=True)
        )
        loud = int(rng.integers(-10, 40))  # frame of the first sound
        stream = StreamDecoder(tokens, token_type, 20, EndpointRules(**rules), GreedySearch)
        results: list[Result] = []
        steps = []
        for chunk in range(12):
            frames = int(rng.integers(1, 12))
            samples = np.full(320 * frames, 2e-4, np.float32)
            samples[max(0, 320 * (loud - sum(len(step[1]) for step in steps))) :] = 0.1
            logits = 3 * rng.normal(size=(frames, len(tokens))).astype(np.float32)
            logits[:, 0] += 9.0 * (rng.random(frames) < (0.9, 0.3)[chunk % 5 > 1])
            if rng.random() < 0.5:  # tokens last
                logits = np.repeat(logits[::3], 3, 0)[:frames]
            scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            steps.append((samples.tolist(), scores.tolist()))
            stream.receive(samples)
            if chunk < 11:
                results += stream.accept(scores)
                results.append(stream.partial())
            else:
                stream.accept_last(scores)
        results.append(stream.finish())
        cases.append({"tokens": tokens, "type": token_type, "rules": rules, "steps": steps})
        expected.append(results)
    endpoints = {result["endpoint"] for results in expected for result in results}
    assert endpoints == {None, "silence", "empty", "length", "end"}
    assert any(0 < len(r["stable"]) < len(r["text"]) for results in expected for r in results)
    assert any(results[3]["text"] == "" and results[-1]["text"] for results in expected), "silence first"
    folder = tmp_path / "web"
    web_page.write_page(export("cnn") / "student_480ms.onnx", folder, RUNTIME)
    (folder / "cases.json").write_text(json.dumps(cases))
    script = """(async () => {
        const { Decoder } = await import('./results.js');
        return (await (await fetch('cases.json')).json()).map(({ tokens, type, rules, steps }) => {
            const decoder = new Decoder(tokens, type, 20, rules);
            const results = [];
            steps.forEach(([samples, scores], n) => {
                decoder.receive(Float32Array.from(samples));
                if (n === steps.length - 1) return decoder.acceptLast(scores.flat());
                const final = decoder.accept(scores.flat());
                if (final) results.push(final);
                results.push(decoder.partial());
            });
            return [...results, decoder.finish()];
        });
    })()"""

    async def scenario():
        with served(folder) as (url, _):
            async with browse(url, tmp_path / "profile") as page:
                for shown, wanted in zip(await page.evaluate(script), expected, strict=True):
                    same(shown, wanted)

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_a_file_gives_the_results_that_onnxruntime_gives_also_without_the_server(front_end, tmp_path):
    """4 s of silence, then speech of 22 s: rules for empty and for long utterances end some."""
    folder, samples = tmp_path / "web", np.concatenate((np.zeros(64000, np.float32), audio(360000, 5)))
    web_page.write_page(export(front_end, hop=0.5) / "student_480ms.onnx", folder, RUNTIME)
    soundfile.write(folder / "a.wav", samples, 16000)
    stream = Recognizer.from_pretrained(export(front_end, hop=0.5), 480, SHERPA_RULES).create_stream()
    kept = soundfile.read(folder / "a.wav", dtype="float32")[0]
    results: list[Result] = []
    for start in range(0, len(kept), 320):  # the pieces that the page sends
        stream.accept(kept[start : start + 320])
        results += stream.decode()
    stream.finish()
    results += stream.decode()
    finals = [result for result in results if result["event"] == "final"]
    assert {result["endpoint"] for result in finals} == {"empty", "length", "end"}
    expected = " ".join(result["text"] for result in finals).split()

    async def scenario():
        with served(folder) as (url, server):
            async with browse(url, tmp_path / "profile") as page:

                async def recognise():
                    await page.evaluate("document.querySelector('#aloud').checked = false")
                    await page.evaluate(give(folder / "a.wav"))
                    await page.until(
                        f"{STATE} === 'idle' && document.querySelector('#finals').childElementCount > 0", 90
                    )
                    assert await page.evaluate("document.querySelector('#problem').hidden")
                    assert await page.evaluate(TEXT) == expected

                await page.evaluate(RECORD)
                await recognise()
                same(await page.evaluate("globalThis.results"), results)
                lines = await page.evaluate(
                    "[...document.querySelectorAll('#finals p')].map((p) => p.dataset.endpoint)"
                )
                assert lines == [result["endpoint"] for result in finals if result["text"]]
                assert 0 < float(await page.evaluate("document.querySelector('#rtf').textContent")) < 5
                await page.evaluate("navigator.serviceWorker.ready.then(() => true)")
                await page.evaluate("caches.open('captions').then((c) => c.add('a.wav'))")
                server.shutdown()
                server.server_close()
                await page.call("Page.reload")
                await page.until("document.querySelector('#chunk')?.options.length > 0", 60)
                await recognise()

    asyncio.run(asyncio.wait_for(scenario(), 240))


def test_what_is_large_is_kept_compressed(tmp_path):
    model = export("cnn") / "student_480ms.onnx"
    web_page.write_page(model, tmp_path / "web", RUNTIME)
    names = {file.name for file in (tmp_path / "web").iterdir()}
    assert not any(name.endswith((".onnx", ".wasm")) for name in names)
    assert gzip.decompress((tmp_path / "web/model.onnx.gz").read_bytes()) == model.read_bytes()
    files = json.loads((tmp_path / "web/files.json").read_text())
    assert {"model.onnx.gz", "ort-wasm-simd-threaded.wasm.gz"} <= set(files) <= names | {"./"}
    runtime = sum((tmp_path / "web" / name).stat().st_size for name in files if name not in ("./", "model.onnx.gz"))
    assert runtime < 4e6


def test_the_microphone_is_recognised(tmp_path):
    folder = tmp_path / "web"
    web_page.write_page(export("fbank") / "student_480ms.onnx", folder, RUNTIME)
    soundfile.write(tmp_path / "mic.wav", np.tile(audio(64000, 5), 3), 16000)
    flags = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"

    async def scenario():
        with served(folder) as (url, _):
            flag = f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}"
            async with browse(url, tmp_path / "profile", *flags, flag) as page:
                await page.evaluate("document.querySelector('#speak').click()")
                await page.until(f"{STATE} === 'listening' && {TEXT}.length > 0", 60)
                await page.evaluate("document.querySelector('#speak').click()")
                await page.until(f"{STATE} === 'idle'", 60)
                assert await page.evaluate("document.querySelector('#problem').hidden")
                assert float((await page.evaluate("document.querySelector('#first').textContent")).split()[0]) > 0

    asyncio.run(asyncio.wait_for(scenario(), 200))
