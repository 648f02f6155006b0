"""A tiny corpus of tones, a teacher trained on it, its targets, and a function that trains through ESPnet's CLI."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_training import HERTZ, STUDENT, TEACHER, TOKENS


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> SimpleNamespace:
    """Data, token list, stats and graph; ``train(name, config, *options)`` trains and returns the directory."""
    from distill.bin.train import main
    from distill.lfmmi import DenominatorGraph

    torch.set_num_threads(1)  # waiting for a second thread costs more than these matrices
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    names = list(HERTZ)
    texts = {}
    for part, count in (("train", 10), ("valid", 4)):
        directory = root / part
        directory.mkdir()
        with open(directory / "wav.scp", "w") as scp, open(directory / "text", "w") as text:
            for i in range(count):
                words = [names[k] for k in rng.integers(0, 3, size=rng.integers(1, 4))]
                time = np.arange(4000 + 160 * int(rng.integers(0, 9))) / 16000
                audio = np.concatenate([0.3 * np.sin(2 * np.pi * HERTZ[word] * time) for word in words])
                audio = audio + 0.01 * rng.normal(size=len(audio))
                soundfile.write(directory / f"{part}{i:02d}.wav", audio, 16000)
                print(f"{part}{i:02d} {directory}/{part}{i:02d}.wav", file=scp)
                print(f"{part}{i:02d} {' '.join(words)}", file=text)
                texts[f"{part}{i:02d}"] = words
    token_list = root / "tokens.txt"
    token_list.write_text("\n".join(TOKENS) + "\n")
    graph = root / "den.npz"
    lines = [[TOKENS.index(word) for word in words] for words in texts.values()]
    DenominatorGraph.from_text(lines, order=2, vocab_size=len(TOKENS)).save(graph)

    def options(output: Path, config: dict) -> list[str]:
        path = root / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return [
            *("--config", str(path), "--output_dir", str(output), "--token_list", str(token_list)),
            *("--token_type", "word", "--bpemodel", "none", "--cleaner", "none", "--g2p", "none"),
            *("--num_workers", "0", "--use_matplotlib", "false", "--resume", "true", "--log_interval", "1"),
            *(
                word
                for part in ("train", "valid")
                for word in (
                    *(f"--{part}_data_path_and_name_and_type", f"{root}/{part}/wav.scp,speech,sound"),
                    *(f"--{part}_data_path_and_name_and_type", f"{root}/{part}/text,text,text"),
                )
            ),
        ]

    def command(name: str, config: dict, *more: str) -> list[str]:
        shapes = [
            word
            for part in ("train", "valid")
            for kind in ("speech", "text")
            for word in (f"--{part}_shape_file", f"{root}/stats/{part}/{kind}_shape")
        ]
        base = ["--max_epoch", "2", "--keep_nbest_models", "2", "--batch_type", "unsorted", "--batch_size", "4"]
        base += ["--distill_conf", f"graph={graph}"]
        return [*options(root / name, config), *shapes, *base, *more]

    def train(name: str, config: dict, *more: str) -> Path:
        main(command(name, config, *more))
        return root / name

    main(
        [
            *options(root / "stats", TEACHER),
            *("--collect_stats", "true", "--batch_size", "4"),
            *("--train_shape_file", f"{root}/train/wav.scp", "--valid_shape_file", f"{root}/valid/wav.scp"),
        ]
    )
    return SimpleNamespace(root=root, texts=texts, train=train, command=command)


@pytest.fixture(scope="session")
def teacher(world) -> Path:
    return world.train("teacher", TEACHER)


@pytest.fixture(scope="session")
def online(world, teacher) -> Path:
    """A student trained with its teacher computed in the trainer."""
    return world.train("student_online", STUDENT, "--teacher", str(teacher), "--teacher_targets", "online")


@pytest.fixture(scope="session")
def stored(world, teacher) -> list[str]:
    """Options that hand a training the stored targets."""
    from distill.bin.extract_targets import main

    config = world.root / "student_layers.yaml"
    config.write_text(yaml.safe_dump(STUDENT))
    words = ["--teacher_targets", "stored"]
    for part in ("train", "valid"):
        out = world.root / "targets" / part
        main(
            [
                *("--teacher", str(teacher), "--wav_scp", str(world.root / part / "wav.scp"), "--output", str(out)),
                *("--student_config", str(config)),
            ]
        )
        words += [f"--{part}_targets", str(out)]
    return words
