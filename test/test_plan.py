"""The plan's arithmetic against real networks and against sums done by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tiny_teachers import FAMILIES

from distill import plan
from distill.bin.plan import main
from distill.plan import LARGE, audio_hours, cnn, optimiser_steps, student_network, teacher_encoder, teacher_network

CONF = Path(__file__).parents[1] / "conf"
CONFIGS = [f"--{name}_config={CONF}/train_{name}.yaml" for name in ("teacher", "student_full", "student_stream")]


@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s4", "s5", "f"])
def test_students_cost_what_their_files_say(name):
    path = CONF / "students" / f"{name}.yaml"
    text = path.read_text()
    millions, gmacs = (float(x) for x in re.findall(r"([\d.]+) M parameters.*?([\d.]+) GMAC", text, re.DOTALL)[0])
    network = student_network(
        yaml.safe_load(text)["network_conf"], seconds=0
    )  # the files do not count attention scores
    assert network.macs / 1e9 == pytest.approx(gmacs, abs=0.03)
    assert network.weights / 1e6 == pytest.approx(millions, rel=0.02)


# Millions of weights as published (norms and biases are not counted), and frames of the layers per second
PUBLISHED = {"wav2vec2": (315, 50), "xls-r": (962, 50), "wavlm": (315, 50), "data2vec-audio": (93, 50),
             "wav2vec2-bert": (580, 50), "parakeet": (607, 12.5)}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_teachers_of_all_families(family, tmp_path, capsys):
    """Adopted from a directory in Hugging Face's format, of which only the configuration is read."""
    import transformers

    name, _, arguments, layers, _, _ = FAMILIES[family]
    kind = "ParakeetCTCConfig" if name == "Parakeet" else f"{name}Config"
    if name == "Parakeet":
        arguments = {"encoder_config": arguments}
    getattr(transformers, kind)(**arguments).save_pretrained(tmp_path)
    network = teacher_network(teacher_encoder({}, tmp_path)[0], 10)
    millions, frames = PUBLISHED[family]
    assert network.weights / 1e6 == pytest.approx(millions, rel=0.01)
    assert network.layers == layers
    outside_the_cnn = network.weights - (cnn([512] * 7)[1] if network.front_macs else 0)
    attention = layers * 2 * 10 * frames * network.width
    assert network.macs == pytest.approx(network.front_macs + frames * (outside_the_cnn + attention), rel=1e-6)
    assert network.front_macs == pytest.approx(0 if family in ("wav2vec2-bert", "parakeet") else 2.4543e9, rel=1e-3)
    assert "teacher" not in printed(capsys, "--teacher", str(tmp_path))
    main(["--hours", "1", *CONFIGS, "--teacher", str(tmp_path)])
    assert f"{network.weights / 1e6:.1f} M weights\n" in capsys.readouterr().out


def test_a_teacher_of_an_earlier_training(tmp_path, capsys):
    """Its own configuration counts, where the recipe's would be wav2vec2-large."""
    arguments = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"network": "teacher", "network_conf": {"config": arguments}, "token_list": ["<blank>", "a"]})
    )
    assert teacher_network(teacher_encoder({}, tmp_path)[0], 10).layers == 2
    main(["--hours", "1", *CONFIGS])
    assert "assumed to be wav2vec2-large, as pretrained/wav2vec2-large-lv60 is not here" in capsys.readouterr().out
    main(["--hours", "1", *CONFIGS, "--teacher", str(tmp_path)])
    assert "assumed to be" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--hours", "1", *CONFIGS, "--teacher", str(tmp_path / "none")])
    assert stopped.value.code == 2 and "none" in capsys.readouterr().err


