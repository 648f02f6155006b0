"""Whatever reads a file or a message from elsewhere, fed with damaged ones: it accepts or refuses, in one line.

    pip install atheris
    PYTHONPATH=. python test/faults/fuzz.py arpa --seconds 600

mutates the seeds of one target, guided by the lines that they reach (atheris), and stops at an exception that is no
refusal, five seconds of computation for one input (or six times that by the clock), or 1 GB of memory beyond what the
imports take. What it stopped at lands in test/faults/found/TARGET, where test_fuzz.py reads it again forever. Without
atheris (--seconds 0) it only reads what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

FOUND = Path(__file__).with_name("found")
TOKENS = ["<blank>", "<unk>", "a", "b", "c", "<sos/eos>"]
PARTS = ("wav.scp", "text", "utt2spk", "segments", "spk2utt")  # of a data directory, separated by SEPARATOR
SEPARATOR = b"\n%%\n"
NO_WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"  # as safetensors
MEMBERS = {"exp/model/model.safetensors": NO_WEIGHTS, "exp/model/config.yaml": b"network: student\n"}

Target = Callable[[bytes, Path], None]


def data_dir(data: bytes, folder: Path) -> None:
    from distill.data.read_dir import read_data_dir
    from distill.data.tables import Repairs

    for name, content in zip(PARTS, data.split(SEPARATOR), strict=False):
        (folder / name).write_bytes(content)
    for repairs in (None, Repairs()):
        refused(read_data_dir, folder, repairs, True, repairs is not None)


def tables(data: bytes, folder: Path) -> None:
    from distill.audio import read_wav_scp
    from distill.data.lexicon import read_lexicon
    from distill.scoring.text import read_text
    from distill.targets.store import read_two_columns

    (folder / "table").write_bytes(data)
    for reader in (read_wav_scp, read_text, read_two_columns, read_lexicon):
        refused(reader, folder / "table")


def lang_dir(data: bytes, folder: Path) -> None:
    from distill.data.lexicon import read_lang_dir

    (folder / "phones").mkdir(exist_ok=True)
    names = ("phones.txt", "phones/align_lexicon.txt", "oov.txt", "phones/optional_silence.txt")
    for name, content in zip(names, data.split(SEPARATOR), strict=False):
        (folder / name).write_bytes(content)
    refused(read_lang_dir, folder)


def arpa(data: bytes, folder: Path) -> None:
    from distill.decode.lm import NgramLM
    from distill.lfmmi.ngram import from_arpa

    (folder / "lm.arpa").write_bytes(data)
    refused(from_arpa, folder / "lm.arpa", TOKENS)
    refused(NgramLM, folder / "lm.arpa")


def openfst(data: bytes, folder: Path) -> None:
    from distill.lfmmi.openfst import read

    (folder / "P.fst.txt").write_bytes(data)
    refused(read, folder / "P.fst.txt", TOKENS)


def audio(data: bytes, folder: Path) -> None:
    from distill.audio import read_audio
    from distill.data.check_audio import check_audio

    (folder / "a.audio").write_bytes(data)
    refused(read_audio, folder / "a.audio")
    refused(check_audio, str(folder / "a.audio"), True)


def ark(data: bytes, folder: Path) -> None:
    from distill.audio import read_audio

    (folder / "a.ark").write_bytes(data)
    refused(read_audio, f"{folder}/a.ark:2")


def manifest(data: bytes, folder: Path) -> None:
    from distill.stamps import begin
    from distill.targets.checks import find_change, find_damage, find_loose_ends
    from distill.targets.store import StoredTargets, read_manifest

    for name in ("manifest.json", "0001.idx", "stamp"):
        (folder / name).write_bytes(data)
    refused(read_manifest, folder)
    refused(find_damage, folder / "0001", True)
    refused(find_change, folder / "0001", {"teacher": "x", "audio": "y"}, {"a": "b"})
    refused(find_loose_ends, folder, ["0001"], {"streams": ["logits"]})
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "0001.idx").write_bytes(data)
    refused(StoredTargets, folder)
    first, _, lines = data.partition(b"\n")
    body = zlib.compress(lines)  # whose checksum is right, as if a writer had made it
    of_body = b', "index": [%d, %d]}' % (len(body), zlib.crc32(body))
    (folder / "data" / "0001.idx").write_bytes(first[:-1] + of_body + b"\n" + body)
    refused(StoredTargets, folder)
    refused(begin, folder / "stamp", "options", [])


def hypotheses(data: bytes, folder: Path) -> None:
    from distill.scoring.text import read_hypotheses

    (folder / "hyp.1.jsonl").write_bytes(data)
    refused(read_hypotheses, folder)


def gigaspeech(data: bytes, folder: Path) -> None:
    from distill.data.gigaspeech import read_recordings

    (folder / "GigaSpeech.json").write_bytes(data)
    refused(lambda: list(read_recordings(folder / "GigaSpeech.json")))


def config(data: bytes, folder: Path) -> None:
    from distill.checkpoints.load import load_network

    (folder / "config.yaml").write_bytes(data)
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    refused(load_network, folder)


def built(data: bytes, folder: Path) -> None:
    """A training's configuration, with the network built that it describes, but for its memory."""
    import torch

    from distill.checkpoints.load import build_network, network_shape, read_config

    (folder / "config.yaml").write_bytes(data)

    def build() -> None:
        config = read_config(folder)
        with torch.device("meta"):
            build_network(config, len(config["token_list"]))
        network_shape(folder)

    refused(build)


