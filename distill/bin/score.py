"""Score a recognised test set with NIST sclite, or, where it is not installed, with counts equal to sclite's.

    python -m distill.bin.score --ref dump/raw/test/text --decode_dir exp/student_full/decode_full/test

reads DECODE_DIR/hyp.*.jsonl and writes

    DECODE_DIR/text                         Kaldi text
    DECODE_DIR/nbest, nbest_score           texts and scores of UTTERANCE-1, -2 ..., if decoded with --nbest
    DECODE_DIR/score_wer/{ref,hyp}.trn      the text that is scored; result.txt is sclite's report
    DECODE_DIR/score_wer/{ref.stm,hyp.ctm}  the same with times and confidences, for tools that need them
    DECODE_DIR/score_wer/score.json         words, errors by kind, by utterance (for intervals) and by speaker (utt2spk)
    DECODE_DIR/score_cer                    the same for characters, spaces included
    DECODE_DIR/score_ter                    the same for tokens: with --bpemodel the pieces of the words, with
                                            --ref_tokens the tokens that were recognised (phones)

A phone model decoded without a lexicon gives no words, and so neither score_wer nor score_cer.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import cli
from distill.scoring.score import NORMALISATIONS, score_directories


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--ref", type=Path, required=True, help="Kaldi text file of the references")
    parser.add_argument("--decode_dir", type=Path, nargs="+", required=True, help="directories that decode wrote")
    parser.add_argument(
        "--scoring",
        choices=tuple(NORMALISATIONS),
        default="plain",
        help="plain: words as they are. gigaspeech: as GigaSpeech is scored, with hyphens split, and fillers (UH, "
        "UM ...) and tags not counted (default: plain)",
    )
    parser.add_argument("--bpemodel", type=Path, help="sentencepiece model, for score_ter")
    parser.add_argument("--ref_tokens", type=Path, help="Kaldi text file of the references in tokens, for score_ter")
    score_directories(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
