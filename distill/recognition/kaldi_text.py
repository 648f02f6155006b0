"""Write recognised words as a Kaldi text file."""

from __future__ import annotations

from pathlib import Path

from distill.errors import UserError
from distill.files import atomic_write, json_object, text_lines


def write_kaldi_text(directory: Path) -> int:
    """Write ``DIRECTORY/text``: an utterance id and its recognised words on each line, sorted as under LC_ALL=C.

    Args:
        directory: decode directory of one data set, with ``hyp.*.jsonl``.

    Returns:
        number of utterances.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    texts: dict[str, str] = {}
    for path in sorted(directory.glob("hyp.*.jsonl")):
        for number, line in text_lines(path, "recognise the data set again"):
            row = json_object(line, f"{path}:{number}", "recognise the data set again")
            texts[row["utterance"]] = row["text"]
    if not texts:
        raise UserError(f"{directory}: no hypotheses (hyp.*.jsonl) there; recognise the data set first")
    with atomic_write(directory / "text") as stream:
        for utterance in sorted(texts, key=str.encode):
            stream.write(f"{utterance} {texts[utterance]}".rstrip() + "\n")
    return len(texts)
