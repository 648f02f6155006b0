"""Packed files: the same bytes from the same inputs, and nothing from a file that is not what it says."""

import hashlib
import io
import os
import resource
import stat
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save

from distill.checkpoints.archive import model_directory, write_archive
from distill.checkpoints.load import load_network
from distill.errors import UserError

MEMBERS = {
    "README.md": b"# card\n",
    "exp/student/config.yaml": b"network: student\nnetwork_conf: {width: 8}\n",
    "exp/student/model.safetensors": b"weights",
    "exp/export/model.onnx": b"graph",
}
MODELS = {"torch": "exp/student", "onnx": "exp/export"}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "student.zip"
    write_archive(path, dict(MEMBERS), {"models": MODELS})
    return path


def forged(path: Path, members: dict[str, bytes], meta: dict | None = None, **about) -> None:
    """An archive whose meta.yaml vouches for all its members, written without any check."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    with zipfile.ZipFile(path, "w", **about) as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(meta or {"models": MODELS, "checksums": checksums}))
        for name, content in members.items():
            archive.writestr(name, content)


def test_unpacks_for_this_process_what_was_packed(packed, tmp_path):
    directory = model_directory(packed)
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    assert (model_directory(packed, "onnx") / "model.onnx").read_bytes() == b"graph"
    assert model_directory(packed) == directory  # not once more
    assert model_directory(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["student.zip"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="lost.zip: not found"):
        model_directory(tmp_path / "lost.zip")


def test_same_inputs_same_bytes(packed, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    os.utime(file, (1, 1))
    again = tmp_path / "again.zip"
    shuffled = dict(reversed(MEMBERS.items())) | {"exp/student/model.safetensors": file}
    write_archive(again, shuffled, {"models": dict(reversed(MODELS.items()))})
    assert again.read_bytes() == packed.read_bytes()


def test_no_half_of_a_file_is_left(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_archive(tmp_path / "x.zip", {**MEMBERS, "lost.txt": tmp_path / "lost"}, {"models": MODELS})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "exp/../../evil.txt", "C:evil.txt", "exp\\evil.txt"])
def test_members_that_escape_are_refused(tmp_path, name):
    path = tmp_path / "bad.zip"
    forged(path, {**MEMBERS, name: b"x"})
    with pytest.raises(UserError, match="bad.zip: member .*evil.txt' is not a plain relative path"):
        model_directory(path)


def test_a_model_that_escapes_is_refused(tmp_path):
    path = tmp_path / "bad.zip"
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in MEMBERS.items()}
    for place in ("../..", "/etc"):
        forged(path, MEMBERS, {"models": {"torch": place}, "checksums": checksums})
        with pytest.raises(UserError, match="not a plain relative path"):
            model_directory(path)


def test_links_are_refused(tmp_path):
    path = tmp_path / "bad.zip"
    forged(path, MEMBERS)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="'link.txt' is a link"):
        model_directory(path)


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "bad.zip"
    forged(path, {**MEMBERS, "exp/student/model.pth": b"x"})
    with pytest.raises(UserError, match="model.pth' is not of a type that packed models have"):
        model_directory(path)


def test_bombs_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "bad.zip"
    forged(path, {**MEMBERS, "zeros.txt": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(UserError, match="would grow from"):
        model_directory(path)
    assert not list(folder.iterdir())


def test_damage_is_told(packed, tmp_path):
    content = packed.read_bytes()
    bad = tmp_path / "bad.zip"
    at = content.index(b"weights")
    for damaged in (content[:-100], content[: at + 3], b"not a zip", b""):
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match="bad.zip: .*copy the file again"):
            model_directory(bad)
    bad.write_bytes(content[:at] + b"W" + content[at + 1 :])
    with pytest.raises(UserError, match="bad.zip: .*copy the file again"):
        model_directory(bad)


def test_a_member_that_was_exchanged_is_told(tmp_path):
    path = tmp_path / "bad.zip"
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in MEMBERS.items()}
    forged(path, {**MEMBERS, "exp/student/model.safetensors": b"others"}, {"models": MODELS, "checksums": checksums})
    with pytest.raises(UserError, match="model.safetensors is not what was packed"):
        model_directory(path)
    forged(path, {**MEMBERS, "more.txt": b""}, {"models": MODELS, "checksums": checksums})
    with pytest.raises(UserError, match="more.txt is in only one of the archive and its meta.yaml"):
        model_directory(path)


def test_an_ordinary_zip_is_no_model(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(UserError, match="has no meta.yaml of a packed model"):
        model_directory(path)


def test_a_configuration_that_fetches_weights_is_refused(tmp_path):
    path = tmp_path / "bad.zip"
    config = b"network: teacher\nnetwork_conf: {config: 'hf://someone/else'}\n"
    forged(path, {**MEMBERS, "exp/student/config.yaml": config})
    with pytest.raises(UserError, match="do not trust this file"):
        model_directory(path)


def test_a_kind_that_is_not_there(tmp_path):
    path = tmp_path / "export.zip"
    write_archive(path, {"exp/export/model.onnx": b"graph"}, {"models": {"onnx": "exp/export"}})
    assert model_directory(path).name == "export"
    with pytest.raises(UserError, match="holds no torch model, only onnx"):
        model_directory(path, "torch")


def test_file_beside_may_be_read_only(packed, tmp_path):
    content = io.BytesIO(packed.read_bytes())
    folder = tmp_path / "sealed"
    folder.mkdir()
    (folder / "s.zip").write_bytes(content.getvalue())
    (folder / "s.zip").chmod(0o444)
    folder.chmod(0o555)
    assert (model_directory(folder / "s.zip") / "model.safetensors").is_file()
    assert [path.name for path in folder.iterdir()] == ["s.zip"]


@pytest.mark.parametrize("sizes", ["width: 1000000", "layers: 1000000000", "ffn: 4000000000", "heads: 0", "width: x"])
def test_a_configuration_of_a_giant_is_refused_before_it_is_built(tmp_path, sizes):
    """Whose weights would fill the memory: nothing of more than the file's own size is made."""
    conf = {"front_end": "fbank", "front_end_conf": {"channels": 8}, "width": 8, "layers": 1, "heads": 1, "ffn": 8}
    conf |= yaml.safe_load(f"{{{sizes}}}")
    config = {"network": "student", "network_conf": {**conf, "kernel": 3}, "token_list": ["<blank>", "a"]}
    members = {
        "exp/student/config.yaml": yaml.safe_dump(config).encode(),
        "exp/student/model.safetensors": save({"network.output.bias": torch.zeros(2)}),
    }
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    forged(tmp_path / "giant.zip", members, {"models": {"torch": "exp/student"}, "checksums": checksums})
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        with pytest.raises(UserError, match="network|weights|layers|fit"):
            load_network(tmp_path / "giant.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
