"""The configurations that ship: what they may override, and that every key of theirs is known."""

from pathlib import Path

import pytest
import yaml

from distill.configuration import AugmentConf, ChunkConf, DistillConf, MaskConf, read_conf

ROOT = Path(__file__).parents[2]
LARGE = ("librispeech", "gigaspeech", "kaldi_dir")
SMALL = ("egs2/fsdd/asr_distill1/conf", "egs2/demo/asr_distill1/conf")
SECTIONS = {
    "distill_conf": DistillConf,
    "chunk_conf": ChunkConf,
    "augment_conf": AugmentConf,
    "mask_conf": MaskConf,
}


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("recipe", LARGE)
@pytest.mark.parametrize("name", ["train_student_full.yaml", "train_student_stream.yaml"])
def test_large_recipes_differ_from_the_shared_configuration_in_their_epochs_alone(recipe, name):
    shared, config = read(ROOT / "conf" / name), read(ROOT / f"egs2/{recipe}/asr_distill1/conf" / name)
    assert config.keys() == shared.keys()
    assert {key for key in shared if config[key] != shared[key]} <= {"max_epoch"}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("conf/**/train_*.yaml"), *ROOT.glob("egs2/*/*/conf/train_*.yaml")]))
def test_every_section_of_a_configuration_can_be_read(path):
    config = read(path)
    for section, kind in SECTIONS.items():
        read_conf(kind, section, config.get(section))


@pytest.mark.parametrize(
    "directory",
    [
        "conf",
        "conf/from_scratch/small",
        "conf/from_scratch/medium",
        "egs2/fsdd/asr_distill1/conf",
        "egs2/demo/asr_distill1/conf",
    ],
)
def test_both_stages_train_the_same_network(directory):
    full, stream = (read(ROOT / directory / f"train_student_{kind}.yaml") for kind in ("full", "stream"))
    assert full["network_conf"] == stream["network_conf"]


def test_recipes_link_to_the_configurations_that_they_share():
    """A copy would no longer follow a change of the one in conf/."""
    shared = {path.read_text(encoding="utf-8"): path for path in (ROOT / "conf").rglob("*.yaml")}
    files = [path for path in (ROOT / "egs2").glob("*/*/conf/*.yaml") if not path.is_symlink()]
    copies = [f"{path} is {shared[text]}" for path in files if (text := path.read_text(encoding="utf-8")) in shared]
    assert files and not copies
