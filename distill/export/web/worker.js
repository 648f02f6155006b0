// Streaming recognition with onnxruntime-web: the same steps as in distill/export/recognizer.py.

import * as ort from "./ort.wasm.min.mjs";
import { Decoder } from "./results.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL(".", import.meta.url).href;

const RATE = 16000;
const scalar = (value) => new ort.Tensor("int64", BigInt64Array.of(BigInt(value)), []);

class Stream {
  constructor(session, model, decoder) {
    Object.assign(this, { session, model, decoder, samples: 0, led: false, past: 0, chunks: -model.priming });
    this.buffer = new Float32Array(0);
    this.reset();
  }

  reset() {
    this.state = {};
    for (const [name, shape] of Object.entries(this.model.state)) {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      if (name === "origin") values.fill(1, 0, values.length / 2);
      this.state[name] = new ort.Tensor("float32", values, shape);
    }
  }

  append(...parts) {
    const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
    this.buffer = whole;
  }

  // Takes samples (Float32Array); returns the final results of utterances that end, then the partial one of the next.
  async accept(samples) {
    const { decoder } = this;
    const results = [];
    let any = false;
    decoder.receive(samples);
    for await (const scores of this.chunksWith(samples)) {
      const final = decoder.accept(scores);
      if (final) results.push(final);
      any = true;
    }
    if (any && !(results.length && decoder.empty)) results.push(decoder.partial());
    return results;
  }

  // Recognises what is left of the audio; returns the last final result, unless it says nothing.
  async finish() {
    const { decoder } = this;
    const { anyWords } = decoder;
    decoder.receive(new Float32Array(0));
    for await (const scores of this.chunksWith(this.silence())) decoder.acceptLast(scores);
    const result = decoder.finish();
    return anyWords && !result.tokens.length ? [] : [result];
  }

  // Silence that brings out all of the audio.
  silence() {
    const { model } = this;
    if (!this.samples) return new Float32Array(0);
    const seen = this.samples + model.end_silence + model.lead + model.tail;
    const frames = Math.floor(Math.max(0, seen - model.window) / model.hop) + 1;
    const needed = Math.ceil(frames / model.chunk) * model.chunk + model.lookahead;
    return new Float32Array(Math.max(0, model.hop * (needed - 1) + model.window - model.lead - this.samples));
  }

  // Log-posteriors of each chunk that samples complete.
  async *chunksWith(samples) {
    const { model } = this;
    this.samples += samples.length;
    this.append(this.buffer, samples);
    if (!this.led && this.buffer.length >= model.lead) {
      const mirrored = this.buffer.slice(0, model.lead).reverse();
      this.append(new Float32Array(model.leading), mirrored, this.buffer);
      this.led = true;
    }
    while (this.led && this.buffer.length >= model.samples) {
      const scores = await this.step();
      if (scores) yield scores;
    }
  }

  async step() {
    const { model } = this;
    const samples = new ort.Tensor("float32", this.buffer.slice(0, model.samples), [model.samples]);
    const inputs = { samples, frames: scalar(model.chunk + model.lookahead), past: scalar(this.past), ...this.state };
    const outputs = await this.session.run(inputs);
    for (const name in this.state) this.state[name] = outputs[`next_${name}`];
    this.buffer = this.buffer.slice(model.chunk * model.hop);
    this.chunks += 1;
    if (this.chunks <= 0) {
      // it only filled the look-ahead
      const { ahead } = this.state;
      this.reset();
      this.state.ahead = ahead;
      return null;
    }
    this.past += model.chunk;
    return outputs.log_probs.data;
  }
}

// The bytes of a file that is kept compressed, as few servers compress what they send.
async function unpacked(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes; // the server declared it, and the browser unpacked it
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const json = async (name) => (await fetch(name)).json();

const work = (async () => {
  const [model, info] = await Promise.all([json("model.json"), json("info")]);
  ort.env.wasm.wasmBinary = (await unpacked("ort-wasm-simd-threaded.wasm.gz")).buffer;
  const session = await ort.InferenceSession.create(await unpacked("model.onnx.gz"), { executionProviders: ["wasm"] });
  postMessage({ event: "hello", ...info });
  return new Stream(session, model, new Decoder(model.tokens, info.token_type, model.frame_ms, info.defaults));
})();

let before = work;

async function receive(message) {
  const stream = await work;
  if (message instanceof ArrayBuffer) {
    const results = await stream.accept(Float32Array.from(new Int16Array(message), (value) => value / 32768));
    postMessage({ event: "taken", bytes: message.byteLength });
    results.forEach((result) => postMessage(result));
  } else if (message.event === "config") {
    postMessage({ event: "ready" });
  } else if (message.event === "end") {
    (await stream.finish()).forEach((result) => postMessage(result));
    postMessage({ event: "end" });
  }
}

const fail = (error) => postMessage({ event: "error", message: String(error?.message ?? error) });
before.catch(fail);
onmessage = ({ data }) => {
  before = before.then(() => receive(data)).catch(fail); // one after the other
};
