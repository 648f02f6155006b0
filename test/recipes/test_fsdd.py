"""The FSDD recipe for real, from recordings to results, with networks and corpus so small that it takes minutes.

What is tested is that the stages fit together, skip, resume and refuse; not how well such networks recognise.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_recipe import FSDD, ROOT, SIZES, make_recipe, run_recipe

OPTIONS = ["--threads", "2", "--latencies", "160 480 full", "--fixed_chunks", "320", "--local_data_opts", SIZES]

pytestmark = pytest.mark.usefixtures("digits_made")


def run(recipe: Path, *options: str, status: int = 0, **variables: str) -> str:
    """Run the recipe with this file's options; its output."""
    return run_recipe(recipe, *OPTIONS, *options, status=status, **variables)


@pytest.fixture(scope="module")
def recipe(digits_made: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("egs2") / "fsdd" / "asr_distill1"
    make_recipe(path)
    return path


def test_stages_1_to_13(recipe: Path) -> None:
    run(recipe, "--stage", "1", "--stop_stage", "9")
    assert json.loads((recipe / "dump/targets/train/manifest.json").read_text())["utterances"] == 80
    run(recipe, "--stage", "10", "--stop_stage", "10")  # on what the earlier stages left
    run(recipe)
    rows = json.loads((recipe / "exp/results.json").read_text())["rows"]
    systems = {(row["system"], row["latency_ms"]) for row in rows}
    assert systems == {
        ("teacher", None),
        ("student_full", None),
        ("student_full_no_kd", None),
        ("student_stream", 160),
        ("student_stream", 480),
        ("student_stream", None),
        ("student_stream_fixed320", 320),
    }
    assert {row["test_set"] for row in rows} == {"test", "test_isolated", "test_unseen"}
    for row in rows:
        assert row["sub"] + row["del"] + row["ins"] == round(row["wer"] * row["words"] / 100)
    assert "relative loss" in (recipe / "exp/RESULTS.md").read_text()


def test_second_run_does_nothing_but_say_so(recipe: Path) -> None:
    output = run(recipe)
    assert output.count("done before and unchanged, skipped") == output.count(" stage ") // 2
    assert "training in" not in output


def test_a_teacher_that_recognises_nothing_stops_the_run(recipe: Path) -> None:
    only_7 = ["--stage", "7", "--stop_stage", "7"]
    output = run(recipe, *only_7, "--allow_bad_teacher", "false", status=2)
    assert "of the words wrong, more than 60 %, and its students will hardly be better" in output
    assert "--allow_bad_teacher true" in output.splitlines()[-1]
    output = run(recipe, *only_7)
    assert "warning: exp/teacher/decode_full/valid: " in output and "training in" not in output


def test_language_model_decoders_beside_the_greedy_ones(recipe: Path) -> None:
    only = ["--stage", "12", "--stop_stage", "13", "--decoders", "greedy beam wfst", "--decode_options", "--beam 4"]
    only += ["--no_kd", "false", "--fixed_chunks", ""]
    output = run(recipe, *only)
    assert "recognise the test sets with teacher\n" in output and "wfst" in output
    assert output.count("done before and unchanged, skipped") == 3  # greedy decoding of three systems
    rows = json.loads((recipe / "exp/results.json").read_text())["rows"]
    by_decoder = {decoder: [row for row in rows if row["decoder"] == decoder] for decoder in ("greedy", "beam", "wfst")}
    assert (len(by_decoder["beam"]), len(by_decoder["wfst"])) == (15, 15)  # two systems and three latencies, three sets
    tuned = json.loads((recipe / "exp/student_stream/tuned.json").read_text())
    assert tuned["beam"]["set"].endswith("/valid") and tuned["beam"]["chunk_ms"] == 480
    for decoder in ("beam", "wfst"):
        for row in by_decoder[decoder]:
            assert row["lm"] == "exp/lm/words.arpa" and row["rtf"] > 0
            if row["system"] == "student_stream":
                assert row["lm_weight"] == tuned[decoder]["lm_weight"]
    assert "| student_stream | 480 ms | wfst |" in (recipe / "exp/RESULTS.md").read_text()
    folder = recipe / "exp/student_stream/decode_480ms_beam/test"
    assert (folder / "score_wer/hyp.ctm").is_file() and (folder / "score_wer/ref.stm").is_file()
    again = run(recipe, *only)
    assert again.count("done before and unchanged, skipped") == again.count(" stage ") // 2


def test_ablation(recipe: Path) -> None:
    """Students of stage 1, two with the teacher's layers, stored once, one without a teacher, and two of stage 2."""
    script = (FSDD / "run.sh").read_text()
    data = f'--local_data_opts "{SIZES}"'
    (recipe / "run.sh").write_text(script.replace('"$@"', f'--allow_bad_teacher true {data} "$@"'))
    shutil.copy(FSDD / "run_ablation.sh", recipe)
    command = ["./run_ablation.sh", "--seeds", "0", "--full_epochs", "1", "--stream_epochs", "1", "--conditions"]
    printed = ""
    every = "default no_teacher frame_kl alpha_0.8 alpha_0.2 frames_20 stream stream_20"
    for conditions, status in (("stream", 2), (every, 0), ("stream stream_20 alpha_0.8", 0)):
        done = subprocess.run([*command, conditions], cwd=recipe, capture_output=True, text=True)
        printed = done.stdout + done.stderr
        assert done.returncode == status, printed[-4000:]
    assert "training in" not in printed and "done before and unchanged, skipped" in printed
    table = (recipe / "exp_ablation/ABLATION.md").read_text()
    for what in ("the recipe's stage 1", "no teacher", "KL of frames for LF-MMI", "the recipe's stage 2"):
        assert table.count(what) == 1
    assert [path.name for path in recipe.glob("dump/targets_*")] == ["targets_hidden_of_exp"]
    assert "kernel: 31" in (recipe / "exp_ablation/stream_20_seed0/student_stream/config.yaml").read_text()
    log = (recipe / "exp_ablation/frame_kl_seed0/student_full/train.log").read_text()
    assert "loss_kl=" in log and "1/1epoch started" in log
    shutil.copy(FSDD / "run.sh", recipe)


def test_latency_of_every_chunk_length(recipe: Path) -> None:
    run(recipe, "--stage", "14", "--stop_stage", "14")
    bench = json.loads((recipe / "exp/bench.json").read_text())
    rows = bench["latency"]
    assert [row["chunk_ms"] for row in rows] == [160, 480]
    of_all = [(row["system"], row["latency_ms"]) for row in bench["speed"] if row["runtime"] == "torch"]
    assert of_all == [("teacher", None), ("student_full", None), ("student_stream", 160), ("student_stream", 480)]
    assert all(row["compute_p99_ms"] >= row["compute_median_ms"] > 0 for row in rows)


def test_export_says_what_torch_says(recipe: Path) -> None:
    run(recipe, "--stage", "15", "--stop_stage", "15")
    (exported,) = json.loads((recipe / "exp/export/parity.json").read_text())["exports"]
    assert exported["float32"]["max_log_prob_difference"] < 1e-3
    for kind in ("float32", "sherpa_float32"):
        assert exported[kind]["identical_texts"] == exported[kind]["utterances"] > 0
        assert (recipe / "exp/export" / exported[kind]["file"]).is_file()
    for kind in ("int8", "sherpa_int8"):
        assert (recipe / "exp/export" / exported[kind]["file"]).is_file() == exported["int8_offered"]


def test_report_page_and_packed_model(recipe: Path) -> None:
    only = ["--stage", "16", "--stop_stage", "16", "--pack_options", "--license cc-by-sa-4.0"]
    run(recipe, *only)
    page = (recipe / "exp/report/index.html").read_text()
    for section in ("results", "latency", "training", "layers", "errors", "about"):
        assert f'<section id="{section}">' in page
    assert str(recipe) not in page
    packed = recipe.parent / "elsewhere.zip"
    shutil.copy(recipe / "exp/student_stream.zip", packed)
    wav = recipe / next((recipe / "data/test/wav.scp").open()).split()[1]
    printed = []
    for model in (packed, recipe / "exp/student_stream"):
        command = [sys.executable, "-m", "distill.bin.transcribe", "--model", model, str(wav)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=recipe.parent, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1] != ""
    assert "stage 16: done before and unchanged" in run(recipe, *only)


def test_a_second_run_in_the_same_directory_is_refused(recipe: Path) -> None:
    import fcntl

    with open(recipe / "exp/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "exp: another run is at work there" in run(recipe, status=2)
    run(recipe)


def test_no_teacher_in_the_students_checkpoint(recipe: Path) -> None:
    import torch

    for system in ("student_full", "student_stream"):
        state = torch.load(recipe / "exp" / system / "2epoch.pth", weights_only=True)
        assert state and not [key for key in state if "teacher" in key or "wav2vec" in key or "encoder" in key]


def test_every_loss_term_is_logged_by_name(recipe: Path) -> None:
    log = (recipe / "exp/student_stream/train.log").read_text()
    for term in ("loss_hidden", "loss_logits", "loss_mmi"):
        assert f"{term}=" in log
        assert (recipe / f"exp/student_stream/images/{term}.png").is_file()


def test_targets_stay_while_the_student_wants_the_same_layers(recipe: Path) -> None:
    config = (recipe / "conf/train_student_full.yaml").read_text()
    (recipe / "conf/other_rate.yaml").write_text(config.replace("lr: ", "lr: 1"))
    assert config != (recipe / "conf/other_rate.yaml").read_text()
    only = ["--stage", "8", "--stop_stage", "8", "--student_full_config", "conf/other_rate.yaml"]
    assert "stage 8: done before and unchanged" in run(recipe, *only)


def test_a_teacher_of_hugging_faces_format_is_adopted(recipe: Path) -> None:
    import string

    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    outputs = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase]
    sizes = {"conv_dim": (8, 8, 8, 8, 8, 8, 16), "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16}
    kinds = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True, "num_attention_heads": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = Wav2Vec2Config(vocab_size=len(outputs), pad_token_id=0, **sizes, **kinds, **positions)
    Wav2Vec2ForCTC(config).save_pretrained(recipe / "hf")
    (recipe / "hf/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(outputs)}))
    options = ["--teacher", "hf", "--token_type", "char", "--expdir", "exp_hf", "--stage", "5", "--stop_stage", "8"]
    printed = run(recipe, *options, "--teacher_tokens", "true", status=2)
    assert (
        "is not in data/token_list/char/tokens.txt" in printed
    )  # FSDD's words are in lower case, the model's in upper
    run(recipe, *options)
    tokens = (recipe / "data/token_list/char/tokens.txt").read_text().split()
    manifest = json.loads((recipe / "dump/targets_exp_hf/train/manifest.json").read_text())
    assert manifest["utterances"] == 80
    assert {"z", "o", "<space>"} <= set(tokens)
    # The training of a teacher begins with it.
    architecture = {**sizes, **kinds, **positions, "conv_dim": [8] * 6 + [16]}
    content = {
        **{"network": "teacher", "network_conf": {"config": architecture}},
        **{"distill_conf": {"target": "none", "weight_ctc": 1.0}, "max_epoch": 1},
        **{"num_iters_per_epoch": 1, "batch_type": "numel", "batch_bins": 160000},
    }
    (recipe / "conf/tune.yaml").write_text(json.dumps(content))  # which is YAML as well
    only_7 = ["--token_type", "char", "--expdir", "exp_tuned", "--stage", "6", "--stop_stage", "7"]
    tuned = ["--teacher_init", "hf", "--teacher_config", "conf/tune.yaml", "--allow_bad_teacher", "true"]
    run(recipe, *only_7, *tuned)
    assert "tensors of the network from exp_tuned/teacher_init" in (recipe / "exp_tuned/teacher/train.log").read_text()
    assert "stage 7: done before and unchanged" in run(recipe, *only_7, *tuned)


def targets_of(recipe: Path) -> dict[str, bytes]:
    """Every file of the stored targets but logs, what a scheduler leaves, and times of the audio files."""
    targets = recipe / "dump/targets"
    paths = [p for p in sorted(targets.rglob("*")) if p.is_file() and p.parent.name not in ("log", "q")]
    paths = [p for p in paths if p.name != "audio.cache"]
    return {str(path.relative_to(targets)): path.read_bytes() for path in paths}


ONLY_8 = ["--stage", "8", "--stop_stage", "8"]


def test_slurm_makes_the_targets_that_run_pl_makes(recipe: Path, slurm: dict[str, str]) -> None:
    before = targets_of(recipe)
    assert {"train/data/0001.idx", "train/data/0002.idx", "valid/manifest.json"} <= before.keys()
    slurm = {**slurm, "cmd_backend": "slurm"}
    run(recipe, *ONLY_8, "--force_stage", "8", **slurm)
    assert "SLURM_JOB_ID" in (recipe / "dump/targets/train/log/extract.1.log").read_text()
    assert targets_of(recipe) == before
    # A job that fails is told, and what the others made is kept.
    lost = recipe / "dump/targets/train/data/0002.ark"
    lost.with_suffix(".idx").unlink()
    lost.unlink()
    lost.mkdir()  # no file can be made here
    printed = run(recipe, *ONLY_8, status=2, **slurm)
    assert "extract.2.log" in printed
    kept = recipe / "dump/targets/train/data/0001.ark"
    time_before = kept.stat().st_mtime_ns
    lost.rmdir()
    run(recipe, *ONLY_8, **slurm)
    assert targets_of(recipe) == before and kept.stat().st_mtime_ns == time_before


def test_changed_audio_makes_its_shard_again_and_no_other(recipe: Path) -> None:
    before = targets_of(recipe)
    utterance, wav = (recipe / "dump/raw/train/wav.scp").read_text().splitlines()[-1].split()
    arks = [recipe / f"dump/targets/train/data/000{shard}.ark" for shard in (1, 2)]
    content, times = (recipe / wav).read_bytes(), [ark.stat().st_mtime_ns for ark in arks]
    (recipe / wav).write_bytes(content[:-2000] + bytes(2000))
    assert f"0002: the audio of {utterance} has changed; " in run(recipe, *ONLY_8)
    assert targets_of(recipe) != before
    (recipe / wav).write_bytes(content)
    run(recipe, *ONLY_8)
    assert targets_of(recipe) == before
    assert [ark.stat().st_mtime_ns == then for ark, then in zip(arks, times, strict=True)] == [True, False]
    assert "stage 8: done before and unchanged" in run(recipe, *ONLY_8)


def test_slurm_trains(recipe: Path, slurm: dict[str, str]) -> None:
    """In an experiment of its own with the first one's teacher: one process, then one on each of two nodes."""
    options = ["--expdir", "exp_slurm", "--no_kd", "false", "--teacher", "exp/teacher", "--teacher_targets", "online"]
    options += ["--fixed_chunks", "", "--threads", "1"]
    slurm = {**slurm, "cmd_backend": "slurm"}
    run(recipe, *options, "--stage", "6", "--stop_stage", "10", **slurm)
    log = (recipe / "exp_slurm/student_full/train.log").read_text()
    assert "SLURM_JOB_NAME=student_full" in log and "2/2epoch started" in log
    assert (recipe / "exp_slurm/student_full/valid.loss.ave.pth").exists()
    run(recipe, *options, "--stage", "11", "--stop_stage", "11", "--num_nodes", "2", **slurm)
    log = (recipe / "exp_slurm/student_stream/train.log").read_text()
    assert "SLURM_JOB_NUM_NODES=2" in log and ":0/2]" in log and "2/2epoch started" in log
    assert (recipe / "exp_slurm/student_stream/valid.loss.ave.pth").exists()


def test_targets_are_the_same_after_any_kill(recipe: Path) -> None:
    """Stage 8 killed at random moments and begun again; DISTILL_KILLS=20 kills more often."""
    before = targets_of(recipe)
    started = time.time()
    run(recipe, *ONLY_8, "--force_stage", "8")
    whole = time.time() - started
    assert targets_of(recipe) == before
    generator, kills = random.Random(0), int(os.environ.get("DISTILL_KILLS", "3"))
    command, again = ["./run.sh", *OPTIONS, *ONLY_8], ["--force_stage", "8"]
    for kill in range(kills):
        moment, hit = (kill + generator.random()) / kills * whole, False
        while not hit:
            running = subprocess.Popen(
                [*command, *again], cwd=recipe, start_new_session=True, stdout=subprocess.DEVNULL
            )
            try:
                assert running.wait(moment) == 0
                assert targets_of(recipe) == before
                again = ["--force_stage", "8"]  # too little was left to do, or it is faster now: begin anew
                moment *= 0.9
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
                hit, again = True, []
    run(recipe, *ONLY_8)
    assert targets_of(recipe) == before
    assert not list((recipe / "dump/targets").rglob("*.tmp"))


# The teacher last: a new one makes the stored targets, which the students need, those of another
@pytest.mark.parametrize(("stage", "system"), [("11", "student_stream"), ("10", "student_full"), ("7", "teacher")])
def test_killed_training_goes_on_from_its_last_checkpoint(recipe: Path, stage: str, system: str) -> None:
    output = recipe / "exp" / system
    shutil.rmtree(output)
    only = ["--stage", stage, "--stop_stage", stage, "--no_kd", "false"]
    command = ["./run.sh", *OPTIONS, *only, "--force_stage", stage]
    running = subprocess.Popen(command, cwd=recipe, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not (output / "checkpoint.pth").exists() and running.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert (output / "checkpoint.pth").exists()
    run(recipe, *only)
    log = (output / "train.log").read_text()
    assert "The training was resumed" in log
    assert log.count("1/2epoch started") == 1 and "2/2epoch started" in log
    assert not list(output.glob(".*.tmp"))
    assert (output / "valid.loss.ave.pth").exists()


def test_transcribe_with_each_model(recipe: Path) -> None:
    wav = next((recipe / "data/test/wav.scp").open()).split()[1]
    for system in ("teacher", "student_full", "student_stream"):
        command = [sys.executable, "-m", "distill.bin.transcribe", "--model", f"exp/{system}", "--json", wav]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=recipe, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert events[-1]["event"] == "final" and {event["event"] for event in events[:-1]} == {"partial"}
        assert events[0]["audio_s"] < events[-1]["audio_s"]


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        (["--token_type", "morse"], "char, bpe, word or phn"),
        (["--token_type", "phn"], "needs either --lexicon FILE or --lang_dir DIR"),
        (["--token_type", "phn", "--lexicon", "cmd.sh", "--decoders", "beam"], "take wfst"),
        (["--lexicon", "cmd.sh"], "need --token_type phn"),
        (["--scoring", "kindly"], "plain or gigaspeech"),
        (["--teacher_targets", "somewhere"], "stored or online"),
        (["--decoders", "greedy viterbi"], "any of greedy, beam and wfst"),
        (["stray"], "unexpected argument"),
    ],
)
def test_bad_options_are_one_line(recipe: Path, options: list[str], printed: str) -> None:
    output = run(recipe, *options, status=2)
    assert printed in output and output.count("error:") == 1