def plain_yaml(data: bytes, folder: Path) -> None:
    """YAML that is read as a configuration is what PyYAML reads in it, and is written again as it was."""
    import yaml

    from distill.errors import UserError
    from distill.files import read_yaml, yaml_object, yaml_text

    (folder / "a.yaml").write_bytes(data)
    try:
        content = read_yaml(folder / "a.yaml", "cure")
    except UserError:
        return
    assert repr(yaml_object(yaml_text(content), "again", "cure")) == repr(content), "not what was written"
    assert len(yaml.safe_dump(content)) < 100 * len(data) + 1000


def metadata(data: bytes, folder: Path) -> None:
    """Metadata of an exported model, as a JSON object, and a stream of that model."""
    import numpy as np
    import onnx

    from distill.errors import UserError
    from distill.export.recognizer import OnnxModel, Recognizer

    try:
        values = json.loads(data)
        properties = {str(key): str(value) for key, value in values.items()}
        more = onnx.ModelProto()
        onnx.helper.set_model_props(more, properties)
        # Messages of protobuf that follow each other are one, with the entries of both.
        (folder / "student_480ms.onnx").write_bytes(exported() + more.SerializeToString())
    except (ValueError, AttributeError, RecursionError):
        return
    try:
        Recognizer(OnnxModel(folder / "student_480ms.onnx")).recognize(np.zeros(16000, np.float32))
    except UserError as error:
        assert str(error).strip(), "an empty message"


