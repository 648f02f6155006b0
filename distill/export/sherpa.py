"""The step of a raw-audio student as a model for sherpa-onnx, whose runtimes cover phones, browsers and servers.

Of sherpa-onnx's interfaces for streaming CTC models, the one named T-one passes raw samples to the model. (Students
with the log-mel front end have a better one, :mod:`distill.export.batch_step`.) It requires:

- ``signal`` (1, 2400, 1) int32: a block of samples, each multiplied by 32767 and rounded towards zero. 16-bit audio
  would be off by one; scaled by :data:`GAIN` before, it arrives unchanged.
- ``state`` (1, D) float16, initially zeros. The model's first output is ``log_probs`` (1, t, V), its second one the
  next state.
- metadata ``frame_length_ms``, ``state_dim``, ``sample_rate``.

It assumes 8 kHz and would resample any other rate. Therefore samples at 16 kHz are declared to be at 8 kHz, and a block
is 150 ms. Blocks are not chunks: the model keeps samples until they suffice for a step, and a block may complete none,
one or several. As float16 would cost accuracy, each number of the state is stored as the sum of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
import onnx.inliner
import onnx.parser
from onnx import TensorProto, helper

from distill.export.step import Shapes

BLOCK = 2400  # samples
FULL_SCALE = 32767
GAIN = 1.00004  # 32767 * GAIN * k / 32768, rounded towards zero, is k for every 16-bit sample k
DOMAIN = "distill"


def sherpa_model(step: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto:
    """A model with sherpa-onnx's interface around a step, float32 or int8; without :func:`sherpa_metadata`."""
    model = onnx.parser.parse_model(_wrapper(step, shapes))
    model.functions.append(_function(step))
    for opset in step.opset_import:
        if opset.domain:
            model.opset_import.append(opset)
    return onnx.inliner.inline_local_functions(model)