def test_a_teacher_of_espnet():
    """A Conformer of 12 layers of width 256, whose feed-forward parts have 4 d f weights and its convolutions 3 d d."""
    d, f, kernel = 256, 1024, 31
    config = {
        **{"model_type": "espnet", "hidden_size": d, "num_hidden_layers": 12, "num_attention_heads": 4},
        **{"encoder": "conformer", "normalize": "global_mvn", "frontend_conf": {"hop_length": 160}},
        "encoder_conf": {"output_size": d, "attention_heads": 4, "num_blocks": 12, "linear_units": f,
                         "input_layer": "conv2d", "cnn_module_kernel": kernel, "macaron_style": True,
                         "rel_pos_type": "latest", "pos_enc_layer_type": "rel_pos",
                         "selfattention_layer_type": "rel_selfattn", "use_cnn_module": True},
    }  # fmt: skip
    network = teacher_network(config, 10)
    layer = 5 * d * d + 4 * d * f + 3 * d * d + kernel * d  # of its attention one d x d is for positions
    convolutions = 9 * d + 9 * d * d + d * (80 // 4 - 1) * d
    assert network.weights == 12 * layer + convolutions + d  # and its one output
    assert network.macs == 25 * (network.weights + 12 * 2 * 25 * 10 * d)
    assert (network.frames, network.layers, network.width, network.front_macs) == (25, 12, d, 0)


def test_attention_costs_more_on_longer_utterances():
    short, long = teacher_network(LARGE, 5), teacher_network(LARGE, 15)
    # 24 layers, 50 frames a second, 2 products with 500 more frames of 1024 numbers
    assert long.macs - short.macs == 24 * 50 * 2 * 500 * 1024


def test_hours_and_steps():
    by_batches = {"max_epoch": 4, "num_iters_per_epoch": 1000, "batch_bins": 16000 * 90, "accum_grad": 4}
    assert audio_hours(by_batches, hours=1) == 100
    assert optimiser_steps(by_batches, hours=1) == 1000
    by_passes = {"max_epoch": 6, "batch_bins": 16000 * 300, "accum_grad": 2}
    assert audio_hours(by_passes, hours=1000) == 6000
    assert optimiser_steps(by_passes, hours=1000) == 36000


def printed(capsys: pytest.CaptureFixture, *options: str) -> dict[str, list[float]]:
    names = {"teacher": "teacher", "student_full": "student_full", "student_stream": "student_stream"}
    configs = [word for option, file in names.items() for word in (f"--{option}_config", f"{CONF}/train_{file}.yaml")]
    main(["--hours", "100", "--test_hours", "10", *configs, *options])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return {row[-4].strip("| "): [float(x.replace(",", "")) for x in row[-3:]] for row in rows[1:] if len(row) >= 4}


def test_what_the_options_change(capsys):
    online = printed(capsys)
    assert online["formatted audio"][0] == round(110 * 3600 * 32000 * 0.54 / 1e9, 1)
    assert online["all"][1] == pytest.approx(sum(row[1] for name, row in online.items() if name != "all"), abs=0.3)
    stored = printed(capsys, "--teacher_targets", "stored")
    # 100 h of 50 frames a second, 12 layers of 1024 and 500 logits, 4 bytes each
    assert stored["targets, float32"][0] == round(100 * 3600 * 50 * (12 * 1024 + 500) * 4 / 1e9, 1)
    assert stored["student_full"][1] < online["student_full"][1]
    codes = printed(capsys, "--teacher_targets", "stored", "--target_dtype", "codebook")
    # 8 bytes of each layer, 8 kept logits of 3 bytes and one of the others; codewords of 2 bytes a number
    size = 100 * 3600 * 50 * (12 * 8 + 25) + 12 * 8 * 256 * 1024 * 2
    assert codes["targets, codebook"][0] == round(size / 1e9, 1)
    faster = printed(capsys, "--tflops", "40")
    assert faster["all"][1] == pytest.approx(online["all"][1] / 2, abs=0.3)


def test_all_streams_of_librispeech_as_codes_take_at_most_30_gb(capsys):
    assert (
        printed(capsys, "--hours", "960.9", "--teacher_targets", "stored", "--target_dtype", "codebook")[
            "targets, codebook"
        ][0]
        <= 30
    )


def test_a_checkpoint_within_the_epoch_is_counted():
    network = student_network(yaml.safe_load((CONF / "students/s3.yaml").read_text())["network_conf"], seconds=10)
    sizes = [
        plan.checkpoint_gb(network, {"keep_nbest_models": 5, **more}) for more in ({}, {"batches_per_checkpoint": 0})
    ]
    # Weights and AdamW's two moments, 4 bytes each
    assert sizes[0] - sizes[1] == pytest.approx(network.weights * 3 * 4 / 1e9)


def test_each_part_has_its_speed_and_says_where_it_is_from(capsys, monkeypatch):
    before = printed(capsys)
    monkeypatch.setitem(plan.RATES, "teacher, forward", plan.Rate(200.0, "measured on a card"))
    after = printed(capsys)
    assert after["teacher"] == before["teacher"]  # its training is another part
    # 100 h in each of 60 epochs, of which the teacher's forward pass is now ten times as fast
    hours = 2 * teacher_network(plan.LARGE, 10).macs * 6000 / 20e12
    assert before["student_full"][1] - after["student_full"][1] == pytest.approx(0.9 * hours, abs=0.1)
    main(
        [
            "--hours",
            "1",
            *(f"--{name}_config={CONF}/train_{name}.yaml" for name in ("teacher", "student_full", "student_stream")),
        ]
    )
    text = capsys.readouterr().out
    assert "- teacher, forward: 200 TFLOP/s effective of a GPU, measured on a card\n" in text
    assert text.count("TFLOP/s effective of a GPU, assumed\n") == 3
    main(
        [
            "--hours",
            "1",
            "--tflops",
            "40",
            *(f"--{name}_config={CONF}/train_{name}.yaml" for name in ("teacher", "student_full", "student_stream")),
        ]
    )
    assert capsys.readouterr().out.count("40 TFLOP/s effective of a GPU, given\n") == 4


def test_gpus_share_updates(capsys):
    """Up to accum_grad GPUs the audio of a teacher's training is the same, beyond it grows."""
    four, eight = (printed(capsys, "--ngpu", count)["teacher"][1] for count in ("4", "8"))
    assert printed(capsys, "--ngpu", "1")["teacher"][1] == four
    assert eight == pytest.approx(2 * four, rel=0.02)


def test_without_gpus_all_is_counted_in_core_hours(capsys):
    gpus, cores = printed(capsys), printed(capsys, "--ngpu", "0", "--cpu_gflops", "20")
    assert all(row[1] == 0 for row in cores.values())
    # 20 TFLOP/s of a GPU are a thousand cores of 20 GFLOP/s
    on_one_gpu = printed(capsys, "--ngpu", "1", "--tflops", "20")
    assert cores["student_full"][2] == pytest.approx(1000 * on_one_gpu["student_full"][1], rel=0.01)
    assert cores["recognition"] == gpus["recognition"]


def test_the_size_of_a_corpus_that_is_prepared(capsys, tmp_path):
    table = tmp_path / "utt2num_samples"
    table.write_text("".join(f"u{n} {16000 * 10}\n" for n in range(360)))
    configs = [f"--{n}_config={CONF}/train_{n}.yaml" for n in ("teacher", "student_full", "student_stream")]
    main(["--utt2num_samples", str(table), *configs])
    assert "1.0 h in 360 utterances of 10.0 s to train on, 10 h to test on" in capsys.readouterr().out
    tests = tmp_path / "tests"
    tests.write_text(f"t {16000 * 900}\n")
    main(["--utt2num_samples", str(table), "--test_utt2num_samples", str(tests), str(tests), "--no_kd", *configs])
    printed = capsys.readouterr().out
    assert " 0.5 h to test on" in printed
    assert [line.split(" | ")[1] for line in printed.splitlines() if line.startswith("| 10 | ")] == [
        "student_full",
        "student_full_no_kd",
    ]
    for options, message in (([], "run stages 1 to 3"), (["--utt2num_samples", str(tmp_path)], "run stage 3 again")):
        with pytest.raises(SystemExit) as stopped:
            main([*options, *configs])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_configuration_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--hours", "1", "--teacher_config", str(tmp_path / "none.yaml")])
    assert "none.yaml: not found" in capsys.readouterr().err