def hugging_face(data: bytes, folder: Path) -> None:
    """config.json, vocab.json, tokenizer_config.json and preprocessor_config.json beside a recogniser's weights."""
    from distill.checkpoints.adopt import adopt_teacher, model_tokens

    names = ("config.json", "vocab.json", "tokenizer_config.json", "preprocessor_config.json")
    for name, content in zip(names, data.split(SEPARATOR), strict=False):
        (folder / name).write_bytes(content)
    os.link(recogniser() / "model.safetensors", folder / "model.safetensors")
    refused(model_tokens, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        refused(adopt_teacher, folder, recogniser() / "tokens.txt", "char", folder / "teacher")


def weights(data: bytes, folder: Path) -> None:
    from distill.checkpoints.load import load_network

    (folder / "config.yaml").write_bytes(seeds()["config"][0])
    for name in ("model.pth", "model.safetensors"):
        (folder / name).write_bytes(data)
        refused(load_network, folder)


def packed(data: bytes, folder: Path) -> None:
    from distill.checkpoints.archive import _unpack
    from distill.checkpoints.load import load_network

    (folder / "model.zip").write_bytes(data)
    (folder / "unpacked").mkdir(exist_ok=True)
    refused(_unpack, folder / "model.zip", folder / "unpacked")
    if (folder / "unpacked/exp/model").is_dir():
        refused(load_network, folder / "unpacked/exp/model")
    outside = {path.name for path in folder.iterdir()} - {"model.zip", "unpacked"}
    assert not outside, f"wrote outside of its directory: {outside}"


def packed_meta(data: bytes, folder: Path) -> None:
    packed(zipped(data), folder)


def websocket(data: bytes, folder: Path) -> None:
    """The first message of a client."""
    from aiohttp import WSMsgType

    from distill.serve.server import Limits, Refusal, Server

    class Socket:
        async def receive(self) -> SimpleNamespace:
            text = data.decode("utf-8", "replace")
            return SimpleNamespace(type=WSMsgType.TEXT, data=text)

    server = object.__new__(Server)
    server.limits = Limits()
    server.info = {
        "chunk_ms": [160, 480],
        "defaults": {"chunk_ms": 480, "silence": 800, "empty": None, "length": 20000},
    }
    server._model = SimpleNamespace(recognizer=lambda chunk_ms: SimpleNamespace(create_stream=lambda rules: None))  # type: ignore[assignment]
    try:
        session = asyncio.run(server._configure(Socket()))  # type: ignore[arg-type]
        assert session.chunk_ms in (160, 480)
    except Refusal as refusal:
        assert str(refusal).isprintable() and len(str(refusal)) < 200


def frames(data: bytes, folder: Path) -> None:
    """Bytes of a client after the handshake, whole and in pieces: counted alike, and passed on unless refused."""
    from distill.serve.connections import FrameReader
    from distill.serve.refusal import Refusal

    def read(size: int) -> tuple[int | str, bool]:
        reader, count = FrameReader(), 0
        try:
            for start in range(0, len(data), size):
                count += reader.read(data[start : start + size], len(data))
        except Refusal as refusal:
            return str(refusal), False
        return count, reader.closing

    assert read(len(data) or 1) == read(1) == read(7)


def refused(read: Callable[..., object], *arguments: object) -> None:
    """Call it; a refusal is one line."""
    from distill.errors import UserError

    try:
        read(*arguments)
    except UserError as error:
        assert str(error).strip(), "an empty message"


def wav(samples: int = 400, format_: str = "WAV", subtype: str = "PCM_16") -> bytes:
    import numpy as np
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.sin(np.arange(samples) / 9), 16000, format=format_, subtype=subtype)
    return stream.getvalue()


def zipped(meta: bytes | None = None) -> bytes:
    """The smallest that has all of a packed model's parts, with any meta.yaml."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in {"meta.yaml": packed_about() if meta is None else meta, **MEMBERS}.items():
            archive.writestr(name, content)
    return stream.getvalue()


def packed_about() -> bytes:
    """The right meta.yaml for MEMBERS."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in MEMBERS.items()}
    return json.dumps({"checksums": checksums, "models": {"torch": "exp/model"}}).encode()


def temporary() -> Path:
    """A directory for this process, in memory where that can be."""
    return Path(tempfile.mkdtemp(prefix="fuzz_", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


@functools.cache
def exported() -> bytes:
    """A small exported model, without metadata."""
    import onnx
    import small_models

    model = onnx.load(small_models.exported(480) / "student_480ms.onnx")
    del model.metadata_props[:]
    return model.SerializeToString()


@functools.cache
def exported_metadata() -> bytes:
    """The metadata of :func:`exported`, as a JSON object."""
    import onnx
    import small_models

    model = onnx.load(small_models.exported(480) / "student_480ms.onnx")
    return json.dumps({entry.key: entry.value for entry in model.metadata_props}).encode()


@functools.cache
def recogniser() -> Path:
    """A small recogniser in Hugging Face's format, with a token list."""
    import small_models

    folder = temporary()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    small_models.write_hugging_face(folder)
    (folder / "tokens.txt").write_text("<blank>\n<unk>\n<space>\na\nt\n<sos/eos>\n")
    return folder


def hugging_face_files() -> bytes:
    """The files of :func:`recogniser` that are text."""
    names = ("config.json", "vocab.json", "tokenizer_config.json", "preprocessor_config.json")
    return SEPARATOR.join((recogniser() / name).read_bytes() for name in names)


def saved() -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"network.output.bias": torch.zeros(3)}, stream)
    return stream.getvalue()


