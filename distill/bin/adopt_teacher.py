"""Make a teacher of a recogniser that was fine-tuned elsewhere, such as a Wav2Vec2ForCTC.

    python -m distill.bin.adopt_teacher --model /models/wav2vec2-large-960h --show_tokens > tokens.txt
    python -m distill.bin.adopt_teacher --model /models/wav2vec2-large-960h --token_list tokens.txt --output exp/teacher

The first prints the model's vocabulary as a token list, the second writes a directory like that of a training. A
recipe's own character list can be used as well: each of its tokens is looked up in the model's vocabulary, if necessary
in the other case (a for A), and the model's other tokens are left out.
"""

from __future__ import annotations

from pathlib import Path

from distill.bin.arguments import new_parser
from distill.errors import UserError, cli, require

FAIRSEQ2 = "of fairseq2: sentencepiece model of --model FILE.pt; --output will be a directory in Hugging Face's format"


@cli
def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory in Hugging Face's format")
    parser.add_argument("--show_tokens", action="store_true", help="print the model's tokens as a token list and stop")
    parser.add_argument("--token_list", type=Path, help="a token on each line; the first is blank")
    parser.add_argument("--own_tokens", action="store_true", help="the model's tokens, in the case of --token_list's")
    parser.add_argument("--token_type", default="char", choices=("char", "bpe", "word", "phn"), help="(default: char)")
    parser.add_argument("--language", help="of an MMS (default: target_lang in its tokenizer_config.json)")
    parser.add_argument("--tokenizer", type=Path, help=FAIRSEQ2)
    parser.add_argument("--output", type=Path, help="directory of the teacher, such as exp/teacher")
    args = parser.parse_args(argv)
    if args.tokenizer is not None and args.output is not None:
        from distill.checkpoints.fairseq2 import write_hugging_face

        return write_hugging_face(args.model, args.tokenizer, args.output)
    if args.model.suffix == ".pth" and args.output is not None:
        from distill.checkpoints.espnet import adopt_espnet

        return adopt_espnet(args.model, args.output)
    if not args.show_tokens and (args.output is None or not (args.token_list or args.own_tokens)):
        raise UserError("adopt_teacher: give --output and --token_list or --own_tokens, or --show_tokens")
    require("transformers", extra="train")

    from distill.checkpoints.adopt import adopt_teacher, model_tokens

    if args.show_tokens:
        print(*model_tokens(args.model, args.language), sep="\n")
    else:
        adopt_teacher(args.model, args.token_list, args.token_type, args.output, args.language, args.own_tokens)


if __name__ == "__main__":
    main()
