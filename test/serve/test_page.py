"""The page in a real browser: its microphone is a file, its captions are the recogniser's."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from browser import CHROMIUM, browse
from test_server import serving
from tiny_networks import speech

from distill.decode.stream_results import SHERPA_RULES
from distill.decode.streams import Stream
from distill.decode.token_text import tokens_to_text
from distill.streaming import Recognizer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
TEXT = "[...document.querySelectorAll('#captions .word > span')].map((w) => w.textContent)"
TIMES = "[...document.querySelectorAll('#captions .word')].map((w) => w.title)"
STATE = "document.body.dataset.state"
SPEAK = "document.querySelector('#speak').click()"
FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def run(scenario) -> None:
    asyncio.run(asyncio.wait_for(scenario, 90))


def site(url: str) -> str:
    return url.replace("ws:", "http:").removesuffix("stream")


def recognized(model: Path, audio: np.ndarray) -> list[dict]:
    stream = Recognizer.from_pretrained(model, 480, SHERPA_RULES).create_stream()
    stream.accept(audio)
    stream.finish()
    return [token for r in stream.decode() if r["event"] == "final" for token in r["tokens"]]


def choose(file: Path) -> str:
    """What gives the page's file input a file, as its user would."""
    return f"""(() => {{
        const bytes = Uint8Array.from(atob({json.dumps(_base64(file))}), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], {json.dumps(file.name)}));
        document.querySelector('#chosen').files = data.files;
        document.querySelector('#chosen').dispatchEvent(new Event('change'));
    }})()"""


def _base64(file: Path) -> str:
    import base64

    return base64.b64encode(file.read_bytes()).decode()


def test_a_file_at_full_speed(model, tmp_path):
    """A 16 kHz file reaches the recogniser sample by sample; one that is no audio is said to be none."""
    audio = speech(64000).numpy()
    soundfile.write(tmp_path / "a.wav", audio, 16000)
    (tmp_path / "b.wav").write_bytes(b"RIFF and nothing more")
    tokens = recognized(model, soundfile.read(tmp_path / "a.wav", dtype="float32")[0])
    expected = tokens_to_text((token["token"] for token in tokens), "char")

    async def scenario():
        async with serving(model) as (_, url), browse(site(url), tmp_path / "profile") as page:
            await page.evaluate("document.querySelector('#aloud').checked = false")
            await page.evaluate(choose(tmp_path / "a.wav"))
            await page.until(f"{STATE} === 'idle' && document.querySelector('#finals').childElementCount > 0")
            assert await page.evaluate(TEXT) == expected.split()
            assert await page.evaluate("document.querySelector('#audio').textContent") == "0:04"
            assert 0 < float(await page.evaluate("document.querySelector('#rtf').textContent")) < 5
            await page.evaluate(choose(tmp_path / "b.wav"))
            await page.until("document.querySelector('#problem').innerText.includes('b.wav is not audio')")

    run(scenario())


SCRIPTED = """(() => {
    const socket = {readyState: 1, bufferedAmount: 0, send() {}, close() {}};
    globalThis.say = (message) => socket.onmessage({data: JSON.stringify(message)});
    globalThis.openSocket = () => socket;
    document.querySelector('#speak').click();
})()"""  # a server that says what the test says
WORDS = "[...document.querySelectorAll('%s .word')].map((w) => [w.innerText.split('\\n')[0], w.className, w.title])"
COLOUR = "(selector) => getComputedStyle(document.querySelector(selector)).color"


def result(text: str, stable: str, endpoint: str | None = None, start_s: float = 0.0) -> dict:
    """A result of a served student with character tokens, 0.1 s each."""
    names = ["<space>" if letter == " " else letter for letter in text]
    times = [round(start_s + n / 10, 1) for n in range(len(names) + 1)]
    tokens = [{"token": t, "start_s": times[n], "end_s": times[n + 1], "confidence": 1.0} for n, t in enumerate(names)]
    about = {"text": text, "stable": stable, "endpoint": endpoint, "start_s": start_s}
    return {
        "event": "final" if endpoint else "partial",
        **about,
        "audio_s": 9.0,
        "emitted_after_s": 0.1,
        "tokens": tokens,
    }


def test_what_is_stable_is_shown_apart_and_each_result_has_its_line(model, tmp_path):
    async def scenario():
        async with serving(model) as (_, url), browse(site(url), tmp_path / "profile", *FAKE) as page:
            await page.evaluate(SCRIPTED)

            async def say(message: dict) -> None:
                await page.evaluate(f"globalThis.say({json.dumps(message)})")

            async def words(selector: str) -> list[list[str]]:
                return await page.evaluate(WORDS % selector)

            await page.until("(() => { try { say({event: 'ready'}); return true; } catch { return false; } })()")
            await say(result("ab cad", "ab"))
            assert await words("#partial") == [
                ["ab", "word stable", "0.00 s to 0.20 s"], ["cad", "word", "0.30 s to 0.60 s"],
            ]  # fmt: skip
            kinds = ".stable", ":not(.stable)"
            colours = [await page.evaluate(f"({COLOUR})('#partial .word{kind} > span')") for kind in kinds]
            assert colours[0] != colours[1]
            await say(result("ab cab", "ab cab", "silence"))
            await say(result("", "", "empty", 2.0))
            await say(result("bad b", "bad b", "length", 4.0))
            await say(result("ad", "", None, 4.5))
            lines = "[...document.querySelectorAll('#finals p')].map((p) => [p.dataset.endpoint, p.textContent])"
            assert await page.evaluate(lines) == [["silence", "ab0:00.0cab0:00.3"], ["length", "bad0:04.0b0:04.4"]]
            assert await words("#partial") == [["ad", "word", "4.50 s to 4.70 s"]]
            gaps = (
                "[...document.querySelectorAll('#finals p')].map((p) => parseFloat(getComputedStyle(p).marginBottom))"
            )
            after_silence, after_length = await page.evaluate(gaps)
            assert after_length < after_silence
            await say({**result("ad", "ad", "end", 4.5), "text": "a dee", "stable": "a dee"})  # words of a lexicon
            assert await words("#finals p:last-child") == [["a", "word stable", ""], ["dee", "word stable", ""]]

    run(scenario())


