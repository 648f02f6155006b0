"""Stage 8's commands over nine shards of a tiny teacher: killed at random moments, and asked what is stale."""

import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from distill.bin import extract_targets
from distill.checkpoints.load import build_network

UTTERANCES = 520
KILLS = int(os.environ.get("DISTILL_KILLS", "3"))
TOKENS = ["<blank>", "low", "mid", "high", "<sos/eos>"]
TEACHER = {
    "conv_dim": [8, 8, 8, 8, 8, 8, 8],
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
SET = Path("dump/targets/train")
OPTIONS = ["--teacher", "exp/teacher", "--wav_scp", "dump/raw/train/wav.scp", "--output", str(SET), "--num_jobs", "2"]
PHASES = {"jobs": [["--job", "1"], ["--job", "2"]], "merge": [["--merge"]]}
# Forked from a process that has imported everything, so that a run is nothing but the work that may be disturbed.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *(
            "distill.audio",
            "distill.targets.extract",
            "distill.targets.compute",
            "distill.lfmmi",
            "distill.models.teacher",
        ),
        "distill.checkpoints.load",
        *("tqdm", "transformers.models.wav2vec2.modeling_wav2vec2"),
    ]
)


def save_teacher(directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = {"network": "teacher", "network_conf": {"config": TEACHER}, "token_list": TOKENS}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    weights = build_network(config, len(TOKENS)).state_dict()
    torch.save({f"network.{name}": value for name, value in weights.items()}, directory / "model.pth")


def extract(place: Path, options: list[str]) -> None:
    os.chdir(place)
    torch.set_num_threads(1)
    extract_targets.main([*OPTIONS, "--layers", "2,4", *options])


def stage_8(place: Path, kill: tuple[str, float] | None = None) -> dict[str, float] | None:
    """The jobs side by side, then the merge; the seconds that each phase took.

    With ``kill``, a phase and seconds, all that runs that long after the phase began gets SIGKILL. None if it was so.
    """
    took = {}
    for phase, commands in PHASES.items():
        started = time.monotonic()
        running = [CONTEXT.Process(target=extract, args=(place, options)) for options in commands]
        for process in running:
            process.start()
        until = started + kill[1] if kill is not None and kill[0] == phase else float("inf")
        alive = running
        while alive and time.monotonic() < until:
            left = None if until == float("inf") else until - time.monotonic()
            multiprocessing.connection.wait([process.sentinel for process in alive], left)
            alive = [process for process in alive if process.is_alive()]
        for process in alive:
            process.kill()
        for process in running:
            process.join()
        if any(process.exitcode == -signal.SIGKILL for process in running):
            return None
        assert [process.exitcode for process in running] == [0] * len(running)
        took[phase] = time.monotonic() - started
    return took


def files_of(place: Path) -> dict[str, bytes]:
    """Every file of the targets but the cache, which has the times of the audio files."""
    files = (path for path in sorted((place / SET).rglob("*")) if path.is_file() and path.name != "audio.cache")
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A directory with a teacher, audio and its targets, and the seconds that an undisturbed stage 8 took."""
    place = tmp_path_factory.mktemp("undisturbed")
    save_teacher(place / "exp/teacher", seed=0)
    raw = place / "dump/raw/train"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with open(raw / "wav.scp", "w") as scp:
        for i in range(UTTERANCES):
            soundfile.write(raw / f"u{i:03d}.wav", 0.1 * rng.normal(size=rng.integers(1600, 4800)), 16000)
            print(f"u{i:03d} dump/raw/train/u{i:03d}.wav", file=scp)
    first = CONTEXT.Process(target=os.getpid)  # the imports are no part of what is timed
    first.start()
    first.join()
    took = stage_8(place)
    assert took is not None and len(list((place / SET / "data").glob("*.ark"))) == 9
    return place, took


@pytest.fixture
def place(world, tmp_path, monkeypatch) -> Path:
    """A copy of that directory, entered."""
    copy = tmp_path / "again"
    shutil.copytree(world[0], copy)
    monkeypatch.chdir(copy)
    return copy


def test_targets_are_the_same_after_any_kill(world, place):
    """DISTILL_KILLS=200 kills more often. One kill in three hits the merge; each phase is hit all over its duration."""
    undisturbed = files_of(world[0])
    shutil.rmtree(place / SET)
    generator = random.Random(0)
    merges = KILLS // 3
    counts = {"jobs": KILLS - merges, "merge": merges}
    moments = [
        (phase, (i + generator.random()) / count * world[1][phase])
        for phase, count in counts.items()
        for i in range(count)
    ]
    generator.shuffle(moments)
    for phase, moment in moments:
        while stage_8(place, (phase, moment)) is not None:
            # It was over before: earlier kills left too little to do, or the machine is faster now.
            assert files_of(place) == undisturbed
            shutil.rmtree(place / SET)
            moment *= 0.9
    assert stage_8(place) is not None
    assert files_of(place) == undisturbed


def other_audio() -> list[str]:
    soundfile.write("dump/raw/train/u150.wav", 0.1 * np.random.default_rng(1).normal(size=3000), 16000)
    return ["--layers", "2,4"]


def other_utterances() -> list[str]:
    scp = Path("dump/raw/train/wav.scp")
    scp.write_text("".join(line for line in scp.read_text().splitlines(keepends=True) if not line.startswith("u519")))
    return ["--layers", "2,4"]


def other_teacher() -> list[str]:
    save_teacher(Path("exp/teacher"), seed=1)
    return ["--layers", "2,4"]


def other_layers() -> list[str]:
    return ["--layers", "1,4"]


def cut_off(path: Path) -> list[str]:
    path.write_bytes(path.read_bytes()[:-30])
    return ["--layers", "2,4"]


ALL = {f"{number:04d}" for number in range(1, 10)}


@pytest.mark.parametrize(
    ("change", "stderr", "made_again"),
    [
        (other_audio, f"{SET}/data/0003: the audio of u150 has changed; ", {"0003"}),
        (other_utterances, f"{SET}/data/0009: made of other utterances or audio; ", {"0009"}),
        (other_teacher, f"{SET}/data/0001: made with teacher ", ALL),
        (other_layers, f"{SET}/data/0001: made with layers [2, 4] instead of [1, 4] (and 8 more shards); ", ALL),
        (lambda: cut_off(SET / "data/0002.idx"), f"{SET}/data/0002.idx: not the lines that were written; ", {"0002"}),
        (lambda: cut_off(SET / "data/0004.ark"), f"{SET}/data/0004.ark: ", {"0004"}),
        (lambda: cut_off(SET / "logits.scp"), f"{SET}/logits.scp: not the lines of these shards; ", set()),
        (lambda: cut_off(SET / "manifest.json"), f"{SET}/manifest.json: not JSON ", set()),
        (lambda: (SET / "logits.scp").unlink() or ["--layers", "2,4"], f"{SET}/logits.scp: not found; ", set()),
    ],
)
def test_what_is_stale_is_named_and_it_alone_is_made_again(place, capsys, change, stderr, made_again):
    options = [*OPTIONS, "--layers", "2,4"]
    extract_targets.main([*options, "--check"])
    times = {path: path.stat().st_mtime_ns for path in sorted(SET.glob("data/*.ark"))}
    options = [*OPTIONS, *change()]
    with pytest.raises(SystemExit) as ended:
        extract_targets.main([*options, "--check"])
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith(f"error: {stderr}") and message.count("\n") == 1
    for part in (["--job", "1"], ["--job", "2"], ["--merge"], ["--verify"]):
        extract_targets.main([*options, *part])
    assert {path.stem for path in times if path.stat().st_mtime_ns != times[path]} == made_again


def test_jobs_that_make_a_shard_again_take_back_the_manifest(place):
    """A training must not read a mixture of old and new targets."""
    extract_targets.main([*OPTIONS, *other_layers(), "--job", "1"])
    assert not (SET / "manifest.json").exists()
