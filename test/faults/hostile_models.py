"""Models from strangers: whatever is in a directory or packed file, a command refuses it in one line or works.

Each case damages one part of a small model and gives it to every command that opens such a model. It must succeed or
end with status 2 and one line, within five seconds and a gigabyte, and write nothing that a terminal would obey. What
is not harmless must be refused by one of them.

    PYTHONPATH=. python test/faults/hostile.py models
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import small_models
import soundfile
import tiny_networks
import tiny_teachers
import torch
import yaml
from verdict import faults, run

Edit = Callable[[Path], None]
NAN, INF = float("nan"), float("inf")
LANGUAGE = "deu"
BELL = "\x1b]0;owned\x07\x1b[2J"


class Case(NamedTuple):
    """A model that is damaged.

    Attributes:
        name: what is wrong with it.
        base: which model: stream, full, teacher, export, hugging_face, packed, or a family of :data:`OTHER_FAMILIES`.
        edit: damages the model in a directory, or the packed file.
        accepted: it may be harmless, and a command may succeed.
    """

    name: str
    base: str
    edit: Edit
    accepted: bool = False


# ------------------------------------------------------------------------------------------------ how to damage a model
def write(name: str, content: bytes | str) -> Edit:
    """Replace a file."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data) and None


def configured(path: str, value: Any) -> Edit:
    """Set a value of config.yaml, by the keys that lead to it."""

    def edit(folder: Path) -> None:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        set_value(config, path, value)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    return edit


def in_json(name: str, path: str, value: Any) -> Edit:
    """Set a value of a JSON file."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        set_value(content, path, value)
        (folder / name).write_text(json.dumps(content))

    return edit


def set_value(content: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        content = content.setdefault(key, {})
    content[last] = value


def weights(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Save what ``change`` makes of the weights in model.pth, by torch.save."""

    def edit(folder: Path) -> None:
        state = torch.load(folder / "model.pth", weights_only=True)
        torch.save(change(state), folder / "model.pth")

    return edit


def first(change: Callable[[torch.Tensor], Any]) -> Edit:
    """Change the prediction layer's weights."""
    return weights(lambda state: state | {"network.output.weight": change(state["network.output.weight"])})


def metadata(key: str, value: str | None) -> Edit:
    """Set a key of an exported model's metadata, None: take it away."""

    def edit(folder: Path) -> None:
        path = folder / "student_480ms.onnx"
        model = onnx.load(path)
        values = {entry.key: entry.value for entry in model.metadata_props}
        values = {**values, key: value} if value is not None else {k: v for k, v in values.items() if k != key}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, values)
        onnx.save(model, path)

    return edit


def graph(change: Callable[[onnx.ModelProto], None]) -> Edit:
    def edit(folder: Path) -> None:
        model = onnx.load(folder / "student_480ms.onnx")
        change(model)
        onnx.save(model, folder / "student_480ms.onnx")

    return edit


def not_a_number(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0] = NAN
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def giant_state(model: onnx.ModelProto) -> None:
    for tensor in (*model.graph.input, *model.graph.output):
        if tensor.name.endswith("keys_0"):
            tensor.type.tensor_type.shape.dim[1].dim_value = 1 << 40


def renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "audio"
    for node in model.graph.node:
        node.input[:] = ["audio" if name == "samples" else name for name in node.input]


def giant_file(name: str, size: int = 1 << 40) -> Edit:
    """A file with a hole of so many bytes."""

    def edit(folder: Path) -> None:
        with open(folder / name, "wb") as stream:
            stream.truncate(size)

    return edit


def replaced_by(name: str, make: Callable[[Path], object]) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return edit


