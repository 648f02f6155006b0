"""How fast the page that recognises in the browser is, in headless Chromium.

    python test/export/page_speed.py [EXPORT WAV [--sessions 10]]

First F at true size in int8, with random weights: bytes that a server sends, and computation over length of 60 s of
noise in single-threaded WebAssembly. Then the page of EXPORT, a directory of ``distill export``, with WAV as its
microphone: time from the beginning of the first word to its caption, in each of the sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

import soundfile

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
from browser import browse  # noqa: E402
from test_web_page import RUNTIME, STATE, TEXT, give, served  # noqa: E402

from distill.bench.parts import noise  # noqa: E402
from distill.bench.teacher_and_students import export  # noqa: E402
from distill.export import web_page  # noqa: E402

SHOWN = "document.querySelector('#{}').textContent"


async def real_time_factor(folder: Path, file: Path, profile: Path) -> float:
    """What the page shows after a file, not read aloud."""
    with served(folder) as (url, _):
        async with browse(url, profile) as page:
            await page.evaluate("document.querySelector('#aloud').checked = false")
            for _ in range(2):  # the first pass allocates
                await page.evaluate("document.body.dataset.state = 'given'")
                await page.evaluate(give(file))
                await page.until(f"{STATE} === 'idle'", 300)
            return float(await page.evaluate(SHOWN.format("rtf")))


async def first_captions(folder: Path, microphone: Path, profile: Path, sessions: int) -> list[float]:
    """Seconds from the beginning of the first word to its caption, for each session."""
    flags = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    found = []
    with served(folder) as (url, _):
        async with browse(url, profile, *flags, f"--use-file-for-fake-audio-capture={microphone}") as page:
            for session in range(sessions + 1):
                await page.evaluate("document.querySelector('#speak').click()")
                await page.until(f"{STATE} === 'listening' && {TEXT}.length > 2", 60)
                first = float((await page.evaluate(SHOWN.format("first"))).split()[0])
                await page.evaluate("document.querySelector('#speak').click()")
                await page.until(f"{STATE} === 'idle'", 60)
                if session:  # the first waits for the model
                    found.append(first)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, nargs="?")
    parser.add_argument("wav", type=Path, nargs="?")
    parser.add_argument("--sessions", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        web_page.write_page(export("f", folder)["int8"], folder / "web", RUNTIME)
        sent = sum(
            (folder / "web" / file).stat().st_size
            for file in json.loads((folder / "web/files.json").read_text())
            if file != "./"
        )
        soundfile.write(folder / "web/noise.wav", noise(60), 16000, "PCM_16")
        factor = asyncio.run(real_time_factor(folder / "web", folder / "web/noise.wav", folder / "profile"))
        print(f"F, int8: {sent / 1e6:.1f} MB, real-time factor {factor:.3f}")
        if args.export is not None:
            captions = asyncio.run(
                first_captions(args.export / "web", args.wav, folder / "profile of the microphone", args.sessions)
            )
            print("first caption, s after its word began:", *captions)


if __name__ == "__main__":
    main()
