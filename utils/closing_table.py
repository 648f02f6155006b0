"""What the paper says of its student and what a finished experiment has: size, speed, and word errors.

    python utils/closing_table.py --expdir exp --data_dir dump/raw/test

Needs exp/results.json (stage 13) and exp/export (stage 15). The speed is of the 480 ms student against its teacher with
whole utterances, each float32, on one thread, in whichever of torch and onnxruntime is faster for it; the teacher is
exported for that, and refused if a logit is off by more than 0.001. Prints a table and writes it to exp/closing.md,
with everything measured in exp/closing.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.scoring.tables import PUBLISHED

if TYPE_CHECKING:
    import onnxruntime

    from distill.models.teacher import Teacher

CHUNK_MS = int(PUBLISHED["latency_ms"])
TOLERANCE = 1e-3  # of logits


def export_teacher(teacher: Teacher, audio: np.ndarray) -> onnxruntime.InferenceSession:
    """The teacher, (1, N) samples -> (1, T, V) logits, in onnxruntime on one thread; ``audio`` (N,) is an example."""
    import onnxruntime

    from distill.export.teacher import save_teacher

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "teacher.onnx")
        save_teacher(teacher, len(audio), path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session


class ExportedTeacher:
    """The teacher in onnxruntime, for :func:`distill.bench.speed.seconds`: greedy recognition of whole utterances."""

    streaming = False

    def __init__(self, teacher: Teacher, utterances: list[np.ndarray]) -> None:
        import torch

        self.session = export_teacher(teacher, utterances[0])
        for audio in utterances[:5]:
            with torch.no_grad():
                expected = teacher(torch.from_numpy(audio)[None], torch.tensor([len(audio)])).logits.numpy()
            apart = float(np.abs(self.logits(audio) - expected).max())
            if apart > TOLERANCE:
                raise UserError(f"closing_table: the exported teacher's logits are off by {apart:.2g}; not measured")

    def logits(self, audio: np.ndarray) -> np.ndarray:
        """(N,) samples -> (1, T, V)."""
        return self.session.run(None, {"speech": audio[None]})[0]

    def recognize(self, audio: np.ndarray) -> np.ndarray:
        """Ids of the tokens of (N,) samples."""
        best = self.logits(audio)[0].argmax(-1)
        return best[(best != 0) & np.diff(best, prepend=0).astype(bool)]


def measure(expdir: Path, data_dir: Path, num_utts: int, rounds: int) -> list[dict[str, Any]]:
    """A row for teacher and student in each runtime: parameters, bytes, and real-time factor, by turns."""
    import torch

    from distill.audio import read_audio, read_wav_scp
    from distill.bench.speed import exported_recognizers, recognizers_of, seconds
    from distill.checkpoints.load import load_network

    torch.set_num_threads(1)
    utterances = [read_audio(path) for path in list(read_wav_scp(data_dir / "wav.scp").values())[:num_utts]]
    audio_s = sum(map(len, utterances)) / 16000
    entries: list[tuple[dict[str, Any], Any]] = [
        *recognizers_of(expdir / "teacher", []),
        *recognizers_of(expdir / "student_stream", [CHUNK_MS]),
    ]
    teacher_row, student_row = (row for row, _ in entries)
    exported = exported_recognizers(expdir / "export", student_row, [CHUNK_MS])
    entries += [(row, recognizer) for row, recognizer in exported if row["runtime"].endswith("float32")]
    teacher = load_network(expdir / "teacher").network
    entries.append(({**teacher_row, "runtime": "onnxruntime float32"}, ExportedTeacher(teacher, utterances)))  # type: ignore[arg-type]
    times: list[list[float]] = [[] for _ in entries]
    for number in range(rounds + 1):
        for (_, session), taken in zip(entries, times, strict=True):
            # The first pass allocates; it is not counted.
            took = seconds(session, utterances if number else utterances[:2])
            if number:
                taken.append(took / audio_s)
    return [{**row, "rtf": statistics.median(taken)} for (row, _), taken in zip(entries, times, strict=True)]


def closing_table(measured: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines: paper beside here.

    Args:
        measured: as of :func:`measure`.
        rows: of results.json.
    """
    fastest = {}
    for row in sorted(measured, key=lambda row: -row["rtf"]):
        fastest[row["system"]] = row
    teacher, student = fastest["teacher"], fastest["student_stream"]
    lines = ["| | paper | here |", "|---|---|---|"]
    size = teacher["params"] / student["params"]
    about = f"{size:.1f}x ({student['params'] / 1e6:.2f} M of {teacher['params'] / 1e6:.2f} M parameters)"
    lines.append(f"| smaller | {PUBLISHED['smaller']}x | {about} |")
    speed = teacher["rtf"] / student["rtf"]
    about = f"RTF {student['rtf']:.4f} ({student['runtime']}) of {teacher['rtf']:.4f} ({teacher['runtime']})"
    lines.append(f"| faster, streaming at {CHUNK_MS} ms | {PUBLISHED['faster']}x | {speed:.1f}x, {about} |")
    greedy = [row for row in rows if row.get("decoder", "greedy") == "greedy" and row["wer"] is not None]
    teachers = {row["test_set"]: row["wer"] for row in greedy if row["system"] == "teacher"}
    published = f"+{PUBLISHED['relative_loss_low']:g} to +{PUBLISHED['relative_loss_high']:g} %"
    for row in greedy:
        if row["system"] == "student_stream" and row["latency_ms"] is not None:
            loss = row.get("relative_loss")
            about = "teacher has no error" if loss is None else f"{loss:+.1f} %"
            about += f", {row['wer']:.2f} % of the teacher's {teachers[row['test_set']]:.2f} %"
            paper = published if row["latency_ms"] == CHUNK_MS else "-"
            lines.append(f"| word errors, {row['test_set']}, {row['latency_ms']} ms | {paper} | {about} |")
    return lines


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expdir", type=Path, default=Path("exp"), help="(default: exp)")
    parser.add_argument("--data_dir", type=Path, default=Path("dump/raw/test"), help="audio to recognise, with wav.scp")
    parser.add_argument("--num_utts", type=int, default=20, help="the first so many utterances (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many is taken (default: 5)")
    args = parser.parse_args(argv)
    results = args.expdir / "results.json"
    if not results.is_file():
        raise UserError(f"{results}: not found; run stages 12 and 13 first")
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    measured = measure(args.expdir, args.data_dir, args.num_utts, args.rounds)
    lines = closing_table(measured, rows)
    with atomic_write(args.expdir / "closing.json") as stream:
        json.dump(measured, stream, indent=1)
    with atomic_write(args.expdir / "closing.md") as stream:
        stream.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