def sherpa_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Metadata that sherpa-onnx requires, of which it uses only the size of the state."""
    size = model.graph.input[1].type.tensor_type.shape.dim[1].dim_value
    return {"frame_length_ms": "300", "state_dim": str(size), "sample_rate": "8000"}


def sherpa_tokens(token_list: Sequence[str], token_type: str) -> str:
    """Contents of tokens.txt: a token and its id on each line. sherpa-onnx replaces ``▁`` by a space."""
    lines = []
    for number, token in enumerate(token_list):
        if token == "<space>":
            token = "▁"
        elif token_type in ("word", "phn") and number:
            token = f"▁{token}"
        lines.append(f"{token} {number}\n")
    return "".join(lines)


def _function(step: onnx.ModelProto) -> onnx.FunctionProto:
    """A step as an ONNX function with its weights as constants."""
    graph = step.graph
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    return helper.make_function(
        DOMAIN,
        "Step",
        [tensor.name for tensor in graph.input],
        [tensor.name for tensor in graph.output],
        [*constants, *graph.node],
        step.opset_import,
    )


def _dims(tensor: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]


def _wrapper(step: onnx.ModelProto, shapes: Shapes) -> str:
    """The model around a step, in the text format of :mod:`onnx.parser`."""
    state = {tensor.name: _dims(tensor) for tensor in step.graph.input[3:]}
    sizes = {name: math.prod(dims) for name, dims in state.items()}
    vocab = _dims(step.graph.output[0])[1]
    names = list(state)
    typed = ", ".join(f"float[{','.join(map(str, state[name]))}] {name}" for name in names)
    after = ", ".join(f"{name}_after" for name in names)
    typed_next = ", ".join(f"float[{','.join(map(str, state[name]))}] {name}_next" for name in names)
    chunk, ahead, hop = shapes.chunk, shapes.lookahead, shapes.hop
    stride, rows_per_step = chunk * hop, chunk * shapes.logits_per_frame
    header = 3
    short, long = header + shapes.samples, sum(sizes.values())
    half = state["origin"][1]

    def ints(**values: int | Sequence[int]) -> str:
        return "\n".join(
            f"{name} = Constant <value_ints = [{', '.join(map(str, [v] if isinstance(v, int) else v))}]> ()"
            for name, v in values.items()
        )

    constants = ints(
        zero=0, one=1, minus_one=-1, chunk=chunk, seen=chunk + ahead, ring=shapes.ring, two_rings=2 * shapes.ring,
        stride=stride, need=shapes.samples, priming=shapes.priming, leading=shapes.leading,
        short_halves=[short, short, long, long], header_parts=[1, 1, 1, shapes.samples], silence=shapes.samples,
        vocab=vocab, nothing=[1, 0, vocab], per_frame=shapes.logits_per_frame,
    )  # fmt: skip
    unpack = "\n".join(
        f"{name}_dims = Constant <value_ints = [{','.join(map(str, state[name]))}]> ()" for name in names
    )
    unpack += f"\nlong_parts = Constant <value_ints = [{','.join(str(sizes[name]) for name in names)}]> ()\n"
    unpack += f"{', '.join(f'{name}_flat' for name in names)} = Split <axis = 0> (long, long_parts)\n"
    unpack += "\n".join(f"{name}_kept = Reshape ({name}_flat, {name}_dims)" for name in names)
    first_origin = f"first_origin = Constant <value = float[2,{half}] {{{', '.join(['1'] * half + ['0'] * half)}}}> ()"
    begun = ", ".join("origin_begun" if name == "origin" else f"{name}_kept" for name in names)
    convs = [name for name in names if name.startswith("conv_")]
    # Steps before the first chunk only fill the look-ahead; they leave the other caches unchanged.
    keep = "\n".join(
        f"{name}_next = Where (is_real, {name}_made, {name})"
        if name in convs
        else f"{name}_next = Identity ({name}_made)"
        for name in names
    )
    pack = "origin_packed = Sub (origin_after, first_origin)\n"
    packed = {name: "origin_packed" if name == "origin" else f"{name}_after" for name in names}
    pack += "\n".join(f"{name}_row = Reshape ({packed[name]}, minus_one)" for name in names)
    rows = ", ".join(f"{name}_row" for name in names)
    made = ", ".join(f"{name}_made" for name in names)
    return f"""<ir_version: {step.ir_version}, opset_import: ["" : {step.opset_import[0].version}, "{DOMAIN}" : 1]>
