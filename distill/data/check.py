"""Check a Kaldi data directory, tables and audio, before anything is made from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from distill.audio import SAMPLE_RATE
from distill.data.check_audio import recording_seconds
from distill.data.read_dir import read_data_dir
from distill.data.tables import read_table
from distill.data.tokens import check_tokens
from distill.errors import UserError

MIN_SAMPLES = 400  # at 16 kHz: the receptive field of the first 20 ms frame
SEGMENT_SLACK_S = 0.5  # a segment may end this much after its recording, as in Kaldi


def check_directories(
    data: list[Path],
    resample: bool,
    allow_pipes: bool,
    unlabelled: bool,
    token_list: Path | None,
    token_type: str | None,
) -> None:
    """Check data directories and print a line for each; with a token list, check only that it covers their texts."""
    for directory in data:
        if token_list is not None:
            if token_type is None or not token_list.is_file():
                raise UserError(f"{token_list}: not found, or --token_type is missing; give both")
            check_tokens(directory / "text", read_table(directory / "text"), token_list, token_type)
        else:
            count, hours = check_data_dir(directory, resample, allow_pipes, labelled=not unlabelled)
            print(f"{directory}: {count} utterances, {hours:.2f} h, nothing wrong")


def check_data_dir(
    directory: Path, resample: bool = False, allow_pipes: bool = False, labelled: bool = True
) -> tuple[int, float]:
    """Check a whole data directory with its audio, and return its number of utterances and hours.

    Args:
        directory: the data directory; ``segments`` may cut utterances from the recordings of wav.scp.
        resample: accept other sample rates than 16 kHz.
        allow_pipes: run the commands in wav.scp (entries that end with ``|``) instead of refusing them.
        labelled: whether there must be a text.

    Raises:
        UserError: the first fault that was found, with file, line and cure.
    """
    data = read_data_dir(directory, labelled=labelled)
    wav_scp, segments_file = directory / "wav.scp", directory / "segments"

    def check_one(item: tuple[str, tuple[int, str]]) -> tuple[str, float]:
        key, (number, entry) = item
        try:
            return key, recording_seconds(entry, resample, allow_pipes)
        except UserError as error:
            raise UserError(f"{wav_scp}:{number}: {error}") from None

    seconds: dict[str, float] = {}
    recordings = data.recordings
    with ThreadPoolExecutor() as pool:
        checked = pool.map(check_one, recordings.items())
        for key, duration in tqdm(
            checked, total=len(recordings), desc=f"checking {directory}", unit="file", delay=2, disable=None
        ):
            seconds[key] = duration
    if data.segments is None:
        utterance_file, lengths = wav_scp, seconds
        lines = {key: number for key, (number, _) in recordings.items()}
    else:
        utterance_file, lengths, lines = segments_file, {}, {}
        for key, (number, recording, start, end) in data.segments.items():
            if end > seconds[recording] + SEGMENT_SLACK_S:
                whole = f"{seconds[recording]:.2f} s"
                raise UserError(
                    f"{segments_file}:{number}: {start} to {end} s is not within the recording's {whole}; correct the "
                    "line (times are in seconds)"
                )
            lengths[key], lines[key] = min(end, seconds[recording]) - start, number
    for key, length in lengths.items():
        if length < MIN_SAMPLES / SAMPLE_RATE:
            raise UserError(
                f"{utterance_file}:{lines[key]}: {key} is {length * 1000:.1f} ms long, "
                f"shorter than one frame ({MIN_SAMPLES * 1000 // SAMPLE_RATE} ms); remove the utterance"
            )
    _check_durations(directory / "utt2dur", lengths)
    return len(lengths), sum(lengths.values()) / 3600


def _check_durations(utt2dur: Path, lengths: dict[str, float]) -> None:
    """Refuse a utt2dur whose lengths differ from the audio's: one of the two belongs to another corpus."""
    if not utt2dur.exists():
        return
    for key, (number, duration) in read_table(utt2dur).items():
        try:
            differs = key in lengths and abs(float(duration) - lengths[key]) > max(SEGMENT_SLACK_S, 0.05 * lengths[key])
        except ValueError:
            raise UserError(f"{utt2dur}:{number}: {duration!r}; expected: ID SECONDS") from None
        if differs:
            raise UserError(
                f"{utt2dur}:{number}: {key} has {duration} s there, but its audio has {lengths[key]:.2f} s; see "
                "which is right, and correct the audio's path or remove utt2dur"
            )
