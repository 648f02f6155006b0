"""Choose the weight of the language model and the bonus per word on the validation set, never on a test set.

    python -m distill.bin.tune_decoding --model exp/student_stream --chunk_ms 480 --data_dir dump/raw/valid \\
        --decoder beam wfst --lm exp/lm/words.arpa --output exp/student_stream/tuned.json

The network runs once, the decoder for every pair of the grid. Of pairs with equal WER the one with the least weight,
then with the bonus nearest to 0, is taken. The file holds both weights for each decoder, and the whole grid.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from distill.decode.settings import add_arguments, conf_of
from distill.errors import UserError, cli
from distill.files import atomic_write
from distill.recognition.decode import chunk_length

if TYPE_CHECKING:
    from distill.decode.hypothesis import Search


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="experiment directory of a teacher or student")
    parser.add_argument("--data_dir", type=Path, required=True, help="validation set: wav.scp and text")
    parser.add_argument("--chunk_ms", type=chunk_length, help="latency in ms, or full (default: full)")
    parser.add_argument("--decoder", nargs="+", choices=("beam", "wfst"), required=True)
    parser.add_argument("--lm_weights", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5])
    parser.add_argument("--word_bonuses", type=float, nargs="+", default=[-1.0, 0.0, 1.0, 2.0])
    parser.add_argument(
        "--max_utterances", type=int, default=500, help="of the set, spread over it evenly (default: 500)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.lm is None:
        raise UserError("--lm: needed, its weight is what is tuned")

    import editdistance
    import torch
    from tqdm import tqdm

    from distill.audio import read_audio, read_wav_scp
    from distill.checkpoints.load import load_network
    from distill.decode.greedy import GreedySearch
    from distill.decode.hypothesis import words_of
    from distill.decode.settings import graph_builder, search_factory
    from distill.scoring.text import read_text
    from distill.streaming.recognizer import StreamingRecognizer

    class Recorder(GreedySearch):
        """Keeps what the network puts out."""

        def accept(self, logits: torch.Tensor) -> None:
            recorded[-1].append(logits)
            super().accept(logits)

    torch.set_num_threads(args.threads)
    texts, waves = read_text(args.data_dir / "text"), read_wav_scp(args.data_dir / "wav.scp")
    if missing := sorted(texts.keys() ^ waves.keys()):
        raise UserError(f"{args.data_dir}: {missing[0]} is only in one of text and wav.scp")
    step = -(-len(texts) // args.max_utterances)
    keys = sorted(texts)[::step]
    network, token_list, config = load_network(args.model)
    recognizer = StreamingRecognizer(network, token_list, config, args.chunk_ms, new_search=Recorder)
    recorded: list[list[torch.Tensor]] = []
    for key in tqdm(keys, desc=f"{args.model.name}, {args.data_dir.name}", unit="utt", mininterval=1):
        recorded.append([])
        recognizer.accept_waveform(read_audio(waves[key]))
        recognizer.finish()
        recognizer.reset()
    logits = [torch.cat(pieces) for pieces in recorded]
    references = [texts[key].split() for key in keys]
    words = sum(map(len, references))
    if not words:
        raise UserError(f"{args.data_dir / 'text'}: no words to tune on")

    def wer(search: Search) -> float:
        wrong = 0
        for reference, output in zip(references, logits, strict=True):
            search.accept(output)
            said = [word.text for word in words_of(search.finish()[0], token_list, recognizer.token_type)]
            wrong += editdistance.eval(reference, said)
        return 100 * wrong / words

    # Without a lexicon phones have no words to compare.
    greedy = None if recognizer.token_type == "phn" else wer(GreedySearch())
    pairs = [(weight, bonus) for weight in sorted(args.lm_weights) for bonus in sorted(args.word_bonuses)]
    tuned: dict[str, dict] = {}
    for decoder in args.decoder:
        args.nbest = 1
        builder = None
        grid = []
        for args.lm_weight, args.word_bonus in tqdm(pairs, desc=decoder, unit="pair", mininterval=1):
            conf = conf_of(args, decoder)
            if decoder == "wfst":
                from distill.decode.wfst import WfstSearch

                builder = builder or graph_builder(conf, token_list, config)
                graph = builder.build(conf.lm_weight, conf.word_bonus)
                grid.append((wer(WfstSearch(graph, conf.wfst_beam)), conf.lm_weight, conf.word_bonus))
            else:
                new_search = search_factory(conf, token_list, config)
                grid.append((wer(new_search()), conf.lm_weight, conf.word_bonus))
        best, weight, bonus = min(grid, key=lambda row: (row[0], row[1], abs(row[2])))
        tuned[decoder] = {
            "lm_weight": weight,
            "word_bonus": bonus,
            "wer": best,
            "wer_greedy": greedy,
            "lm": str(args.lm),
            "set": str(args.data_dir),
            "chunk_ms": args.chunk_ms,
            "utterances": len(keys),
            "grid": [{"lm_weight": weight, "word_bonus": bonus, "wer": value} for value, weight, bonus in grid],
        }
        print(
            f"{args.model.name}, {decoder}: {best:.2f} % WER on {args.data_dir.name} with lm_weight {weight:g}, "
            f"word_bonus {bonus:g}" + ("" if greedy is None else f" (greedy: {greedy:.2f} %)")
        )
    with atomic_write(args.output) as stream:
        json.dump(tuned, stream, indent=1)


if __name__ == "__main__":
    main()
