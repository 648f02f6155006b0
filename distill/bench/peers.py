"""A peer of known architecture beside F: SpeechBrain's streaming Conformer, both with random weights, on one thread.

    make bench-peers

The peer is the encoder of SpeechBrain's recipe for LibriSpeech (conformer_transducer.yaml), with its features and CNN
and without its prediction network and joiner, computed by SpeechBrain's own streaming code in torch. Both stream the
same noise in chunks of 480 ms with a history of 6 s; they take turns, and the least processor time of a chunk counts.
"""

from __future__ import annotations

import datetime
import importlib.util
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.audio import SAMPLE_RATE
from distill.bench.int4 import CHUNK_MS, WARM_UP
from distill.bench.parts import CONFIG, TOKENS, benchmark_parser, noise, random_student, write_json
from distill.bench.teacher_and_students import export
from distill.errors import UserError, cli
from distill.streaming import Recognizer

FRAMES = CHUNK_MS // 40  # of a chunk
SIZES = {"d_model": 512, "nhead": 8, "num_encoder_layers": 12, "d_ffn": 2048}
PIECE = CHUNK_MS * SAMPLE_RATE // 1000  # samples


class Peer(nn.Module):
    """A stream of SpeechBrain's Conformer: (piece,) samples -> (1, FRAMES, 512).

    Attributes:
        piece: samples of a chunk, a little less than a whole one, as SpeechBrain's own recogniser counts them.
    """

    def __init__(self) -> None:
        from speechbrain.lobes.features import Fbank, StreamingFeatureWrapper
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
        from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
        from speechbrain.utils.filter_analysis import stack_filter_properties

        super().__init__()
        fbank = Fbank(sample_rate=SAMPLE_RATE, n_fft=512, n_mels=80, win_length=32)
        layers = {"num_blocks": 2, "num_layers_per_block": 1, "out_channels": (64, 32)}
        cnn = ConvolutionFrontEnd((8, 10, 80), **layers, kernel_sizes=(3, 3), strides=(2, 2), residuals=(False, False))
        properties = stack_filter_properties([fbank.get_filter_properties(), cnn.get_filter_properties()])
        self.features = StreamingFeatureWrapper(nn.Sequential(fbank, cnn), properties)
        self.encoder = TransformerASR(
            tgt_vocab=1000,
            input_size=640,
            num_decoder_layers=0,
            encoder_module="conformer",
            attention_type="RelPosMHAXL",
            positional_encoding=None,
            normalize_before=True,
            causal=False,
            **SIZES,
        )
        self.eval()
        self.piece = (properties.stride - 1) * FRAMES
        history = round(6000 / CHUNK_MS)
        self.feature_context = self.features.make_streaming_context()
        self.context = self.encoder.make_streaming_context(DynChunkTrainConfig(FRAMES, history))

    def forward(self, samples: Tensor) -> Tensor:
        """Recognise the next chunk."""
        return self.encoder.encode_streaming(self.features(samples[None], self.feature_context), self.context)


@cli
def main(argv: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--chunks", type=int, default=100, help="of a stream (default: 100)")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("speechbrain") is None:
        raise UserError("SpeechBrain is not installed; make bench-peers installs it for this benchmark")
    from distill.export.recognizer import OnnxModel
    from distill.export.recognizer import Recognizer as OnnxRecognizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    peer, student = Peer(), random_student("f")
    audio = noise((WARM_UP + args.chunks) * CHUNK_MS / 1000)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        assert peer(torch.from_numpy(audio[: peer.piece])).shape == (1, FRAMES, SIZES["d_model"])
        recognizers: dict[str, Any] = {"torch": Recognizer(student, TOKENS, CONFIG, CHUNK_MS)}
        files = export("f", Path(folder))
        recognizers |= {f"onnxruntime {kind}": OnnxRecognizer(OnnxModel(path)) for kind, path in files.items()}
        streams = {runtime: recognizer.create_stream() for runtime, recognizer in recognizers.items()}

        def feed(runtime: str) -> Callable[[int], Any]:
            def chunk(start: int) -> Any:
                streams[runtime].accept(audio[start : start + PIECE])
                return streams[runtime].decode()

            return chunk

        about = f"SpeechBrain {version('speechbrain')}, streaming Conformer"
        runtimes = [(about, "torch", peer), *(("F", name, student) for name in streams)]
        rows: list[dict[str, Any]] = [
            {"network": name, "runtime": runtime, "params": sum(p.numel() for p in network.parameters()), "rtf": 1e9}
            for name, runtime, network in runtimes
        ]
        computations = [lambda start: peer(torch.from_numpy(audio[start : start + peer.piece])), *map(feed, streams)]
        for number in range(WARM_UP + args.chunks):
            for row, compute in zip(rows, computations, strict=True):
                began = time.process_time()
                compute(number * PIECE)
                if number >= WARM_UP:
                    row["rtf"] = min(row["rtf"], (time.process_time() - began) * 1000 / CHUNK_MS)
    for row in rows:
        print(
            f"{row['network']}, {row['runtime']}: {row['params'] / 1e6:.1f} M parameters, {row['rtf']:.4f} of real time"
        )
    write_json(args.output, {"date": f"{datetime.date.today():%d %B %Y}", "rows": rows})


if __name__ == "__main__":
    main()
