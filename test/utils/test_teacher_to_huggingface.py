"""A teacher in Hugging Face's format is the same recogniser, for transformers and when adopted again."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml

for folder in ("utils", "test/models"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))
import teacher_to_huggingface  # noqa: E402
from tiny_networks import TEACHER  # noqa: E402

from distill.bin import adopt_teacher  # noqa: E402
from distill.checkpoints.load import load_network  # noqa: E402
from distill.models.teacher import Teacher  # noqa: E402

TOKENS = ["<blank>", "<unk>", "lamp", "on", "<sos/eos>"]


CONFORMER = {key: value for key, value in TEACHER.items() if key != "do_stable_layer_norm"} | {
    "model_type": "wav2vec2-conformer",
    "position_embeddings_type": "rotary",
    "conv_depthwise_kernel_size": 7,
}


@pytest.mark.parametrize("architecture", [TEACHER, CONFORMER], ids=["transformer", "conformer"])
def test_there_and_back(tmp_path, architecture):
    torch.manual_seed(0)
    conf = {"config": architecture}
    teacher = Teacher(len(TOKENS), **conf).eval()
    (tmp_path / "exp").mkdir()
    torch.save({f"network.{k}": v for k, v in teacher.state_dict().items()}, tmp_path / "exp/model.pth")
    config = {"network": "teacher", "network_conf": conf, "token_list": TOKENS, "token_type": "word"}
    (tmp_path / "exp/config.yaml").write_text(yaml.safe_dump(config))
    teacher_to_huggingface.main(["--model", str(tmp_path / "exp"), "--output", str(tmp_path / "hf")])

    speech, lengths = 0.1 * torch.randn(1, 8000), torch.tensor([8000])
    with torch.no_grad():
        expected = teacher(speech, lengths).logits
        model = transformers.AutoModelForCTC.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
        torch.testing.assert_close(model(speech).logits, expected, atol=0.02, rtol=0.02)
    assert json.loads((tmp_path / "hf/vocab.json").read_text())["lamp"] == 2
    (tmp_path / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    options = ["--token_list", str(tmp_path / "tokens.txt"), "--token_type", "word"]
    adopt_teacher.main(["--model", str(tmp_path / "hf"), *options, "--output", str(tmp_path / "adopted")])
    with torch.no_grad():
        again = load_network(tmp_path / "adopted").network(speech, lengths).logits
    torch.testing.assert_close(again, expected, atol=0.02, rtol=0.02)
    assert (tmp_path / "hf/model.safetensors").stat().st_size < (tmp_path / "exp/model.pth").stat().st_size * 0.6
