"""The online teacher and the projections compute in the precision of the trainer's autocast, losses in float32."""

from contextlib import nullcontext

import pytest
import torch
from product_types import ProductTypes
from tiny_training import STUDENT, TEACHER, changed, speech_of

from distill.training import loss_terms
from distill.training.distill_task import DistillTask


@pytest.fixture
def able(monkeypatch):
    """Set what the CPU is able to do."""

    def set_capabilities(**present: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: present)

    return set_capabilities


@pytest.mark.parametrize("by", ["trainer", "cpu_bfloat16"])
def test_a_step_in_bfloat16(world, teacher, able, monkeypatch, by):
    able(avx512_bf16=True)
    config = changed(STUDENT, distill_conf={"target": "posterior", "weight_ctc": 0.5})
    config["cpu_bfloat16"] = by == "cpu_bfloat16"
    arguments = DistillTask.get_parser().parse_args(world.command("amp", config, "--teacher", str(teacher)))
    model = DistillTask.build_model(arguments).train()
    (source,) = model.teachers
    watched = {"teacher": source.network(torch.device("cpu")), "projection": model.criterion.projections[0]}
    types = {name: ProductTypes() for name in watched}
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda *_, name=name: types[name].__enter__() and None)
        module.register_forward_hook(lambda *_, name=name: types[name].__exit__(None, None, None))
    compared = []
    masked_mse = loss_terms.masked_mse
    monkeypatch.setattr(loss_terms, "masked_mse", lambda *x: compared.extend(x[:2]) or masked_mse(*x))
    speech, lengths = speech_of(world)
    tokens = torch.full((len(speech), 1), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16) if by == "trainer" else nullcontext():
        loss, stats, _ = model(speech, lengths, tokens, torch.ones(len(speech), dtype=torch.long))
    loss.sum().backward()
    # all products of the teacher but its prediction layer
    assert (
        types["teacher"].found.count(torch.bfloat16) >= 7 + 4 * 6 and types["teacher"].found.count(torch.float32) <= 1
    )
    assert types["projection"].found and set(types["projection"].found) == {torch.bfloat16}
    assert len(compared) == 2 * (len(model.network.blocks) + 1) and {x.dtype for x in compared} == {torch.float32}
    assert loss.dtype == torch.float32 and all(bool(torch.isfinite(term).all()) for term in stats.values())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("present", "ngpu", "expected"),
    [
        ({"avx512_bf16": True}, 0, torch.bfloat16),
        ({"bf16": True}, 0, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False}, 0, torch.float32),
        ({"avx512_bf16": True}, 1, torch.float32),  # there the trainer decides
    ],
)
def test_a_teacher_is_trained_in_bfloat16_where_the_cpu_multiplies_in_it(world, able, present, ngpu, expected):
    able(**present)
    command = world.command("amp", TEACHER, "--cpu_bfloat16", "true")
    arguments = DistillTask.get_parser().parse_args(command)
    arguments.ngpu = ngpu
    torch.manual_seed(0)
    model = DistillTask.build_model(arguments).eval()
    speech, lengths = speech_of(world)
    tokens, one = torch.full((len(speech), 1), 2), torch.ones(len(speech), dtype=torch.long)
    with ProductTypes() as types:
        loss, _, _ = model(speech, lengths, tokens, one)
    assert max(set(types.found), key=types.found.count) == expected
    fused = model.network.config._attn_implementation == "sdpa"
    assert fused == (expected == torch.float32)
    arguments.cpu_bfloat16 = False
    torch.manual_seed(0)
    exact, _, _ = DistillTask.build_model(arguments).eval()(speech, lengths, tokens, one)
    assert loss.item() == pytest.approx(exact.item(), rel=0 if expected == torch.float32 else 0.02)
    assert (loss.item() == exact.item()) == (expected == torch.float32)
