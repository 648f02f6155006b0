"""Real trainings through ESPnet's trainer, seconds long."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_training import STUDENT, TEACHER, TOKENS, changed, speech_of

from distill.checkpoints.load import checkpoint_path, load_network, network_shape
from distill.configuration import DistillConf
from distill.errors import UNSAFE, UserError
from distill.targets import store
from distill.training.distill_model import DistillModel
from distill.training.loss_terms import normalise_frames
from distill.training.teacher_targets import StoredFormat, TeacherTargets


def reporter(directory):
    return torch.load(directory / "checkpoint.pth", weights_only=False)["reporter"]["stats"]


def test_collect_stats_gives_lengths_and_builds_no_model(world):
    shapes = (world.root / "stats" / "train" / "speech_shape").read_text().split()
    lengths = dict(zip(shapes[::2], map(int, shapes[1::2]), strict=True))
    assert lengths == {p.stem: soundfile.info(p).frames for p in (world.root / "train").glob("*.wav")}
    texts = (world.root / "stats" / "train" / "text_shape").read_text().split()
    assert all(int(n) == len(world.texts[u]) for u, n in zip(texts[::2], texts[1::2], strict=True))


def test_teacher_trains_averages_and_loads(world, teacher):
    stats = reporter(teacher)
    assert set(stats) == {1, 2}
    assert {"loss", "loss_ctc", "ter"} <= set(stats[2]["valid"])
    assert stats[2]["train"]["loss"] < stats[1]["train"]["loss"]
    assert checkpoint_path(teacher).name == "valid.loss.ave.pth"
    loaded = load_network(teacher)
    assert loaded.token_list == TOKENS and not loaded.network.training
    assert network_shape(teacher) == (4, 24, 20, 20)
    average = torch.load(teacher / "valid.loss.ave.pth", weights_only=True)
    key = next(k for k in average if k.endswith("weight"))
    parts = [torch.load(teacher / f"{e}epoch.pth", weights_only=True)[key] for e in (1, 2)]
    torch.testing.assert_close(loaded.network.state_dict()[key.removeprefix("network.")], sum(parts) / 2)


def test_options_of_the_command_line():
    from distill.training.distill_task import DistillTask

    parser = DistillTask.get_parser()
    options = ["--network_conf", "layers=3", "--network_conf", "front_end_conf.channels=8", "--teacher", "none"]
    args = parser.parse_args([*options, "--init", "none", "--second_teacher", "none", "--chunk_conf", "hop=0.5"])
    assert args.network_conf == {"layers": 3, "front_end_conf": {"channels": 8}} and args.chunk_conf == {"hop": 0.5}
    assert args.teacher is None and args.init is None and args.second_teacher is None
    assert args.keep_nbest_models == [5] and args.num_att_plot == 0


def test_a_teacher_from_hugging_face_no_longer_needs_its_directory(world):
    import shutil

    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(1)
    model = Wav2Vec2Model(Wav2Vec2Config(**TEACHER["network_conf"]["config"]))
    source = world.root / "hugging_face"
    model.save_pretrained(source)
    config = changed(TEACHER, network_conf={"config": str(source), "freeze_cnn": True}, optim_conf={"lr": 0.0})
    trained = world.train("teacher_hf", config, "--max_epoch", "1")
    shutil.rmtree(source)
    loaded = load_network(trained)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.network.encoder.state_dict()[key], value, msg=key)
    assert network_shape(trained) == (4, 24, 20, 20)


def test_a_training_whose_teacher_runs_in_it_is_resumed_exactly(world, teacher):
    """Loading the teacher draws no random number: a resumed training would else have others than an undisturbed one."""
    config = changed(STUDENT, network_conf={"dropout": 0.1})
    whole = world.train("online_whole", config, "--teacher", str(teacher))
    world.train("online_resumed", config, "--teacher", str(teacher), "--max_epoch", "1")
    resumed = world.train("online_resumed", config, "--teacher", str(teacher))
    expected, found = (torch.load(path / "2epoch.pth", weights_only=True) for path in (whole, resumed))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_teachers_body_stays_as_it_was_while_its_prediction_layer_is_trained(world, teacher):
    """As conf/train_teacher_init.yaml says."""
    shipped = yaml.safe_load((Path(__file__).parents[2] / "conf/train_teacher_init.yaml").read_text())
    config = {**TEACHER, "freeze_param": shipped["freeze_param"]}
    tuned = world.train("teacher_head", config, "--init", str(teacher), "--max_epoch", "1")
    before, after = load_network(teacher).network.state_dict(), load_network(tuned).network.state_dict()
    changed_keys = {key for key, value in before.items() if not torch.equal(after[key], value)}
    assert changed_keys == {"output.weight", "output.bias"}


@pytest.fixture(scope="session")
def teacher_mmi(world, teacher):
    config = changed(TEACHER, distill_conf={"target": "transcript", "weight_ctc": 0.5}, optim_conf={"lr": 0.0})
    return world.train("teacher_mmi", config, "--init", str(teacher), "--max_epoch", "1")


def test_lfmmi_and_init_for_a_teacher(world, teacher, teacher_mmi):
    stats = reporter(teacher_mmi)[1]["valid"]
    assert stats["loss"] == pytest.approx(stats["loss_mmi"] + 0.5 * stats["loss_ctc"], rel=1e-4)
    before, after = load_network(teacher).network.state_dict(), load_network(teacher_mmi).network.state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, msg=key)


def test_a_teacher_that_masks_time_begins_with_one_that_does_not_and_the_other_way_round(world, teacher):
    """As in conf/from_scratch: only a teacher that masks has the vector of masked frames."""
    masks = changed(TEACHER, distill_conf={"target": "none", "weight_ctc": 1.0})
    masks["network_conf"]["config"]["mask_time_prob"] = 0.05
    first = world.train("teacher_masks", masks, "--init", str(teacher), "--max_epoch", "1", "--optim_conf", "lr=0.0")
    second = world.train("teacher_again", TEACHER, "--init", str(first), "--max_epoch", "1", "--optim_conf", "lr=0.0")
    states = [load_network(directory).network.state_dict() for directory in (teacher, first, second)]
    assert states[1].keys() - states[0].keys() == {"encoder.masked_spec_embed"} and states[2].keys() == states[0].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, msg=key)
        torch.testing.assert_close(states[2][key], value, msg=key)


def test_online_and_stored_targets_train_the_same(world, teacher, stored, online):
    other = world.train("student_stored", STUDENT, "--teacher", str(teacher), *stored)
    a, b = reporter(online), reporter(other)
    for epoch in (1, 2):
        for part in ("train", "valid"):
            for name in ("loss", "loss_hidden", "loss_logits", "loss_mmi"):
                assert a[epoch][part][name] == pytest.approx(b[epoch][part][name], rel=1e-4, abs=1e-4), name
    s = a[1]["valid"]
    expected = 0.2 * s["loss_hidden"] + 0.8 * (0.8 * s["loss_mmi"] + 0.2 * s["loss_logits"])
    assert s["loss"] == pytest.approx(expected, rel=1e-4)
    assert (world.root / "student_online" / "tensorboard" / "valid").is_dir()


def test_a_configuration_with_streams_of_targets_gets_no_second_ones(world, stored):
    from argparse import Namespace

    from distill.training.distill_task import add_target_streams

    streams = [("wav.scp", "speech", "sound")]
    paths = {f"{part}_targets": str(world.root / "targets" / part) for part in ("train", "valid")}
    args = Namespace(train_data_path_and_name_and_type=streams, valid_data_path_and_name_and_type=streams, **paths)
    for _ in range(2):
        add_target_streams(args)
        for part in ("train", "valid"):
            entries = getattr(args, f"{part}_data_path_and_name_and_type")
            names = ["speech", "teacher_hidden_02", "teacher_hidden_04", "teacher_logits"]
            assert [name for _, name, _ in entries] == names
            assert {path for path, _, _ in entries[1:]} == {paths[f"{part}_targets"]}


def test_no_teacher_in_the_checkpoint_and_no_projection_in_the_network(online):
    state = torch.load(online / "latest.pth", weights_only=True)
    assert {key.split(".")[0] for key in state} == {"network", "criterion"}
    student = load_network(online).network
    assert {f"network.{key}" for key in student.state_dict()} == {k for k in state if k.startswith("network.")}
    assert state["criterion.projections.0.weight"].shape == (24, 16)
    optimiser = torch.load(online / "checkpoint.pth", weights_only=False)["optimizers"][0]
    assert len(optimiser["param_groups"][0]["params"]) == len(list(student.parameters())) + 4


def test_loss_terms_match_numpy(world, teacher, online):
    """The validation terms recomputed from the saved student and teacher, utterance by utterance without padding."""
    state = torch.load(online / "2epoch.pth", weights_only=True)
    student, teach = load_network(online).network, load_network(teacher).network
    student.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    hidden, logits = [], []
    padded, lengths = speech_of(world)
    for x, n in zip(padded, lengths, strict=True):
        with torch.no_grad():
            s, t = (net(x[None, :n], torch.tensor([n])) for net in (student, teach))
        terms = []
        for i, layer in enumerate((2, 4)):
            weight, bias = (
                state[f"criterion.projections.{i}.weight"].numpy(),
                state[f"criterion.projections.{i}.bias"].numpy(),
            )
            target = t.hidden[layer - 1][0].numpy()
            target = (target - target.mean(1, keepdims=True)) / np.sqrt(target.var(1, keepdims=True) + 1e-5)
            terms.append(((s.hidden[i][0].numpy() @ weight.T + bias - target) ** 2).mean())
        hidden.append(np.mean(terms))
        difference = (s.logits - t.logits)[0].numpy()
        logits.append(((difference - difference.mean(1, keepdims=True)) ** 2).mean())
    stats = reporter(online)[2]["valid"]
    assert stats["loss_hidden"] == pytest.approx(np.mean(hidden), rel=1e-3)
    assert stats["loss_logits"] == pytest.approx(np.mean(logits), rel=1e-3)


class RunsCode:
    """What a pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("variable", UNSAFE)
