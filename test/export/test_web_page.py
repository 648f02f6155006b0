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

from distill.decode.stream_results import silence_rule
from distill.decode.token_text import tokens_to_text
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


@pytest.mark.parametrize("front_end", ["cnn", "fbank"])
def test_a_file_gives_the_text_that_onnxruntime_gives_also_without_the_server(front_end, tmp_path):
    folder, samples = tmp_path / "web", audio(40000, 5)
    web_page.write_page(export(front_end, hop=0.5) / "student_480ms.onnx", folder, RUNTIME)
    soundfile.write(folder / "a.wav", samples, 16000)
    stream = Recognizer.from_pretrained(export(front_end, hop=0.5), 480, silence_rule(800)).create_stream()
    stream.accept(soundfile.read(folder / "a.wav", dtype="float32")[0])
    stream.finish()
    finals = [result for result in stream.decode() if result["event"] == "final"]
    tokens = [token["token"] for result in finals for token in result["tokens"]]
    expected = tokens_to_text(tokens, "char").split()
    assert expected

    async def scenario():
        with served(folder) as (url, server):
            async with browse(url, tmp_path / "profile") as page:

                async def recognise():
                    await page.evaluate("document.querySelector('#aloud').checked = false")
                    await page.evaluate(give(folder / "a.wav"))
                    await page.until(
                        f"{STATE} === 'idle' && document.querySelector('#finals').childElementCount > 0", 60
                    )
                    assert await page.evaluate("document.querySelector('#problem').hidden")
                    assert "".join(await page.evaluate(TEXT)) == "".join(expected)

                await recognise()
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