student (int32[1,n,1] signal, float16[1,{2 * (short + long)}] state)
    => (float[1,t,{vocab}] log_probs, float16[1,{2 * (short + long)}] next_state)
{{
    {constants}
    row = Reshape (state, minus_one)
    short_high, short_low, long_high, long_low = Split <axis = 0> (row, short_halves)
    short_high_f = Cast <to = {TensorProto.FLOAT}> (short_high)
    short_low_f = Cast <to = {TensorProto.FLOAT}> (short_low)
    short = Add (short_high_f, short_low_f)
    kept_f, step_f, past_f, buffer = Split <axis = 0> (short, header_parts)
    kept_i = Cast <to = {TensorProto.INT64}> (kept_f)
    kept = Add (kept_i, leading)
    step_i = Cast <to = {TensorProto.INT64}> (step_f)
    step = Sub (step_i, priming)
    past = Cast <to = {TensorProto.INT64}> (past_f)

    samples_i = Reshape (signal, minus_one)
    arrived = Shape (samples_i)
    samples_f = Cast <to = {TensorProto.FLOAT}> (samples_i)
    scale = Constant <value_floats = [{1 / 32768}]> ()
    samples = Mul (samples_f, scale)
    buffered = Slice (buffer, zero, kept)
    silence_f = ConstantOfShape (silence)
    total = Concat <axis = 0> (buffered, samples, silence_f)
    length = Add (kept, arrived)

    over = Sub (length, need)
    over_one = Add (over, stride)
    complete = Div (over_one, stride)
    steps = Max (complete, zero)
    {first_origin}

    any_step = Greater (steps, zero)
    log_probs, step_next, past_next, long_high_next, long_low_next = If (any_step) <
        then_branch = make_steps () => (
            float[1,t,{vocab}] log_probs_made, int64[1] step_after, int64[1] past_after,
            float16[{long}] high_made, float16[{long}] low_made
        ) {{
            long_high_f = Cast <to = {TensorProto.FLOAT}> (long_high)
            long_low_f = Cast <to = {TensorProto.FLOAT}> (long_low)
            long = Add (long_high_f, long_low_f)
            {unpack}
            origin_begun = Add (origin_kept, first_origin)
            always = Constant <value = bool {{1}}> ()
            step_after, past_after, {after}, pieces = Loop (steps, always, step, past, {begun}) <
                body = one_step (int64 number, bool go, int64[1] step_in, int64[1] past_in, {typed}) => (
                    bool go_on, int64[1] step_out, int64[1] past_out, {typed_next}, float[{rows_per_step},{vocab}] piece
                ) {{
                    go_on = Identity (go)
                    from = Mul (number, stride)
                    to = Add (from, need)
                    audio_here = Slice (total, from, to)
                    piece, {made} = {DOMAIN}.Step (audio_here, seen, past_in, {", ".join(names)})
                    is_real = GreaterOrEqual (step_in, zero)
                    past_longer = Add (past_in, chunk)
                    past_wraps = GreaterOrEqual (past_longer, two_rings)
                    past_less = Sub (past_longer, ring)
                    past_most = Where (past_wraps, past_less, past_longer)
                    past_out = Where (is_real, past_most, zero)
                    step_longer = Add (step_in, one)
                    step_out = Min (step_longer, one)
                    {keep}
                }}
            >
            flat_dims = Concat <axis = 0> (minus_one, vocab)
            pieces_flat = Reshape (pieces, flat_dims)
            step_missing = Neg (step)
            steps_dropped = Max (step_missing, zero)
            first_frame = Mul (steps_dropped, chunk)
            first_row = Mul (first_frame, per_frame)
            frames_made = Mul (steps, chunk)
            last_row = Mul (frames_made, per_frame)
            pieces_real = Slice (pieces_flat, first_row, last_row)
            log_probs_made = Unsqueeze (pieces_real, zero)
            {pack}
            long_next = Concat <axis = 0> ({rows})
            high_made = Cast <to = {TensorProto.FLOAT16}> (long_next)
            high_made_f = Cast <to = {TensorProto.FLOAT}> (high_made)
            low_made_f = Sub (long_next, high_made_f)
            low_made = Cast <to = {TensorProto.FLOAT16}> (low_made_f)
        }},
        else_branch = wait () => (
            float[1,t,{vocab}] log_probs_none, int64[1] step_same, int64[1] past_same,
            float16[{long}] high_same, float16[{long}] low_same
        ) {{
            log_probs_none = ConstantOfShape (nothing)
            step_same = Identity (step)
            past_same = Identity (past)
            high_same = Identity (long_high)
            low_same = Identity (long_low)
        }}
    >

    consumed = Mul (steps, stride)
    buffer_end = Add (consumed, need)
    buffer_next = Slice (total, consumed, buffer_end)
    kept_length = Sub (length, consumed)
    kept_next = Sub (kept_length, leading)
    step_stored = Add (step_next, priming)
    header_i = Concat <axis = 0> (kept_next, step_stored, past_next)
    header = Cast <to = {TensorProto.FLOAT}> (header_i)
    short_next = Concat <axis = 0> (header, buffer_next)
    short_high_next = Cast <to = {TensorProto.FLOAT16}> (short_next)
    short_high_next_f = Cast <to = {TensorProto.FLOAT}> (short_high_next)
    short_low_next_f = Sub (short_next, short_high_next_f)
    short_low_next = Cast <to = {TensorProto.FLOAT16}> (short_low_next_f)
    row_next = Concat <axis = 0> (short_high_next, short_low_next, long_high_next, long_low_next)
    next_state = Unsqueeze (row_next, zero)
}}"""