def test_a_checkpoint_runs_no_code_whatever_the_environment_allows(world, monkeypatch, capsys, tmp_path, variable):
    output = world.train("teacher_with_code", TEACHER, "--max_epoch", "1")
    torch.save({"model": RunsCode(tmp_path / "ran")}, output / "checkpoint.pth")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SystemExit) as end:
        world.train("teacher_with_code", TEACHER, "--max_epoch", "2")
    assert end.value.code == 2 and not (tmp_path / "ran").exists() and variable not in os.environ
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note:", "error:"))]
    assert lines[0] == f"note: {variable} is ignored: it would let a checkpoint run code"
    assert len(lines) == 2 and f"{output}/checkpoint.pth" in lines[1] and "could run code" in lines[1]
    shutil.rmtree(output)


def test_resume_goes_on_as_if_never_stopped(world, teacher, online):
    options = ("--teacher", str(teacher))
    world.train("student_resumed", STUDENT, *options, "--max_epoch", "1")
    resumed = world.train("student_resumed", STUDENT, *options, "--max_epoch", "2")
    assert set(reporter(resumed)) == {1, 2}
    assert reporter(resumed)[2]["valid"]["loss"] == pytest.approx(reporter(online)[2]["valid"]["loss"], rel=1e-4)


def test_stage_2_starts_from_the_student_and_streams(world, teacher, online, stored):
    config = changed(STUDENT, chunk_conf={"chunk_ms": [160, 320], "full_prob": 0.5, "left_ms": 640, "hop": 0.5})
    config["augment_conf"] = {"gain_db": 6, "noise_snr_db": [10, 40], "prob": 0.5}
    config["optim_conf"] = {"lr": 0.0}
    stream = world.train("student_stream", config, "--init", str(online), "--teacher", str(teacher), *stored)
    before, after = load_network(online).network.state_dict(), load_network(stream).network.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, msg=key)
    assert reporter(stream)[1]["valid"]["loss_logits"] != reporter(online)[2]["valid"]["loss_logits"]