def deflated(folder: Path) -> None:
    """model.pth as a zip whose members unpack to 2 GB."""
    path = folder / "model.pth"
    torch.save({"network.output.weight": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            with archive.open(name, "w", force_zip64=True) as stream:
                for _ in range(512 if name.endswith("data/0") else 1):
                    stream.write(content)


class Command:
    """Would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo UNPICKLED; touch unpickled",)


def pickled(name: str) -> Edit:
    return lambda folder: (folder / name).write_bytes(pickle.dumps({"network.output.weight": Command()})) and None


def saved(name: str, content: Any, **how: Any) -> Edit:
    return lambda folder: torch.save(content, folder / name, **how)


def with_bin(content: Any, **how: Any) -> Edit:
    """Weights of a Hugging Face directory as pytorch_model.bin."""

    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (folder / "pytorch_model.bin").write_bytes(content)
        else:
            torch.save(content, folder / "pytorch_model.bin", **how)

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Edit:
    """Change the tensors of model.safetensors."""
    from safetensors.torch import load_file, save_file

    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def repacked(change: Callable[[dict[str, bytes]], None], **how: Any) -> Edit:
    """Change the members of a packed file, and vouch for them in its meta.yaml unless that was changed as well."""

    def edit(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        before = members["meta.yaml"]
        change(members)
        if members.get("meta.yaml") == before:
            meta = yaml.safe_load(before)
            others = {name: content for name, content in members.items() if name != "meta.yaml"}
            meta["checksums"] = {name: hashlib.sha256(content).hexdigest() for name, content in others.items()}
            members["meta.yaml"] = yaml.safe_dump(meta).encode()
        with zipfile.ZipFile(path, "w", **how) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return edit


def member(name: str, content: bytes) -> Edit:
    return repacked(lambda members: members.update({name: content}))


def packed_config(path: str, value: Any) -> Edit:
    def change(members: dict[str, bytes]) -> None:
        config = yaml.safe_load(members["exp/stream/config.yaml"])
        set_value(config, path, value)
        members["exp/stream/config.yaml"] = yaml.safe_dump(config, sort_keys=False).encode()

    return repacked(change)


# ------------------------------------------------------------------------------------------------------------ the cases
def laughs(names: str = "abcdefghij", wide: int = 9) -> str:
    """A list of lists of lists, each of which is an alias of the one before: 9^10 entries in 600 bytes."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{now}: &{now} [{', '.join([f'*{before}'] * wide)}]" for before, now in zip(names, names[1:], strict=False)
    ]
    return "\n".join(lines)


YAML = {
    "aliases": "network: student\n" + laughs() + "\ntoken_list: *j\n",
    "an alias of itself": "network: student\ntoken_list: &a [*a]\n",
    "merge keys": "base: &b {network: student}\n<<: *b\ntoken_list: ['<blank>', a]\n",
    "a merge key without an alias": "<<: {network: student}\ntoken_list: ['<blank>', a]\n",
    "an anchor": "network: &n student\ntoken_list: ['<blank>', a]\n",
    "depth": "network: student\nnetwork_conf: " + "[" * 900 + "]" * 900 + "\n",
    "more depth": "network: student\nnetwork_conf: " + "{a: " * 50000 + "}" * 50000 + "\n",
    "a python object": "network: !!python/object/apply:os.system ['touch unpickled']\ntoken_list: []\n",
    "a tag": "network: !!set {a, b}\ntoken_list: [a]\n",
    "a date": "network: student\ntoken_list: [2001-01-01]\n",
    "binary": "network: student\ntoken_list: [!!binary aGVsbG8=]\n",
    "numbers of many digits": "network: student\nnetwork_conf: {width: " + "9" * 5000 + "}\ntoken_list: [a, b]\n",
    "hexadecimal numbers": "network: student\nnetwork_conf: {width: 0x" + "f" * 50000 + "}\ntoken_list: [a, b]\n",
    "numbers of base 60": "network: student\nnetwork_conf: {width: 1" + ":59" * 50000 + "}\ntoken_list: [a, b]\n",
    "many nodes": "network: student\ntoken_list: [" + "a, " * 3000000 + "b]\n",
    "a long scalar": "network: student\ntoken_list: ['<blank>', " + "a" * 20000000 + "]\n",
    "many keys": "network: student\nnetwork_conf: {" + ", ".join(f"k{i}: 1" for i in range(400000)) + "}\n",
    "a key that is a list": "? [a]\n: b\nnetwork: student\n",
    "two documents": "network: student\n---\ntoken_list: [a]\n",
    "half of a mapping": "network: {student\n",
    "nothing": "",
    "a list": "[network, token_list]\n",
    "a zero byte": "network: stu\0dent\ntoken_list: [a]\n",
    "half of a character": 'network: student\ntoken_list: ["\\ud800"]\n',
    "another encoding": "network: student\ntoken_list: ['ä']\n".encode("utf-16"),
    "no text": bytes(range(256)),
}
# Keys of config.yaml of a streaming student, and values that they must not have
STREAM: dict[str, list[Any]] = {
    "network": [5, None, "conformer", ["student"], {"a": 1}],
    "network_conf": [None, 5, "x", [1], {}],
    "network_conf.width": ["x", 0, -8, 10**9, 10**30, 1e300, NAN, True, None, [8]],
    "network_conf.layers": ["x", 0, -1, 10**8, 10**30, 2.5, NAN, True],
    "network_conf.heads": [0, -2, 10**9, "2"],
    "network_conf.ffn": [0, -1, 4 * 10**9, "x"],
    "network_conf.kernel": [0, -1, 10**9, "x"],
    "network_conf.dropout": [NAN, INF, -1, 7, "x"],
    "network_conf.front_end": ["mfcc", 5, ["cnn"], None],
    "network_conf.front_end_conf": [5, [1], {"channels": [8] * 300000}, {"channels": 0}, {"channels": "x"}, {"x": 1}],
    "network_conf.front_end_conf.kernels": [[10**9] * 7, [0] * 7, [10, 3], "x"],
    "network_conf.front_end_conf.strides": [[0] * 7, [10**9] * 7, [5, 2], NAN],
    "network_conf.logits_per_frame": [-1, 3, 10**9, "x", 1.5],
    "network_conf.unknown": [1],
    "token_list": [None, 5, "abc", [1, 2], [], ["<blank>"] * 300, ["<blank>", BELL, *"bcdefghij"], [["a"]]],
    "token_type": [5, "letters", ["char"], {"a": 1}],
    "chunk_conf": [5, "x", [1], {"x": 1}],
    "chunk_conf.chunk_ms": [NAN, INF, 0, -1, "x", [1, 2, 3], [160, "x"], [], None, [480, 160], 1e300],
    "chunk_conf.left_ms": [NAN, INF, -1, 1e300, 10**30, "x", [1]],
    "chunk_conf.hop": [NAN, 0, -1, 2, "x", [1]],
    "chunk_conf.full_prob": [NAN, 2, "x"],
    "best_model_criterion": [5, "x", [5], [[1, 2, 3]], [["../..", "x", "min"]], {"a": 1}],
    "optim_conf": [5, [1], "x"],
    "distill_conf": [5, "x", [1]],
    "version": [{"a": 1}, [1]],
    "bpemodel": [5, ["x"]],
}
TEACHER: dict[str, list[Any]] = {
    "network_conf": [None, 5, [1], {}],
    "network_conf.config": [None, 5, [1], "/nowhere", "hf://../../x", {}],
    "network_conf.normalize": ["x", 5, None],
    "network_conf.config.model_type": [5, "gpt2", ["wav2vec2"], None],
    "network_conf.config.conv_dim": [[8] * 300000, [10**9] * 7, [0] * 7, "x", 5, [], [8, 8]],
    "network_conf.config.conv_kernel": [[0] * 7, [10**9] * 7, "x", [10], [-3] * 7],
    "network_conf.config.conv_stride": [[0] * 7, [10**9] * 7, "x", [5], [5, 2, 2, 2, 2, 2, -2]],
    "network_conf.config.num_hidden_layers": [10**8, 0, -1, "x", 2.5, None],
    "network_conf.config.hidden_size": [10**9, 0, -1, "x", 31, NAN],
    "network_conf.config.num_attention_heads": [0, -1, 7, 10**9, "x"],
    "network_conf.config.intermediate_size": [10**10, 0, -1, "x"],
    "network_conf.config.num_conv_pos_embeddings": [10**9, 0, -1, "x"],
    "network_conf.config.num_conv_pos_embedding_groups": [0, 7, -1, 10**9, "x"],
    "network_conf.config.hidden_act": ["x", 5, ["gelu"], "__class__"],
    "network_conf.config.feat_extract_activation": ["x", 5],
    "network_conf.config.feat_extract_norm": ["x", 5, None],
    "network_conf.config.layer_norm_eps": [NAN, INF, -1, "x"],
    "network_conf.config.add_adapter": [True, "x"],
    "network_conf.config.num_adapter_layers": [10**8, -1, "x"],
    "network_conf.config.adapter_attn_dim": [10**9, -1, "x"],
    "network_conf.config.mask_time_prob": [NAN, INF, -1, 7, "x"],
    "network_conf.config.mask_time_length": [0, -1, 10**30, "x"],
    "network_conf.config.final_dropout": [NAN, 7, "x"],
}
METADATA: dict[str, list[str | None]] = {
    "chunk": [None, "-1", "0", "x", "nan", "1000000000000", "12", "9" * 5000],
    "lookahead": [None, "-1", "x", "1000000000000"],
    "samples": [None, "-1", "0", "x", "1000000000000", "12"],
    "hop": [None, "-1", "0", "x", "1000000000000"],
    "window": [None, "-1", "0", "x", "1000000000000"],
    "tail": [None, "-1", "x", "1000000000000"],
    "priming": [None, "-1", "x", "1000000000000"],
    "leading": [None, "-1", "x", "1000000000000"],
    "logits_per_frame": ["-1", "0", "x", "1000000000000"],
    "frame_ms": [None, "-1", "0", "x", "1000000000000"],
    "chunk_ms": [None, "-1", "0", "x", "160"],
    "sample_rate": [None, "8000", "x"],
    "token_type": [None, "letters", ""],
    "tokens": [None, "", "x", "5", "[1, 2]", "[]", '["a"]', "[" * 100000, json.dumps([BELL, *"abcdefghij"]),
               json.dumps(["\ud800", *"abcdefghij"])],
}  # fmt: skip
PACKED_METADATA = {"chunk": "-1", "tail": "1000000000000", "samples": None, "tokens": "[]"}
HUGGING_FACE: dict[str, list[Any]] = {
    "model_type": [5, "gpt2", None, ["wav2vec2"], "hubert"],
    "conv_dim": [[8] * 300000, [10**9] * 7, "x", 5],
    "conv_stride": [[0] * 7, [10**9] * 7, "x"],
    "num_hidden_layers": [10**8, 0, -1, "x", 2.5, None],
    "hidden_size": [10**9, 0, -1, "x", 31],
    "num_attention_heads": [0, 7, "x"],
    "intermediate_size": [10**10, "x"],
    "num_conv_pos_embeddings": [10**9, 0, "x"],
    "hidden_act": ["x", 5],
    "add_adapter": [True],
    "adapter_attn_dim": [10**9, "x"],
    "pad_token_id": [None, "x", -1, 10**9, [0], 1.5],
    "vocab_size": [10**9, 0, -1, "x", 3],
}
IGNORED: dict[str, list[Any]] = {  # what is not the network's; ours are not to stumble over it
    "quantization_config": [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        5,
    ],
    "auto_map": [{"AutoModelForCTC": "evil--repo.Model"}, 5],
    "torch_dtype": ["x", 5],
    "dtype": ["x", 5, "float16"],
    "attn_implementation": ["x"],
    "_attn_implementation": ["x", 5],
    "architectures": [5, ["X"]],
    "id2label": [5, {"x": "y"}],
    "transformers_version": [5, "99.0"],
    "gradient_checkpointing": ["x"],
    "layerdrop": ["x", NAN],
    "num_adapter_layers": [10**8, -1, "x"],
}
# Keys that other families of teachers have; a family's own model is damaged by each
OTHER_FAMILIES: dict[str, dict[str, list[Any]]] = {
    "data2vec-audio": {
        "num_conv_pos_embeddings": [10**9, 500, 0, -1, "x", None],
        "conv_pos_kernel_size": [10**9, 0, -1, "x", 2.5],
        "feat_extract_norm": ["group", 5],
        "model_type": ["wav2vec2", "parakeet_ctc"],
    },
    "wav2vec2-conformer": {
        "conv_depthwise_kernel_size": [10**9, 0, 8, "x", 31],
        "position_embeddings_type": ["x", 5, "rotary", None],
        "max_source_positions": [10**9, 0, "x"],
    },
    "sew": {"squeeze_factor": [0, 3, 4, 10**9, "x", True], "conv_stride": [[5] * 13, "x"], "conv_dim": [[10**9] * 13]},
    "mms": {"adapter_attn_dim": [10**9, 0, None, "x", 5], "vocab_size": [10**9, 0, "x"]},
    "wav2vec2-bert": {
        "feature_projection_input_dim": [80, 10**9, "x"],
        "left_max_position_embeddings": [10**9, -1, "x", 63],
        "position_embeddings_type": ["x", "relative"],
        "add_adapter": [True, "x"],
        "use_intermediate_ffn_before_adapter": [True],
        "num_hidden_layers": [10**8, 0, "x"],
    },
    "parakeet": {
        "encoder_config": [None, 5, [1], {}, "x"],
        "encoder_config.subsampling_factor": [0, 3, 7, 10**9, "x", 4],
        "encoder_config.num_mel_bins": [0, 81, 10**9, "x"],
        "encoder_config.subsampling_conv_channels": [10**9, 0, "x"],
        "encoder_config.conv_kernel_size": [8, 10**9, 0, "x"],
        "encoder_config.num_hidden_layers": [10**8, 0, "x"],
        "encoder_config.hidden_act": ["x", 5],
        "pad_token_id": [None, 10**9, "x"],
        "vocab_size": [10**9, 0, "x", 3],
    },
}
PIECES = {
    "a list": "[1]",
    "no model": '{"model": null}',
    "pieces without scores": '{"model": {"vocab": ["a", "b"]}}',
    "pieces that are numbers": '{"model": {"vocab": [[1, 2.0], [3, 4.0]]}}',
    "outputs that are text": '{"model": {"vocab": {"a": "b"}}}',
    "added tokens that are none": '{"model": {"vocab": {"a": 1}}, "added_tokens": [5]}',
    "depth": '{"model": ' * 100000,
}
VOCAB = {
    "values that are lists": '{"<pad>": [0], "E": 1}',
    "values that are text": '{"<pad>": 0, "E": "one"}',
    "no whole numbers": '{"<pad>": 0, "E": 1.5}',
    "null": '{"<pad>": null}',
    "too large": '{"<pad>": 0, "E": 99999999999999999999}',
    "negative": '{"<pad>": 0, "E": -5}',
    "beyond the outputs": '{"<pad>": 0, "E": 5000}',
    "the same output twice": '{"<pad>": 0, "E": 5, "T": 5, "A": 5, "|": 4}',
    "a list": "[1, 2]",
    "infinity": '{"<pad>": 0, "E": Infinity}',
    "depth": '{"a": ' * 100000,
    "control characters": json.dumps({"<pad>": 0, BELL: 5}),
    "a line end": json.dumps({"<pad>": 0, "a\nb": 5}),
    "half of a character": '{"<pad>": 0, "\\ud800": 5}',
    "bytes": bytes(range(256)),
}
TOKENIZER = {
    "unk_token is a number": '{"unk_token": 5}',
    "eos_token is a list": '{"eos_token": ["</s>"]}',
    "a token without content": '{"word_delimiter_token": {"id": 3}}',
    "a list": "[]",
}


def cases() -> Iterator[Case]:
    """All of them."""
    for name, text in YAML.items():
        yield Case(f"config.yaml: {name}", "stream", write("config.yaml", text))
    for base, table in (("stream", STREAM), ("teacher", TEACHER)):
        for path, values in table.items():
            for value in values:
                # Recognition needs neither a streaming student's chunks nor how it was trained.
                yield Case(
                    f"{base}: {path}: {short(value)}", base, configured(path, value), accepted=harmless(path, value)
                )
    yield from weight_cases()
    for key, texts in METADATA.items():
        for text in texts:
            yield Case(f"metadata: {key}: {short(text)}", "export", metadata(key, text))
    student = "student_480ms.onnx"
    for name, edit in {
        "no model": write(student, b"nonsense"),
        "an empty model": write(student, b""),
        "cut off": lambda folder: os.truncate(folder / student, 20000),
        "a giant file": giant_file(student),
        "weights that are NaN": graph(not_a_number),
        "a giant state": graph(giant_state),
        "an input of another name": graph(renamed_input),
        "sherpa's model in its place": lambda folder: (
            shutil.copy(folder / "sherpa_480ms.onnx", folder / student) and None
        ),
        "a directory": replaced_by(student, Path.mkdir),
        "a pipe": replaced_by(student, os.mkfifo),
    }.items():
        yield Case(f"export: {name}", "export", edit)
    yield Case("export: the model of another chunk length", "export", other_chunk)
    for path, values in HUGGING_FACE.items():
        for value in values:
            yield Case(f"hf: {path}: {short(value)}", "hugging_face", in_json("config.json", path, value))
    for path, values in IGNORED.items():
        for value in values:
            yield Case(f"hf: {path}: {short(value)}", "hugging_face", in_json("config.json", path, value), True)
    for family, table in OTHER_FAMILIES.items():
        for path, values in table.items():
            for value in values:
                yield Case(f"{family}: {path}: {short(value)}", family, in_json("config.json", path, value))
    for name, text in PIECES.items():
        yield Case(f"parakeet: tokenizer.json: {name}", "parakeet", write("tokenizer.json", text))
    for name, edit in {
        "features of another kind": in_json("preprocessor_config.json", "hop_length", 80),
        "features of no kind": in_json("preprocessor_config.json", "n_fft", [1]),
    }.items():
        yield Case(f"parakeet: {name}", "parakeet", edit)
    adapter = f"adapter.{LANGUAGE}.safetensors"
    for name, edit in {
        "no adapter": lambda folder: (folder / adapter).unlink(),
        "an adapter that is none": write(adapter, b"x" * 100),
        "a giant header of an adapter": write(adapter, (1 << 62).to_bytes(8, "little") + b"{}"),
        "an adapter that is a directory": replaced_by(adapter, Path.mkdir),
        "a language that is a path": write("tokenizer_config.json", '{"target_lang": "../x"}'),
        "a language that is a list": write("tokenizer_config.json", '{"target_lang": ["x"]}'),
        "a vocabulary that is a number": in_json("vocab.json", LANGUAGE, 5),
    }.items():
        yield Case(f"mms: {name}", "mms", edit)
    for name, text in VOCAB.items():
        yield Case(
            f"hf: vocab.json: {name}",
            "hugging_face",
            write("vocab.json", text),
            name in ("the same output twice", "beyond the outputs", "too large"),
        )
    for name, text in TOKENIZER.items():
        yield Case(f"hf: tokenizer_config.json: {name}", "hugging_face", write("tokenizer_config.json", text))
    for name, edit in {
        "config.json: depth": write("config.json", '{"a": ' * 100000),
        "config.json: a giant": giant_file("config.json"),
        "vocab.json: a giant": giant_file("vocab.json"),
        "a pickle": with_bin(pickle.dumps({"lm_head.weight": Command()})),
        "a saved pickle": with_bin({"lm_head.weight": Command()}),
        "a saved list": with_bin([1, 2]),
        "the format before zip files": with_bin({"x": torch.zeros(3)}, _use_new_zipfile_serialization=False),
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "empty weights": write("model.safetensors", b""),
        "a giant header of weights": write("model.safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
        "weights with NaN": tensors(lambda state: state.update({"lm_head.weight": state["lm_head.weight"].fill_(NAN)})),
        "weights of another shape": tensors(lambda state: state.update({"lm_head.weight": torch.zeros(3, 3)})),
        "weights of another type": tensors(lambda state: state.update({"lm_head.weight": torch.zeros(9, 32).long()})),
        "an index without files": write("model.safetensors.index.json", '{"weight_map": {"a": "b"}}'),
        "config.json is a directory": replaced_by("config.json", Path.mkdir),
        "vocab.json is a pipe": replaced_by("vocab.json", os.mkfifo),
        "vocab.json is a link to itself": replaced_by("vocab.json", lambda path: path.symlink_to(path.name)),
    }.items():
        accepted = name in ("an index without files", "weights of another type")
        yield Case(f"hf: {name}", "hugging_face", edit, accepted)
    yield Case(
        "hf: an adapter's configuration",
        "hugging_face",
        write("adapter_config.json", '{"base_model_name_or_path": "someone/else", "peft_type": "LORA"}'),
    )
    yield Case("hf: preprocessor: a list", "hugging_face", write("preprocessor_config.json", "[1]"))
    yield Case("hf: preprocessor: no flag", "hugging_face", write("preprocessor_config.json", '{"do_normalize": [1]}'))
    yield from packed_cases()


def harmless(path: str, value: Any) -> bool:
    """Whether a value does no harm in recognition."""
    if path == "network_conf.config.hidden_size" and value != value:
        return False
    if path == "network_conf.config.num_adapter_layers":  # without an adapter nothing is built of it
        return True
    return (path, repr(value)) in {
        ("network_conf.config.model_type", "None"),
        ("chunk_conf.chunk_ms", "None"),
        ("version", "[1]"),
    }


def weight_cases() -> Iterator[Case]:
    zero_stride = torch.zeros(1).expand(11, 1 << 40)
    for name, edit in {
        "NaN": first(lambda w: w.clone().fill_(NAN)),
        "infinite": first(lambda w: w.clone().fill_(INF)),
        "one NaN": first(lambda w: w.index_fill(0, torch.tensor([3]), NAN)),
        "whole numbers": first(lambda w: w.long()),
        "complex": first(lambda w: w.to(torch.complex64)),
        "too large for float32": first(lambda w: w.double() * 1e300),
        "sparse": first(lambda w: w.to_sparse()),
        "no tensor": first(lambda w: 5),
        "a list": weights(lambda state: list(state.values())),
        "one tensor": weights(lambda state: state["network.output.weight"]),
        "names that are numbers": weights(lambda state: {1: 2}),
        "tensors without memory of their own": first(lambda w: zero_stride),
        "deflated": deflated,
        "the format before zip files": saved(
            "model.pth", {"network.x": torch.zeros(3)}, _use_new_zipfile_serialization=False
        ),
        "a pickle": pickled("model.pth"),
        "a saved pickle": saved("model.pth", {"network.output.weight": Command()}),
        "empty": write("model.pth", b""),
        "cut off": lambda folder: os.truncate(folder / "model.pth", 3000),
        "a giant": giant_file("model.pth"),
        "a directory": replaced_by("model.pth", Path.mkdir),
        "a pipe": replaced_by("model.pth", os.mkfifo),
        "missing": lambda folder: (folder / "model.pth").unlink(),
    }.items():
        yield Case(f"weights: {name}", "stream", edit)
    wide = small_models.config_of("stream")["network_conf"] | {"width": 20000, "heads": 2, "layers": 1}

    def giant_of_nothing(folder: Path) -> None:
        """A network of 5 GB whose tensors all share one number of a file of a few KB."""
        configured("network_conf", wide)(folder)
        with torch.device("meta"):
            from distill.models.student import Student

            state = Student(11, **wide).state_dict()
        one = torch.zeros(1)
        torch.save({f"network.{k}": one.expand(v.shape) for k, v in state.items()}, folder / "model.pth")

    yield Case("weights: a giant of nothing", "stream", giant_of_nothing)
    for name, edit in {
        "a directory": replaced_by("config.yaml", Path.mkdir),
        "a pipe": replaced_by("config.yaml", os.mkfifo),
        "a giant": giant_file("config.yaml"),
        "a device": replaced_by("config.yaml", lambda path: path.symlink_to("/dev/zero")),
        "a link to itself": replaced_by("config.yaml", lambda path: path.symlink_to(path.name)),
    }.items():
        yield Case(f"config.yaml: {name}", "stream", edit)
    yield Case("an empty directory", "stream", lambda folder: [path.unlink() for path in folder.iterdir()] and None)


def packed_cases() -> Iterator[Case]:
    safetensors = "exp/stream/model.safetensors"
    for name, text in YAML.items():
        content = text if isinstance(text, bytes) else text.encode()
        if len(content) < 1 << 20:
            yield Case(f"meta.yaml: {name}", "packed", member("meta.yaml", content))
        yield Case(f"packed config.yaml: {name}", "packed", member("exp/stream/config.yaml", content))
    for name, edit in {
        "network_conf that fetches": packed_config("network_conf.config", "hf://someone/else"),
        "layers of a giant": packed_config("network_conf.layers", 10**8),
        "a teacher's configuration": packed_config("network", "teacher"),
        "an adapter": packed_config("network_conf.config", {"add_adapter": True, "num_adapter_layers": 10**8}),
        "tokens that are missing": packed_config("token_list", None),
        "a vocabulary of another place": packed_config("bpemodel", "/etc/passwd"),
        "weights that are no weights": member(safetensors, b"x"),
        "a giant header": member(safetensors, (1 << 62).to_bytes(8, "little") + b"{}"),
        "a header that lies": member(
            safetensors,
            (100).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}',
        ),
        "a pickle": member("exp/stream/model.pth", b"x"),
        "a path outside": member("../../evil.txt", b"x"),
        "a name with control characters": member(f"{BELL}.txt", b"x"),
        "no members": repacked(dict.clear),
        "a bomb": repacked(
            lambda members: members.update({"zeros.txt": bytes(1 << 28)}), compression=zipfile.ZIP_DEFLATED
        ),
        "an export that is none": repacked(export_of_nonsense),
        "two directories of one model": repacked(partial(meta_models, {"torch": "exp/stream", "onnx": "exp/stream"})),
        "models that are no paths": repacked(partial(meta_models, {"torch": ["exp"], "onnx": {"a": 1}})),
        "a model at the top": repacked(partial(meta_models, {"torch": "/"})),
        "a bpe model that is none": repacked(broken_bpe),
    }.items():
        may = name in ("a vocabulary of another place", "two directories of one model", "a bpe model that is none")
        yield Case(f"packed: {name}", "packed", edit, accepted=may)
    for key, text in PACKED_METADATA.items():
        yield Case(f"packed metadata: {key}: {text}", "packed", repacked(partial(export_of, metadata(key, text))))
    yield Case("packed export: the model of another chunk length", "packed", repacked(partial(export_of, other_chunk)))
    for name, content in {"no zip": b"nonsense" * 99, "empty": b"", "an end alone": b"PK\5\6" + bytes(18)}.items():
        yield Case(f"packed: {name}", "packed", lambda path, content=content: path.write_bytes(content) and None)  # type: ignore[misc]
    yield Case("packed: cut off", "packed", lambda path: os.truncate(path, path.stat().st_size // 2))
    yield Case("packed: a giant", "packed", lambda path: os.truncate(path, 1 << 40))


def meta_models(models: Any, members: dict[str, bytes]) -> None:
    meta = yaml.safe_load(members["meta.yaml"])
    members["meta.yaml"] = yaml.safe_dump({**meta, "models": models}).encode()


def export_of_nonsense(members: dict[str, bytes]) -> None:
    meta = yaml.safe_load(members["meta.yaml"])
    for name in [name for name in members if name != "meta.yaml"]:
        del members[name]
    members["exp/export/student_480ms.onnx"] = b"nonsense"
    checksums = {"exp/export/student_480ms.onnx": hashlib.sha256(b"nonsense").hexdigest()}
    members["meta.yaml"] = yaml.safe_dump({**meta, "models": {"onnx": "exp/export"}, "checksums": checksums}).encode()


def export_of(edit: Edit, members: dict[str, bytes]) -> None:
    """Pack a damaged export in place of the training."""
    meta = yaml.safe_load(members["meta.yaml"])
    members.clear()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        small_models.write_export(folder)
        edit(folder)
        members |= {f"exp/export/{path.name}": path.read_bytes() for path in folder.iterdir()}
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    members["meta.yaml"] = yaml.safe_dump({**meta, "models": {"onnx": "exp/export"}, "checksums": checksums}).encode()


def other_chunk(folder: Path) -> None:
    shutil.copy(small_models.exported(160) / "student_160ms.onnx", folder / "student_480ms.onnx")


def broken_bpe(members: dict[str, bytes]) -> None:
    config = yaml.safe_load(members["exp/stream/config.yaml"])
    members["exp/stream/config.yaml"] = yaml.safe_dump({**config, "token_type": "bpe"}).encode()
    members["exp/stream/bpe.model"] = b"nonsense"


def short(value: Any) -> str:
    """A value for the name of a case."""
    text = repr(value)
    return text if len(text) < 40 else f"{text[:30]}... ({len(text)})"


# ----------------------------------------------------------------------------------------------- what is done with them
def open_server(arguments: list[str]) -> None:
    """Load a model as ``serve`` does, and serve nobody."""
    from distill.errors import cli
    from distill.serve.server import Server

    cli(lambda: Server(Path(arguments[0])))()


class Hostile:
    """Small models to be damaged, and the commands that open them."""

    def __init__(self, folder: Path) -> None:
        from distill.bin import adopt_teacher, pack, transcribe

        self.folder = folder
        self.models = folder / "models"
        for kind in ("stream", "full", "teacher"):
            small_models.write_training(self.models / kind, kind)
        small_models.write_export(self.models / "export")
        small_models.write_hugging_face(self.models / "hugging_face")
        for family in OTHER_FAMILIES:
            tiny_teachers.write_recogniser(self.models / family, family)
        tiny_teachers.write_language(self.models / "mms", LANGUAGE, tiny_teachers.VOCABULARY)
        (self.models / "mms/tokenizer_config.json").write_text(json.dumps({"target_lang": LANGUAGE}))
        self.audio, self.tokens = folder / "a.wav", folder / "tokens.txt"
        soundfile.write(self.audio, tiny_networks.speech(24000).numpy(), 16000)
        self.tokens.write_text("<blank>\n<unk>\n<space>\na\nt\n<sos/eos>\n")
        pieces = folder / "pieces.txt"
        pieces.write_text(self.tokens.read_text().replace("<space>", "▁"))
        pack.main(["--model", str(self.models / "stream"), "--output", str(self.models / "packed.zip")])
        self.place, self.output = folder / "hostile", folder / "output"
        audio, output = str(self.audio), str(self.output)
        transcribe_it = (transcribe.main, ["--model", "MODEL", audio])
        pack_it = (pack.main, ["--model", "MODEL", "--output", f"{output}/x.zip"])
        serve_it = (open_server, ["MODEL"])
        adopt_it = (
            adopt_teacher.main,
            ["--model", "MODEL", "--token_list", str(self.tokens), "--output", f"{output}/teacher"],
        )
        self.commands = {
            "stream": [transcribe_it, pack_it, serve_it],
            "full": [transcribe_it, pack_it],
            "teacher": [transcribe_it, pack_it],
            "export": [transcribe_it, (pack.main, ["--export", "MODEL", "--output", f"{output}/x.zip"])],
            "packed": [transcribe_it, pack_it, serve_it],
            "hugging_face": [adopt_it, (adopt_teacher.main, ["--model", "MODEL", "--show_tokens"])],
        }
        for family in OTHER_FAMILIES:
            words = list(adopt_it[1])
            words[words.index(str(self.tokens))] = str(pieces if family == "parakeet" else self.tokens)
            self.commands[family] = [(adopt_teacher.main, words)]
        for base in self.commands:  # what each imports is not part of what a damaged model costs
            for main, arguments in self.commands[base]:
                ended = self.attempt(base, None, main, arguments)
                assert ended == (0, []), (base, main, ended)

    def attempt(self, base: str, edit: Edit | None, main: Any, arguments: list[str]) -> tuple[int, list[str]]:
        """Exit status of a command with a model after an edit, and what is wrong with how it ended."""
        for old in (self.place, self.output):
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir()
        packed = base == "packed"
        model = self.place / ("model.zip" if packed else base)
        if packed:
            shutil.copy(self.models / "packed.zip", model)
        else:
            shutil.copytree(self.models / base, model)
        if edit is not None:
            edit(model)
        outcome = run(main, [str(model) if word == "MODEL" else word for word in arguments], self.folder)
        wrong = faults(outcome)
        if b"UNPICKLED" in outcome.output or Path("unpickled").exists():
            wrong.append("code of the model was run")
        left = [path for path in self.output.rglob("*") if outcome.status and path.is_file()]
        return outcome.status, wrong + [f"left {path.name}" for path in left]

    def check(self, case: Case) -> list[str]:
        """What is wrong with how the commands take a damaged model."""
        wrong, statuses = [], []
        for main, arguments in self.commands[case.base]:
            name = main.__module__.rpartition(".")[2] + (" --show_tokens" if "--show_tokens" in arguments else "")
            status, found = self.attempt(case.base, case.edit, main, arguments)
            wrong += [f"{name}: {fault}" for fault in found]
            statuses.append(status)
        if not case.accepted and not any(statuses):
            wrong.append("every command accepts it")
        return wrong


def check_all(seconds: float) -> list[str]:
    """What is wrong with how the cases end, as many as so many seconds allow.

    Without time for all of them, they are spread over all.
    """
    wrong, started, done = [], time.monotonic(), 0
    chosen = list(cases())
    random.Random(0).shuffle(chosen)
    with tempfile.TemporaryDirectory() as folder:
        hostile = Hostile(Path(folder))
        for case in chosen:
            if time.monotonic() - started > seconds:
                break
            done += 1
            wrong += [f"{case.name}: {fault}" for fault in hostile.check(case)]
    print(f"  {done} of {len(chosen)} cases in {time.monotonic() - started:.0f} s", flush=True)
    return wrong


SECTIONS = {"models": check_all}