@functools.cache
def seeds() -> dict[str, list[bytes]]:
    """Valid inputs of every target, small."""
    join = SEPARATOR.join
    arpa_text = (
        b"\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-1.0 <s> -0.3\n-0.7 a -0.3\n-0.8 b -0.2\n-0.8 c\n-0.6 </s>\n\n"
        b"\\2-grams:\n-0.2 <s> a\n-0.3 a b\n\n\\end\\\n"
    )
    fst = b"0 1 2 2 0.69\n0 2 3 3 1.38\n0 3 4 4 1.38\n1 0 6 6 0\n2 0 6 6 0\n3 0 6 6 0\n0 2.3\n"
    done = {"teacher": "x", "ark": [102, 17], "index": [7, 3105846544], "streams": ["logits", "x"], "widths": [3, 0]}
    done |= {"options": "", "version": 4, "merged": {"files": {"a.scp": [3, 17]}, "shards": "x"}}
    hypothesis = {"utterance": "a", "text": "b c", "audio_s": 1.2, "words": [{"word": "b", "start_s": 0.1}]}
    others = [wav(400, name) for name in ("AIFF", "FLAC", "AU", "RF64", "W64", "CAF", "NIST")]
    others += [wav(400, "OGG", "VORBIS"), wav(400, "OGG", "OPUS")]
    network = b"network: student\ntoken_list: ['<blank>', a, '<sos/eos>']\ntoken_type: char\n"
    conf = b"network_conf: {front_end: fbank, front_end_conf: {channels: 8}, width: 8, layers: 1, heads: 1, ffn: 8}\n"
    chunks = b"chunk_conf: {chunk_ms: [160, 480], hop: 0.5, left_ms: 2000}\nbest_model_criterion: [[valid, ter, min]]\n"
    teacher = (
        b"network: teacher\ntoken_list: ['<blank>', a]\nnetwork_conf:\n  normalize: true\n  config: {conv_dim: "
        b"[4, 4, 4, 4, 4, 4, 4], feat_extract_norm: layer, hidden_size: 8, num_hidden_layers: 1, "
        b"num_attention_heads: 1, intermediate_size: 8, num_conv_pos_embeddings: 4, num_conv_pos_embedding_groups: 2}\n"
    )
    return {
        "data_dir": [
            join([b"a-1 x.wav\na-2 y.wav\n", b"a-1 hello world\na-2 b\n", b"a-1 a\na-2 a\n"]),
            join([b"r x.wav\n", b"a-1 b\na-2 c\n", b"a-1 a\na-2 a\n", b"a-1 r 0 1.5\na-2 r 1.5 -1\n", b"a a-1 a-2\n"]),
        ],
        "tables": [b"a-1 x.wav\na-2 cat y |\n", b"one w ah n\n<unk> sp\n"],
        "lang_dir": [join([b"<eps> 0\nSIL 1\nAH_S 2\n", b"<eps> <eps> SIL\na a AH_S\n", b"a\n", b"SIL\n"])],
        "arpa": [arpa_text],
        "openfst": [fst],
        "audio": [wav(), wav(400, "WAV", "FLOAT"), *others],
        "ark": [
            b"a \0BFM \x04\x02\0\0\0\x04\x02\0\0\0" + bytes(16),
            b"a \0BCM2 " + bytes(4) + b"\0\0\x80?\x02\0\0\0\x02\0\0\0" + bytes(8),
            b"a " + wav(),
        ],
        "manifest": [json.dumps(done).encode() + b"\na 0123456789abcdef 3 99\n"],
        "hypotheses": [json.dumps(hypothesis).encode() + b"\n"],
        "gigaspeech": [b'{"dataset": "G", "audios": [{"aid": "P1", "segments": [{"sid": "P1_1"}]}, {"aid": "P2"}]}'],
        "config": [network + conf],
        "built": [network + conf + chunks, teacher],
        "plain_yaml": [
            network + conf + chunks,
            b"a: [1, 1.5, .nan, yes, null, ~, 0x1f, 1_0, 1:20, '<<', \"x\\n\", |\n x\n ]\n",
        ],
        "metadata": [exported_metadata()],
        "hugging_face": [hugging_face_files()],
        "weights": [saved(), NO_WEIGHTS],
        "packed": [zipped()],
        "packed_meta": [packed_about()],
        "websocket": [b'{"event": "config", "chunk_ms": 160, "silence": null, "length": 9000}'],
        "frames": [
            b"\x82\x84maskabcd\x89\x80mask"
            + b"\x81\xfe\x00\x80mask"
            + bytes(128)
            + b"\x88\xff"
            + bytes(7)
            + b"\x01maska"
        ],
    }


