"""A folder that recognises speech in a browser without a server: a page, the model, and onnxruntime-web.

The page is the server's (:mod:`distill.serve`), with a worker in place of its websocket.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.audio import END_SILENCE
from distill.decode.stream_results import SHERPA_RULES
from distill.export.recognizer import OnnxModel
from distill.files import naming

RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
SERVER_PAGE = Path(__file__).resolve().parent.parent / "serve/page"
PAGE = Path(__file__).resolve().parent / "web"
LARGE = 10_000_000  # bytes
NUMBERS = "chunk", "lookahead", "samples", "hop", "window", "lead", "tail", "priming", "leading", "frame_ms"


def runtime_files() -> list[Path] | None:
    """onnxruntime-web's files, fetched by npm once; None if there is no npm, or it fails."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "distillw2v2", RUNTIME.replace("@", "-"))
    files = [cache / name for name in RUNTIME_FILES]
    if all(file.is_file() for file in files):
        return files
    npm = shutil.which("npm")
    if npm is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", RUNTIME]
        try:
            subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
        except (OSError, subprocess.SubprocessError):
            return None
        (archive,) = Path(folder).glob("*.tgz")
        cache.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as members:
            for file in files:
                source = members.extractfile(f"package/dist/{file.name}")
                assert source is not None
                partial = file.with_name(f"{file.name}.{os.getpid()}")
                partial.write_bytes(source.read())
                partial.replace(file)
    return files


def pack(source: Path, target: Path) -> None:
    """Write a file compressed, and always the same bytes of the same file."""
    with naming(target):
        target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def write_page_of(export: Path, report: dict[str, Any]) -> bool:
    """Write ``web`` into a directory of exported models, for a chunk length by its report.

    Of a large model it has the int8 weights, if they are offered.

    Returns:
        False if onnxruntime-web is not there; nothing is written then.
    """
    runtime = runtime_files()
    if runtime is not None:
        small = report["float32"]["bytes"] <= LARGE or not report["int8_offered"]
        with naming(export / "web"):
            write_page(export / report["float32" if small else "int8"]["file"], export / "web", runtime)
    return runtime is not None


def write_page(model: Path, folder: Path, runtime: list[Path]) -> None:
    """Write the folder of a student_*.onnx.

    Args:
        model: the exported model.
        folder: to be made.
        runtime: of :func:`runtime_files`.
    """
    folder.mkdir()
    loaded = OnnxModel(model)
    state = {
        tensor.name: tensor.shape
        for tensor in loaded.session.get_inputs()
        if tensor.name not in ("samples", "frames", "past")
    }
    about = {name: getattr(loaded, name) for name in NUMBERS}
    about |= {"tokens": loaded.token_list, "state": state, "end_silence": END_SILENCE}
    (folder / "model.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    chunk_ms = loaded.chunk_ms
    info = {"model": model.name, "token_type": loaded.token_type, "chunk_ms": [chunk_ms]}
    defaults = {"chunk_ms": chunk_ms, **asdict(SHERPA_RULES)}
    (folder / "info").write_text(json.dumps({**info, "defaults": defaults}), encoding="utf-8")
    pack(model, folder / "model.onnx.gz")
    for file in runtime:
        if file.suffix == ".wasm":
            pack(file, folder / f"{file.name}.gz")
        else:
            shutil.copyfile(file, folder / file.name)
    for file in (
        *PAGE.iterdir(),
        *(SERVER_PAGE / name for name in ("app.js", "capture.js", "resample.js", "words.js")),
    ):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(SERVER_PAGE / "style.css", folder / "style.css")
    page = (SERVER_PAGE / "index.html").read_text(encoding="utf-8")
    script = '<script type="module" src="app.js"></script>'
    assert script in page
    local = (
        '<link rel="manifest" href="manifest.webmanifest" />\n    <script type="module" src="local.js"></script>\n    '
    )
    page = page.replace(script, local + script).replace("Computation on the server", "Computation in this browser")
    page = page.replace("as fast as the server accepts it", "as fast as it is recognised")
    (folder / "index.html").write_text(page, encoding="utf-8")
    manifest = {"name": "Live captions", "start_url": ".", "display": "standalone", "icons": []}
    (folder / "manifest.webmanifest").write_text(json.dumps(manifest), encoding="utf-8")
    names = sorted(file.name for file in folder.iterdir() if file.name != "offline.js")
    (folder / "files.json").write_text(json.dumps(["./", *names, "files.json"]), encoding="utf-8")