def test_a_student_begins_with_one_of_other_tokens(world, online, tmp_path, capfd):
    """Tokens that both have keep their outputs in every logit frame, wherever they are in the two lists."""
    source = tmp_path / "of_other_tokens"
    shutil.copytree(online, source)
    config = yaml.safe_load((source / "config.yaml").read_text())
    others = [TOKENS[0], "ä", *reversed(TOKENS[2:-1]), "ö", TOKENS[-1]]
    config["token_list"] = others
    (source / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    path = checkpoint_path(source)
    state = torch.load(path, weights_only=True)
    frames = len(state["network.output.bias"]) // len(TOKENS)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(frames, len(others), state["network.output.weight"].shape[1], generator=generator)
    state["network.output.weight"] = rows.flatten(0, 1)
    state["network.output.bias"] = torch.arange(frames * len(others), dtype=torch.float32)
    torch.save(state, path)
    still = changed(STUDENT, optim_conf={"lr": 0.0})
    options = ("--init", str(source), "--teacher", str(online), "--max_epoch", "1")
    trained = world.train("student_of_other_tokens", still, *options)
    padded, lengths = speech_of(world)
    with torch.no_grad():
        before = load_network(source).network(padded, lengths).logits
        after = load_network(trained).network(padded, lengths).logits
    shared = [token for token in TOKENS if token in others]
    assert len(shared) == len(TOKENS) - 1 and frames > 0
    there, here = [others.index(token) for token in shared], [TOKENS.index(token) for token in shared]
    torch.testing.assert_close(after[..., here], before[..., there])
    config["token_list"] = [TOKENS[0], *(str(number) for number in range(len(others) - 2)), TOKENS[-1]]
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        world.train("student_of_no_common_tokens", still, *options)
    assert f"has 2 of this training's {len(TOKENS)} tokens" in capfd.readouterr().err


def test_stage_2_from_the_student_as_its_teacher_maps_layers_one_to_one(world, online):
    stream = world.train(
        "student_from_student",
        changed(STUDENT, optim_conf={"lr": 0.0}),
        "--init",
        str(online),
        "--teacher",
        str(online),
    )
    stats = reporter(stream)[1]["valid"]
    assert torch.load(stream / "latest.pth", weights_only=True)["criterion.projections.0.weight"].shape == (16, 16)
    assert stats["loss_logits"] == pytest.approx(0, abs=1e-6)  # the same weights, full context
    assert stats["loss_mmi"] == pytest.approx(0, abs=1e-4)


def test_delayed_targets_ask_for_what_the_teacher_knew_before(world, teacher, online):
    """A student that says everything 40 ms after its teacher has no loss at all."""
    conf = DistillConf(alpha=0.5, beta=0.5, target="posterior", graph=str(world.root / "den.npz"), target_delay_ms=40)
    student = load_network(online).network
    model = DistillModel(student, TOKENS, conf, teacher=str(online))
    padded, lengths = speech_of(world)
    output = student(padded, lengths)
    criterion = model.criterion
    layers = {i: normalise_frames(criterion.projections[i - 1](h)).roll(-2, 1) for i, h in enumerate(output.hidden, 1)}
    targets = [TeacherTargets(layers, output.hidden_lengths, output.logits.roll(-2, 1), output.lengths)]
    for projection in criterion.projections:
        projection.register_forward_hook(lambda _module, _input, output: normalise_frames(output))
    text = torch.zeros(len(padded), 1), torch.ones(len(padded))
    _, stats = criterion(output, targets, *text, [])
    for name, value in stats.items():
        assert value.item() == pytest.approx(0, abs=1e-5), name
    criterion.frame_delay = criterion.hidden_delay = 0
    _, stats = criterion(output, targets, *text, [])
    assert set(stats) == {"loss_hidden", "loss_logits", "loss_mmi"} and min(stats.values()) > 1e-4


def criterion_of(world, online, **conf):
    """The loss, and output and targets of a student that is its own teacher."""
    conf = DistillConf(**{"alpha": 1.0, "beta": 0.5, "target": "none", "graph": str(world.root / "den.npz"), **conf})
    student = load_network(online).network
    model = DistillModel(student, TOKENS, conf, teacher=str(online))
    output = student(*speech_of(world))
    targets = TeacherTargets({}, output.hidden_lengths, output.logits, output.lengths)
    text = torch.full((len(output.lengths), 2), 2), torch.full((len(output.lengths),), 2)
    return model.criterion, output, targets, text


def test_a_constant_added_to_the_logits_of_a_frame_costs_nothing(world, online):
    criterion, output, targets, text = criterion_of(world, online)
    shifted = output._replace(logits=output.logits + torch.randn(*output.logits.shape[:2], 1))
    assert criterion(shifted, [targets], *text, [])[1]["loss_logits"].item() < 1e-8


def test_stage_2_keeps_the_trained_projections_of_stage_1(world, teacher, online):
    still = changed(STUDENT, optim_conf={"lr": 0.0})
    path = world.train("kept_projections", still, "--init", str(online), "--teacher", str(teacher), "--max_epoch", "1")
    before = torch.load(checkpoint_path(online), weights_only=True)
    after = torch.load(path / "latest.pth", weights_only=True)
    names = [name for name in before if name.startswith("criterion.projections.")]
    assert len(names) == 4
    for name in names:
        torch.testing.assert_close(after[name], before[name])


def test_a_layer_map_is_for_the_first_teacher_alone(world, teacher, online):
    conf = DistillConf(alpha=0.5, layer_map=[3, 4], target="none")
    model = DistillModel(load_network(online).network, TOKENS, conf, teacher=str(teacher), second_teacher=str(online))
    assert [source.layer_map for source in model.teachers] == [[3, 4], [1, 2]]
    identity = model.criterion.projections[2]  # of the student's own layers, which are its own to begin with
    assert torch.equal(identity.weight, torch.eye(16)) and not identity.bias.any()


def test_a_student_without_a_teacher_may_begin_with_its_cnn(world, teacher):
    config = changed(STUDENT, distill_conf={"target": "transcript"}, optim_conf={"lr": 0.0})
    path = world.train("student_with_a_cnn", config, "--init", str(teacher), "--max_epoch", "1")
    student, source = load_network(path).network, load_network(teacher).network
    for name, value in source.encoder.feature_extractor.state_dict().items():
        torch.testing.assert_close(student.front_end.state_dict()[name], value)
    assert "loss_logits" not in reporter(path)[1]["valid"]


def test_two_teachers_count_alike(world, teacher, stored, online):
    """Stage 2 with both: terms are the means of what each teacher alone would give."""
    frozen = changed(STUDENT, optim_conf={"lr": 0.0}, distill_conf={"alpha": 1.0, "beta": 0.5, "target": "posterior"})
    start = ("--init", str(online), "--max_epoch", "1")
    alone = [
        reporter(world.train(f"student_of_{path.name}", frozen, *start, "--teacher", str(path)))[1]["valid"]
        for path in (teacher, online)
    ]
    both = world.train(
        "student_of_both", frozen, *start, "--teacher", str(teacher), *stored, "--second_teacher", str(online)
    )
    for name in ("loss", "loss_logits", "loss_mmi"):
        assert reporter(both)[1]["valid"][name] == pytest.approx(
            (alone[0][name] + alone[1][name]) / 2, rel=1e-3, abs=1e-6
        )
    hidden = changed(STUDENT, optim_conf={"lr": 0.0})
    path = world.train(
        "student_of_both_hidden", hidden, *start, "--teacher", str(teacher), "--second_teacher", str(online)
    )
    state = torch.load(path / "latest.pth", weights_only=True)
    shapes = [state[f"criterion.projections.{i}.weight"].shape for i in range(4)]
    assert shapes == [(24, 16)] * 2 + [(16, 16)] * 2  # the teacher's two layers, then the student's
    assert {key.split(".")[0] for key in state} == {"network", "criterion"}


@pytest.mark.parametrize("target", ["pseudo", "transcript", "frame_kl", "none"])
def test_other_targets(world, teacher, target):
    config = changed(STUDENT, distill_conf={"target": target, "alpha": 1.0})
    stats = reporter(world.train(f"student_{target}", config, "--teacher", str(teacher), "--max_epoch", "1"))[1][
        "valid"
    ]
    assert "loss_hidden" not in stats
    assert ("loss_mmi" in stats) == (target in ("pseudo", "transcript"))
    assert ("loss_kl" in stats) == (target == "frame_kl")
    weight = {"loss_mmi": 0.8, "loss_kl": 0.8, "loss_logits": 0.2}
    expected = sum(weight[name] * stats[name] for name in stats.keys() & weight.keys())
    assert stats["loss"] == pytest.approx(expected, rel=1e-4)


def test_fbank_student_at_half_the_teachers_frame_rate(world, teacher, stored):
    config = changed(STUDENT)
    config["network_conf"] = {**STUDENT["network_conf"], "front_end": "fbank", "front_end_conf": {}}
    stats = reporter(world.train("student_fbank", config, "--teacher", str(teacher), *stored, "--max_epoch", "1"))
    assert np.isfinite(stats[1]["valid"]["loss"]) and stats[1]["valid"]["loss_hidden"] > 0


def test_without_a_teacher_the_same_student_trains_on_transcripts(world):
    config = changed(STUDENT)
    config["network_conf"] = {**STUDENT["network_conf"]}
    config["network_conf"]["front_end_conf"] = {**STUDENT["network_conf"]["front_end_conf"], "freeze": True}
    out = world.train("student_no_kd", config, "--distill_conf", "target=transcript", "--max_epoch", "1")
    stats = reporter(out)[1]["train"]
    assert stats["loss"] == pytest.approx(stats["loss_mmi"]) and "loss_hidden" not in stats
    assert yaml.safe_load((out / "config.yaml").read_text())["network_conf"]["front_end_conf"]["freeze"] is False


def test_a_batch_without_a_finite_loss_changes_nothing_and_is_named(world, monkeypatch, capsys, caplog):
    from distill.training import distill_model

    real, calls = distill_model.loss_terms.ctc, []

    def sometimes(logits, *rest):
        calls.append(len(logits))
        return real(logits, *rest) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(distill_model.loss_terms, "ctc", sometimes)
    with caplog.at_level("WARNING"):
        out = world.train("not_finite", TEACHER, "--max_epoch", "1")
    (line,) = [r.message for r in caplog.records if "not finite" in r.message]
    assert "loss_ctc of train" in line and "(1 so far)" in line
    state = torch.load(out / "1epoch.pth", weights_only=True)
    assert all(bool(torch.isfinite(x).all()) for x in state.values())
    assert np.isfinite(reporter(out)[1]["train"]["loss"])
    monkeypatch.setattr(distill_model.loss_terms, "ctc", lambda logits, *rest: real(logits, *rest) * float("nan"))
    monkeypatch.setattr(distill_model, "MAX_NOT_FINITE", 2)
    with pytest.raises(SystemExit) as failure:
        world.train("never_finite", TEACHER, "--max_epoch", "2")
    assert failure.value.code == 2
    assert "no finite loss in 2 batches in a row, at last loss_ctc of train" in capsys.readouterr().err


def test_bad_input_is_one_line(world, teacher, teacher_mmi, online, stored, capsys):
    def fails(name, config, *options):
        with pytest.raises(SystemExit) as stop:
            world.train(name, config, *options)
        assert stop.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "needs a teacher" in fails("bad1", STUDENT)
    assert "no/where/config.yaml: not found" in fails("bad2", STUDENT, "--teacher", "no/where")
    frozen = {"front_end_conf": {"channels": [8] * 7, "freeze": True}}
    printed = fails("bad0", changed(STUDENT, network_conf=frozen), "--teacher", str(teacher))
    assert "freeze: nothing to freeze, the CNN: not copied" in printed and "conf/students/s5.yaml" in printed
    assert "'widht'" in fails("bad3", changed(STUDENT, network_conf={"widht": 3}), "--teacher", str(teacher))
    assert "does not fit the network" in fails(
        "bad4",
        changed(STUDENT, network_conf={"width": 32}),
        "--teacher",
        str(teacher),
        "--init",
        str(world.root / "student_online"),
    )
    for short, message in (
        (world.root / "train" / "text", "text: lacks 1 of 10"),
        (world.root / "targets" / "train" / "data" / "0001.idx", "0001.idx: not the lines that were written"),
    ):
        whole = short.read_bytes()
        try:
            short.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
            assert message in fails("bad5", STUDENT, "--teacher", str(teacher), *stored)
        finally:
            short.write_bytes(whole)
    assert "another teacher" in fails("bad6", STUDENT, "--teacher", str(teacher_mmi), *stored)
    without = fails("bad7", STUDENT, "--teacher", str(teacher), "--teacher_targets", "stored")
    assert "--train_targets is missing; extract targets (stage 8)" in without
    no_targets = ["--teacher_targets", "stored", "--train_targets", "no/targets", "--valid_targets", "no/targets"]
    printed = fails("bad8", STUDENT, "--teacher", str(teacher), *no_targets)
    assert "no/targets/manifest.json: not found; extract the targets first (stage 8)" in printed


def test_loading_refuses_what_does_not_fit(world, online, tmp_path):
    with pytest.raises(UserError, match="config.yaml: not found"):
        load_network(tmp_path)
    (tmp_path / "config.yaml").write_text((online / "config.yaml").read_text())
    with pytest.raises(UserError, match="holds no model"):
        load_network(tmp_path)
    state = torch.load(online / "latest.pth", weights_only=True)
    dropped = next(key for key in state if key.startswith("network."))
    del state[dropped]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match=f"{dropped.removeprefix('network.')} is missing"):
        load_network(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be read"):
        load_network(tmp_path)


def test_extraction_skips_complete_shards_and_goes_on_after_a_kill(
    world, teacher, stored, tmp_path, monkeypatch, capsys
):
    from distill.bin import extract_targets
    from distill.targets import shards, store

    monkeypatch.setattr(shards, "SHARD_UTTERANCES", 3)
    options = ["--teacher", str(teacher), "--wav_scp", str(world.root / "train" / "wav.scp"), "--output", str(tmp_path)]
    options += ["--layers", "2,4", "--num_jobs", "2"]
    extract_targets.main([*options, "--plan"])
    assert "of real time" not in capsys.readouterr().out
    monkeypatch.setattr("distill.targets.extract.MEASURED_MIN", 0)
    extract_targets.main([*options, "--plan"])
    assert "to be computed: 100 %" in (printed := capsys.readouterr().out) and "of real time" in printed
    extract_targets.main([*options, "--job", "1"])
    with pytest.raises(SystemExit):
        extract_targets.main([*options, "--merge"])
    (tmp_path / "data" / "0003.idx").unlink()  # as if killed in the middle of the third shard
    times = {p.stem: p.stat().st_mtime_ns for p in tmp_path.glob("data/*.ark")}
    assert set(times) == {"0001", "0003"}
    for job in ("1", "2"):
        extract_targets.main([*options, "--job", job])
    extract_targets.main([*options, "--merge"])
    assert (tmp_path / "data/0001.ark").stat().st_mtime_ns == times["0001"]
    assert (tmp_path / "data/0003.ark").stat().st_mtime_ns != times["0003"]
    for name in ("hidden_02", "hidden_04", "logits"):
        actual, reference = (store.read_targets(d, name) for d in (tmp_path, world.root / "targets" / "train"))
        assert sorted(actual) == sorted(reference)
        for utterance in actual:
            np.testing.assert_allclose(actual[utterance], reference[utterance], atol=2e-4)


@pytest.mark.parametrize(
    ("damage", "option", "expected"),
    [
        (lambda ark: ark.write_bytes(ark.read_bytes()[:-1]), "--check", "bytes instead of"),
        (lambda ark: ark.unlink(), "--check", "missing instead of"),
        (lambda ark: flip_a_bit(ark, 100), "--verify", "CRC-32"),
    ],
)
def test_damaged_targets_are_named_and_made_again(
    world, teacher, tmp_path, monkeypatch, capsys, damage, option, expected
):
    from distill.bin import extract_targets
    from distill.targets import shards

    monkeypatch.setattr(shards, "SHARD_UTTERANCES", 3)
    options = ["--teacher", str(teacher), "--wav_scp", str(world.root / "train" / "wav.scp"), "--output", str(tmp_path)]
    options += ["--layers", "2,4"]
    extract_targets.main(options)
    extract_targets.main([*options, "--verify"])
    before = {path: path.read_bytes() for path in sorted(tmp_path.glob("data/*.ark"))}
    times = {path: path.stat().st_mtime_ns for path in before}
    broken = tmp_path / "data/0002.ark"
    damage(broken)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        extract_targets.main([*options, option])
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(broken) in message and expected in message
    extract_targets.main(options)
    extract_targets.main([*options, "--verify"])
    assert {path: path.read_bytes() for path in before} == before
    assert {path.stem for path in before if path.stat().st_mtime_ns != times[path]} == {"0002"}


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_two_processes_train_as_one_does(world, teacher):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = world.command("student_ddp", STUDENT, "--teacher", str(teacher), "--dist_backend", "gloo")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617"]
    done = subprocess.run(
        [*launch, "-m", "distill.bin.train", *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = world.root / "student_ddp"
    alone = world.train("student_alone", STUDENT, "--teacher", str(teacher))
    actual, expected = reporter(out), reporter(alone)
    assert set(actual) == set(expected) == {1, 2}
    for epoch in expected:
        for part, name in itertools.product(("train", "valid"), ("loss", "loss_hidden", "loss_logits", "loss_mmi")):
            loss, alone_loss = actual[epoch][part][name], expected[epoch][part][name]
            assert loss == pytest.approx(alone_loss, rel=1e-3), (epoch, part, name)
    weights, weights_alone = (load_network(directory).network.state_dict() for directory in (out, alone))
    for name in weights:
        torch.testing.assert_close(weights[name], weights_alone[name], rtol=1e-2, atol=1e-4)


FBANK = {**STUDENT, "network_conf": {**STUDENT["network_conf"], "front_end": "fbank", "front_end_conf": {}}}


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-5), ("float16", 1e-3), ("compressed", 1e-2)])
@pytest.mark.parametrize("config", [STUDENT, FBANK], ids=["20ms", "40ms"])
@pytest.mark.parametrize(
    "target", [{}, {"posterior_top_k": 2}, {"target": "pseudo", "nbest": 3}], ids=["posterior", "top_k", "nbest"]
)
def test_first_loss_with_stored_targets_is_that_of_an_online_one(
    world, teacher, tmp_path, config, dtype, apart, target
):
    """Utterance by utterance, so that padding is no part of it."""
    from distill.bin import extract_targets
    from distill.checkpoints.load import build_network

    graph = world.root / "den.npz"
    config = changed(config, distill_conf={**target, "graph": str(graph)})
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(config))
    wav_scp = world.root / "valid/wav.scp"
    extract_targets.main(
        [
            *("--teacher", str(teacher), "--wav_scp", str(wav_scp), "--output", str(tmp_path / "targets")),
            *("--student_config", str(tmp_path / "student.yaml"), "--graph", str(graph), "--dtype", dtype),
        ]
    )
    manifest = store.read_manifest(tmp_path / "targets")
    hidden_ms = 40 if config["network_conf"]["front_end"] == "fbank" else 20
    assert (manifest["frame_ms"], manifest["hidden_ms"]) == (20, hidden_ms)
    torch.manual_seed(0)
    network, conf = build_network(config, len(TOKENS)), DistillConf(**config["distill_conf"])
    online = DistillModel(network, TOKENS, conf, teacher=str(teacher)).eval()
    stored = DistillModel(network, TOKENS, conf, teacher=str(teacher), stored=StoredFormat(hidden_ms)).eval()
    stored.criterion.load_state_dict(online.criterion.state_dict())
    streams = {name: store.read_targets(tmp_path / "targets", name) for name in manifest["streams"]}
    assert ("posterior" in streams, "nbest" in streams) == ("posterior_top_k" in target, "nbest" in target)
    for utterance, path in store.read_two_columns(wav_scp).items():
        audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        batch = {f"teacher_{name}": torch.from_numpy(x[utterance].copy())[None] for name, x in streams.items()}
        batch |= {f"{name}_lengths": torch.tensor([x.shape[1]]) for name, x in batch.items()}
        text, lengths = torch.tensor([[2]]), torch.tensor([1])
        results = []
        for model, extra in ((online, {}), (stored, batch)):
            with torch.no_grad():
                results.append(model(audio, torch.tensor([audio.shape[1]]), text, lengths, **extra)[1])
        for name in ("loss", "loss_hidden", "loss_logits", "loss_mmi"):
            assert results[1][name].item() == pytest.approx(results[0][name].item(), rel=apart, abs=apart), name
