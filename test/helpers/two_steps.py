"""Two steps of the trainings that a file lists, in each process that torch.distributed.run starts, and its gradients.

python -m torch.distributed.run --nproc_per_node 2 test/helpers/two_steps.py COMMANDS.json
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from distill.training.distill_model import DistillModel
from distill.training.distill_task import DistillTask

TEXT = torch.tensor([[2, 3, 4], [3, 2, -1], [4, -1, -1]])


def model_of(command: list[str]) -> DistillModel:
    """The model of a training in training mode, with the parameters frozen that its configuration freezes."""
    torch.manual_seed(0)
    arguments = DistillTask.get_parser().parse_args(command)
    model = DistillTask.build_model(arguments)
    for name, parameter in model.named_parameters():
        if any(name.startswith(f"{frozen}.") for frozen in arguments.freeze_param):
            parameter.requires_grad = False
    return model.train()


def batch(samples: list[int], seed: int) -> dict[str, torch.Tensor]:
    speech = torch.zeros(len(samples), max(samples))
    generator = torch.Generator().manual_seed(seed)
    for row, count in zip(speech, samples, strict=True):
        row[:count] = 0.1 * torch.randn(count, generator=generator)
    text = TEXT[: len(samples)]
    return {
        "speech": speech,
        "speech_lengths": torch.tensor(samples),
        "text": text,
        "text_lengths": (text >= 0).sum(1),
    }


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for name, command in json.loads(Path(sys.argv[1]).read_text()).items():
        model = DistributedDataParallel(model_of(command), find_unused_parameters=False)
        for step in range(2):
            # Utterances of other lengths in each process; in the last step one process has a very short one only.
            samples = [[16000, 9000, 5000], [8000, 14000]][rank] if step == 0 else [[12000, 4000], [1600]][rank]
            model.zero_grad()
            model(**batch(samples, 2 * step + rank))[0].sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        both = [torch.empty_like(gradients) for _ in range(2)]
        torch.distributed.all_gather(both, gradients)
        assert torch.equal(*both) and bool(torch.isfinite(gradients).all()), name
        if rank == 0:
            print("trained", name, flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
