"""usage: distill COMMAND [OPTIONS]        distill COMMAND --help

Recognise
  transcribe       audio files or a microphone, with partial results as they come
  decode           test sets, with any decoder, as a streaming session or with full context
  score            word error rate of what decode wrote
  kaldi_text, make_decoding_graph, compute_posteriors    results, graphs and arks for Kaldi
Deploy
  serve            captions in a browser, and a websocket for programs
  stream_client    recognise audio on such a server
  export           a streaming student as ONNX, for onnxruntime and sherpa-onnx
  pack             a model as one file to pass on
Train; a recipe (egs2/*/asr_distill1/run.sh) calls these in order
  check_recipe, check_teacher    options before a run; whether a teacher is worth distilling
  plan             disk space and hours that a run will take
  prepare_librispeech, prepare_mini_librispeech    data directories of a corpus
  prepare_gigaspeech, prepare_speechocean762, prepare_fsdd    likewise
  prepare_synth, import_data    likewise of synthesised speech, and of Kaldi's
  check_data, utterance_lengths    faults in data directories; samples of each utterance
  phone_tokens     token list and texts in phones, from a lexicon
  adopt_teacher    make a teacher of a model that was fine-tuned elsewhere
  make_graph, extract_targets    denominator graph of LF-MMI; the teacher's outputs
  student_config   training configuration for another student
  train            a teacher or a student
  make_lm, tune_decoding    n-gram language model for decoding, and its weights
Measure and report
  results          table of all scores of an experiment
  ablation         table of students that differ in one thing
  speed, latency   real-time factor and size; delay of a streaming student
  report           a web page of an experiment
Within recipes
  stage, watch, watch_jobs    what was done before, progress of a training and of jobs
"""

import difflib
import importlib
import sys
from pathlib import Path

NO_COMMANDS = ("__init__", "arguments", "decoding_arguments", "endpoint_arguments", "main", "option_strings")


def main(argv: list[str] | None = None) -> None:
    """Run the command that the first argument names; each is a module of distill.bin, loaded when it is needed."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("--help", "-h"):
        print(__doc__, end="")
        return
    names = {path.stem for path in Path(__file__).parent.glob("*.py")}
    if command not in names.difference(NO_COMMANDS):
        near = difflib.get_close_matches(command, names.difference(NO_COMMANDS), n=1)
        cure = " ".join([*(f"{name}?" for name in near), "distill --help lists them"])
        print(f"error: {command}: not a command; {cure}", file=sys.stderr)
        sys.exit(2)
    sys.argv[0] = f"distill {command}"  # the name in its messages
    importlib.import_module(f"distill.bin.{command}").main(arguments)


if __name__ == "__main__":
    main()