TARGETS: dict[str, Target] = {
    function.__name__: function
    for function in (
        data_dir, tables, lang_dir, arpa, openfst, audio, ark, manifest, hypotheses, gigaspeech, config, built,
        plain_yaml, metadata, hugging_face, weights, packed, packed_meta, websocket, frames,
    )
}  # fmt: skip


def read_one(name: str, data: bytes) -> None:
    """One input to one target, in an empty directory."""
    folder = temporary()
    try:
        TARGETS[name](data, folder)
    finally:
        shutil.rmtree(folder)


def read_in_time(name: str, data: bytes, most_s: float) -> None:
    """:func:`read_one`, which may compute for so long; on a busy machine it takes longer by the clock.

    Raises:
        TimeoutError: it computed for longer.
    """
    started = time.process_time()
    try:
        read_one(name, data)
        if (seconds := time.process_time() - started) > most_s:
            raise TimeoutError(f"computes for {seconds:.1f} s")
    except BaseException:  # libFuzzer's copy is lost when the interpreter ends slowly
        (FOUND / name / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
        raise


def words(data: Iterable[bytes]) -> str:
    """A libFuzzer dictionary: the words of these inputs, and values that are out of every range."""
    found = {word for content in data for word in re.findall(rb"[A-Za-z_][\w.]{2,30}", content)}
    found |= {
        b"-1",
        b"0",
        b"99999999999999999999",
        b"1e999",
        b".nan",
        b"null",
        b"true",
        b'""',
        b"[]",
        b"{}",
        b"\\u0000",
    }
    return "".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in word)) for word in sorted(found))


def inputs(target: str) -> list[bytes]:
    """Seeds of a target, and what it stopped at before."""
    return seeds()[target] + [path.read_bytes() for path in sorted((FOUND / target).glob("*"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600, help="(default: 600)")
    parser.add_argument("--timeout", type=int, default=5, help="most seconds of computation for one input (default: 5)")
    args = parser.parse_args()
    logging.disable()
    sys.path.append(str(Path(__file__).parents[1] / "helpers"))
    found = FOUND / args.target
    if not args.seconds:
        for data in inputs(args.target):
            read_one(args.target, data)
        return
    import atheris
    from verdict import PATIENCE, resident_mb

    with atheris.instrument_imports(include=["distill", "yaml"]):
        first = inputs(args.target)
        read_one(args.target, first[0])  # imports what it reads with
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        corpus, dictionary = Path(scratch, "corpus"), Path(scratch, "words")
        corpus.mkdir()
        dictionary.write_text(words(first))
        for number, data in enumerate(first):
            (corpus / str(number)).write_bytes(data)
        most = resident_mb() + 1024
        options = [
            f"-max_total_time={args.seconds}",
            f"-timeout={PATIENCE * args.timeout}",
            f"-rss_limit_mb={most:.0f}",
            f"-max_len={max(4096, 2 * max(map(len, first)))}",
        ]
        options += [f"-dict={dictionary}", f"-artifact_prefix={found}/", str(corpus)]
        atheris.Setup([sys.argv[0], *options], lambda data: read_in_time(args.target, data, args.timeout))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
