"""Every family of teachers through stages 7, 8 and 10: adopted, its targets stored, a student trained."""

import math

import pytest
import soundfile
import torch
import yaml
from tiny_teachers import FAMILIES, write_recogniser
from tiny_training import STUDENT, TOKENS, changed

from distill.bin import adopt_teacher, extract_targets
from distill.checkpoints.load import load_network, network_shape
from distill.configuration import DistillConf, check_frames_compared
from distill.errors import UserError
from distill.targets import store

VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "mid", "low", "high"]


def options_of(world, targets, parts=("train", "valid")) -> list[str]:
    """Options that hand a training the stored targets."""
    words = ["--teacher_targets", "stored"]
    for part in parts:
        words += [f"--{part}_targets", str(targets / part)]
    return words


def stages_7_and_8(world, family, folder, config, *more) -> None:
    """Adopt the recogniser of ``folder/hf`` as ``folder/exp``, and store its targets in ``folder/targets``."""
    tokens = ["--token_list", str(world.root / "tokens.txt"), "--token_type", "word"]
    adopt_teacher.main(["--model", str(folder / "hf"), *tokens, *more, "--output", str(folder / "exp")])
    store_targets(world, folder, config)


def store_targets(world, folder, config) -> None:
    """Stage 8: the targets of ``folder/exp`` for a student, in ``folder/targets``."""
    (folder / "student.yaml").write_text(yaml.safe_dump(config))
    for part in ("train", "valid"):
        extract_targets.main(
            [
                *("--teacher", str(folder / "exp"), "--wav_scp", str(world.root / part / "wav.scp")),
                *("--output", str(folder / "targets" / part), "--student_config", str(folder / "student.yaml")),
            ]
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_through_the_stages(world, tmp_path, family):
    """What is stored is what the recogniser puts out, at the rates of the table, and a student learns from it."""
    write_recogniser(tmp_path / "hf", family, VOCABULARY, num_hidden_layers=4)
    ms, layer_ms = FAMILIES[family].ms
    config, terms = STUDENT, ("loss", "loss_hidden", "loss_logits", "loss_mmi")
    if ms > 20:  # frames of logits cannot be compared
        config = changed(STUDENT, distill_conf={"beta": 1.0, "target": "pseudo"})
        terms = ("loss", "loss_hidden", "loss_mmi")
    stages_7_and_8(world, family, tmp_path, config)
    assert network_shape(tmp_path / "exp") == (4, 32, ms, layer_ms)
    manifest = store.read_manifest(tmp_path / "targets/train")
    assert (manifest["frame_ms"], manifest["hidden_ms"]) == (ms, layer_ms) and manifest["layers"] == [2, 4]
    network, tokens, _ = load_network(tmp_path / "exp")
    assert tokens == TOKENS
    stored = {name: store.read_targets(tmp_path / "targets/train", name) for name in manifest["streams"]}
    for utterance, path in store.read_two_columns(world.root / "train/wav.scp").items():
        audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        with torch.no_grad():
            output = network(audio, torch.tensor([audio.shape[1]]))
        assert stored["logits"][utterance].shape == (int(output.lengths), len(TOKENS))
        for name, expected in (("logits", output.logits), ("hidden_02", output.hidden[1])):
            actual = torch.from_numpy(stored[name][utterance].copy())
            torch.testing.assert_close(actual, expected[0, : len(actual)], atol=2e-4, rtol=0)
    name = f"of {family}".replace(" ", "_")
    options = ["--teacher", str(tmp_path / "exp"), "--max_epoch", "1", *options_of(world, tmp_path / "targets")]
    trained = world.train(name, config, *options)
    stats = torch.load(trained / "checkpoint.pth", weights_only=False)["reporter"]["stats"][1]
    for part in ("train", "valid"):
        for term in terms:
            assert math.isfinite(stats[part][term]) and stats[part][term] > 0, (part, term)


def test_layers_with_longer_frames_than_the_students(world, tmp_path):
    """A 20 ms student of SEW compares the mean of two of its frames with one of the teacher's layers."""
    from distill.checkpoints.load import build_network
    from distill.training.distill_model import DistillModel
    from distill.training.loss_terms import normalise_frames

    write_recogniser(tmp_path / "hf", "sew", VOCABULARY, num_hidden_layers=4)
    stages_7_and_8(world, "sew", tmp_path, STUDENT)
    network = build_network(STUDENT, len(TOKENS))
    teacher = load_network(tmp_path / "exp").network
    audio = torch.from_numpy(soundfile.read(world.root / "valid/valid00.wav", dtype="float32")[0])[None]
    batch = audio, torch.tensor([audio.shape[1]])
    for delay in (0, 1, 2):  # of the student's frames, before they are averaged
        conf = DistillConf(alpha=0.0, target_delay_ms=20.0 * delay)
        model = DistillModel(network, TOKENS, conf, teacher=str(tmp_path / "exp")).eval()
        with torch.no_grad():
            loss = model(*batch, torch.tensor([[2]]), torch.tensor([1]))[1]["loss_hidden"][0]
            of_student, of_teacher = network(*batch), teacher(*batch)
            terms = []
            for projection, layer, hidden in zip(model.criterion.projections, (2, 4), of_student.hidden, strict=True):
                frames = min((hidden.shape[1] - delay) // 2, of_teacher.hidden[0].shape[1])
                pairs = projection(hidden)[:, delay : delay + 2 * frames].reshape(1, frames, 2, -1)
                target = normalise_frames(of_teacher.hidden[layer - 1][:, :frames])
                terms.append((pairs.mean(2) - target).square().mean())
        assert float(loss) > 0.1
        torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("front_end", ["default", "s3prl"])
def test_an_experiment_of_espnet_through_the_stages(world, tmp_path, front_end):
    """It is adopted by its weights' file; its tokens are the student's, its frames are 40 ms."""
    from espnet_experiments import write_experiment
    from s3prl_experiments import write_s3prl_experiment

    if front_end == "default":
        write_experiment(tmp_path / "asr", "conformer", "global_mvn")
    else:
        write_s3prl_experiment(tmp_path / "asr", "wavlm large")
    config = changed(STUDENT, distill_conf={"beta": 1.0, "target": "pseudo"})
    weights = next((tmp_path / "asr").glob("valid.*.ave.pth"))
    adopt_teacher.main(["--model", str(weights), "--output", str(tmp_path / "exp")])
    assert network_shape(tmp_path / "exp") == (3, 16, 40, 40)
    store_targets(world, tmp_path, config)
    manifest = store.read_manifest(tmp_path / "targets/train")
    assert (manifest["frame_ms"], manifest["hidden_ms"], manifest["layers"]) == (40, 40, [1, 3])
    options = ["--teacher", str(tmp_path / "exp"), "--max_epoch", "1", *options_of(world, tmp_path / "targets")]
    trained = world.train(f"of_espnet_{front_end}", config, *options)
    stats = torch.load(trained / "checkpoint.pth", weights_only=False)["reporter"]["stats"][1]["train"]
    assert all(math.isfinite(stats[term]) and stats[term] > 0 for term in ("loss", "loss_hidden", "loss_mmi"))


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"LOWMIDHGE'"]


@pytest.mark.parametrize("family", ["wav2vec2", "parakeet"])
def test_a_teacher_with_other_tokens(world, tmp_path, family):
    """Its best text, in the student's tokens, and its layers are learned from; its logits are not."""
    from distill.data.tokens import TextEncoder
    from distill.decode.token_text import tokens_to_text
    from distill.training import loss_terms
    from distill.training.teacher_targets import TeacherSource

    write_recogniser(tmp_path / "hf", family, LETTERS, num_hidden_layers=4)
    config = changed(STUDENT, distill_conf={"beta": 1.0, "target": "pseudo"})
    stages_7_and_8(world, family, tmp_path, config, "--own_tokens")
    loaded = load_network(tmp_path / "exp")
    assert loaded.token_list[:2] == ["<blank>", "<unk>"] and "w" in loaded.token_list  # in the case of the student's
    assert loaded.config["token_type"] == ("bpe" if family == "parakeet" else "char")
    options = ["--teacher", str(tmp_path / "exp"), "--max_epoch", "1", *options_of(world, tmp_path / "targets")]
    trained = world.train(f"others of {family}".replace(" ", "_"), config, *options)
    stats = torch.load(trained / "checkpoint.pth", weights_only=False)["reporter"]["stats"][1]["train"]
    assert (
        all(math.isfinite(stats[term]) for term in ("loss", "loss_hidden", "loss_mmi")) and "loss_logits" not in stats
    )

    encode = TextEncoder(TOKENS, "word", None)
    assert encode("low, high MID Low") == [TOKENS.index(word) for word in ("high", "mid", "low")]
    conf, student = DistillConf(**config["distill_conf"]), load_network(trained).network
    source = TeacherSource(str(tmp_path / "exp"), None, student, conf, TOKENS, encode)
    space = "▁" if family == "parakeet" else "<space>"
    spoken = ["<blank>", "l", "l", "<blank>", "o", "w", space, "g", space, "m", "i", "<blank>", "d"]  # low g mid
    ids = torch.tensor([[loaded.token_list.index(token) for token in spoken]])
    logits = torch.nn.functional.one_hot(ids, len(loaded.token_list)).float()
    targets = source.targets(torch.zeros(1, 16000), torch.tensor([16000]), {})
    targets.logits, targets.lengths = logits, torch.tensor([len(spoken)])
    tokens, lengths = targets.best_sequence()
    assert tokens.tolist() == [[TOKENS.index("low"), TOKENS.index("mid")]] and lengths.tolist() == [2]
    assert tokens_to_text([loaded.token_list[i] for i in loss_terms.greedy_tokens(logits, targets.lengths)[0]],
                          loaded.config["token_type"]) == "low g mid"  # fmt: skip
    for section in ({}, {"beta": 1.0, "target": "posterior"}, {"beta": 1.0, "target": "pseudo", "nbest": 2}):
        with pytest.raises(UserError, match="its tokens are not this training's|are longer") as refusal:
            TeacherSource(str(tmp_path / "exp"), None, student, DistillConf(**section), TOKENS, encode)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="token list is not this training's"):
        TeacherSource(str(tmp_path / "exp"), None, student, conf, TOKENS)


def test_frames_of_logits_are_not_compared_with_longer_ones():
    """A configuration that would is refused in one line that names the cure; sequences and layers are compared."""
    for conf in (
        {},
        {"target": "posterior"},
        {"beta": 1.0, "target": "posterior"},
        {"beta": 1.0, "target": "frame_kl"},
    ):
        with pytest.raises(UserError, match=r"80 ms, are longer than the student's 20 ms.* target: pseudo") as refusal:
            check_frames_compared(DistillConf(**conf), 80, 20)
        assert "\n" not in str(refusal.value)
        check_frames_compared(DistillConf(**conf), 20, 20)
        check_frames_compared(DistillConf(**conf), 20, 40)
    for conf in ({"beta": 1.0, "target": "pseudo"}, {"beta": 1.0, "target": "transcript"}, {"alpha": 0.0}):
        check_frames_compared(DistillConf(**conf), 80, 20)
    with pytest.raises(UserError, match="do not fit"):
        check_frames_compared(DistillConf(), 30, 20)