def test_what_goes_wrong_is_said(model, tmp_path):
    async def scenario():
        async with serving(model, sessions=1) as (server, url):
            async with browse(site(url), tmp_path / "profile", "--use-fake-device-for-media-stream") as page:
                await page.call("Browser.setPermission", permission={"name": "microphone"}, setting="denied")
                await page.evaluate(SPEAK)
                await page.until("document.querySelector('#problem').innerText.includes('The microphone is blocked')")
                await page.call("Browser.setPermission", permission={"name": "microphone"}, setting="granted")
                other = await page.evaluate("new Promise((done) => { const s = new WebSocket('stream');"
                    "s.onmessage = () => done(1); globalThis.other = s; })")  # fmt: skip
                assert other == 1
                await page.evaluate(SPEAK)
                await page.until("document.querySelector('#problem').innerText.includes('The server is full')")
                await page.evaluate("globalThis.other.close()")
                await asyncio.sleep(0.5)
                await page.evaluate(SPEAK)
                await page.until(f"{STATE} === 'listening' && document.querySelector('#problem').hidden")
                for session in server._sockets:
                    session._req.transport.abort()
                await page.until("document.querySelector('#problem').innerText.includes('was lost')")
                assert await page.evaluate(STATE) == "idle"

    run(scenario())


def test_resampling_keeps_speech_and_removes_what_would_fold_back(model, tmp_path):
    """Sines: below 6.5 kHz they keep their height, above 8 kHz nothing is left; the same in pieces as whole."""
    script = """(async () => {
        const { Resampler } = await import('./resample.js');
        const rows = [];
        for (const rate of [8000, 44100, 48000]) for (const hertz of [200, 3000, 6500, 8100, 12000, 15500]) {
            if (hertz > rate / 2) continue;
            const input = Float32Array.from({ length: rate }, (_, n) => Math.sin((2 * Math.PI * hertz * n) / rate));
            const whole = new Resampler(rate, 16000), parts = new Resampler(rate, 16000);
            const output = [...whole.accept(input), ...whole.finish()];
            const pieces = [];
            for (let at = 0, size = 1; at < rate; at += size, size = (size * 7) % 1009)
                pieces.push(...parts.accept(input.subarray(at, at + size)));
            pieces.push(...parts.finish());
            const middle = output.slice(1000, 15000);
            const error = middle.map((y, n) => Math.abs(y - Math.sin((2 * Math.PI * hertz * (n + 1000)) / 16000)));
            rows.push([rate, hertz, output.length, Math.max(...error), Math.max(...middle.map(Math.abs)),
                output.every((y, n) => y === pieces[n]) && output.length === pieces.length]);
        }
        return rows;
    })()"""

    async def scenario():
        async with serving(model) as (_, url), browse(site(url), tmp_path / "profile") as page:
            rows = await page.evaluate(script)
            assert len(rows) == 14
            for rate, hertz, count, error, height, same in rows:
                assert count == 16000 and same, (rate, hertz)
                if hertz <= 6500 and hertz < 0.85 * rate / 2:
                    assert error < 2e-3, (rate, hertz, error)
                elif hertz >= 8100:
                    assert height < 1e-3, (rate, hertz, height)

    run(scenario())


def envelope(audio: np.ndarray) -> np.ndarray:
    """Level (RMS) of every 20 ms of 16 kHz audio."""
    return np.sqrt(np.square(audio[: len(audio) // 320 * 320].reshape(-1, 320)).mean(1))


def test_the_microphone_reaches_the_recogniser_at_the_right_speed(model, tmp_path, monkeypatch):
    """Bursts of tones at 48 kHz: the recogniser gets their envelope, wherever the recording began."""
    rng = np.random.default_rng(0)
    bursts = zip(rng.uniform(300, 1500, 24), rng.uniform(0.1, 0.5, 24), strict=True)
    pieces = [
        0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 48000)) / 48000) * (number % 2)
        for number, (hertz, seconds) in enumerate(bursts)
    ]
    source = np.concatenate(pieces).astype(np.float32)
    soundfile.write(tmp_path / "mic.wav", source, 48000)
    received: list[np.ndarray] = []
    accept = Stream.accept

    def record(stream, samples):
        received.append(np.asarray(samples))
        accept(stream, samples)

    monkeypatch.setattr(Stream, "accept", record)

    async def scenario():
        flags = (*FAKE, f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}%noloop")
        async with serving(model) as (_, url), browse(site(url), tmp_path / "profile", *flags) as page:
            await page.evaluate(SPEAK)
            await page.until(f"{STATE} === 'listening'")
            await asyncio.sleep(len(source) / 48000)
            await page.evaluate(SPEAK)
            await page.until(f"{STATE} === 'idle'")

    run(scenario())
    expected, recorded = envelope(soxr.resample(source, 48000, 16000)), envelope(np.concatenate(received))
    middle = expected[100:200]  # two seconds that are there, however late the recording began
    matches = [np.corrcoef(middle, recorded[start : start + 100])[0, 1] for start in range(len(recorded) - 99)]
    assert np.nanmax(matches) > 0.9
