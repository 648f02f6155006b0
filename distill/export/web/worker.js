// Streaming recognition with onnxruntime-web: the same steps, tokens and times as distill/export/recognizer.py.

import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL(".", import.meta.url).href;

const RATE = 16000;
const ENDPOINT_S = 0.8; // silence behind the last word that ends a caption

const scalar = (value) => new ort.Tensor("int64", BigInt64Array.of(BigInt(value)), []);

class Stream {
  constructor(session, model) {
    Object.assign(this, { session, model, samples: 0, led: false, past: 0, chunks: -model.priming });
    this.buffer = new Float32Array(0);
    this.reset();
    this.frames = 0;
    this.last = 0;
    this.tokens = [];
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

  // Takes samples (Float32Array); whether they completed a chunk.
  async accept(samples) {
    const { model } = this;
    this.samples += samples.length;
    this.append(this.buffer, samples);
    if (!this.led && this.buffer.length >= model.lead) {
      const mirrored = this.buffer.slice(0, model.lead).reverse();
      this.append(new Float32Array(model.leading), mirrored, this.buffer);
      this.led = true;
    }
    let complete = false;
    while (this.led && this.buffer.length >= model.samples) complete = (await this.step()) || complete;
    return complete;
  }

  // Silence that brings out all of the audio.
  async flush() {
    const { model } = this;
    if (!this.samples) return;
    const seen = this.samples + model.end_silence + model.lead + model.tail;
    const frames = Math.floor(Math.max(0, seen - model.window) / model.hop) + 1;
    const needed = Math.ceil(frames / model.chunk) * model.chunk + model.lookahead;
    const silence = model.hop * (needed - 1) + model.window - model.lead - this.samples;
    await this.accept(new Float32Array(Math.max(0, silence)));
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
      return false;
    }
    this.past += model.chunk;
    this.decode(outputs.log_probs.data);
    return true;
  }

  decode(scores) {
    const size = this.model.tokens.length;
    for (let at = 0; at < scores.length; at += size) {
      let best = 0;
      for (let k = 1; k < size; k++) if (scores[at + k] > scores[at + best]) best = k;
      if (best && best === this.last) this.tokens.at(-1).end = this.frames + 1;
      else if (best) this.tokens.push({ token: this.model.tokens[best], start: this.frames, end: this.frames + 1 });
      this.last = best;
      this.frames += 1;
    }
  }

  result(event, audio_s, emitted_after_s) {
    const seconds = (frame) => Math.min((frame * this.model.frame_ms) / 1000, audio_s);
    const tokens = this.tokens.map(({ token, start, end }) => ({ token, start_s: seconds(start), end_s: seconds(end) }));
    if (event === "final") Object.assign(this, { tokens: [], last: 0 });
    return { event, tokens, audio_s, emitted_after_s };
  }

  get atEndpoint() {
    const end = this.tokens.at(-1)?.end;
    return end !== undefined && ((this.frames - end) * this.model.frame_ms) / 1000 >= ENDPOINT_S;
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

const work = (async () => {
  const model = await (await fetch("model.json")).json();
  ort.env.wasm.wasmBinary = (await unpacked("ort-wasm-simd-threaded.wasm.gz")).buffer;
  const session = await ort.InferenceSession.create(await unpacked("model.onnx.gz"), { executionProviders: ["wasm"] });
  postMessage({ event: "hello" });
  return new Stream(session, model);
})();

let before = work;
let audio_s = 0;

async function receive(message) {
  const stream = await work;
  const began = performance.now();
  const spent = () => (performance.now() - began) / 1000;
  if (message instanceof ArrayBuffer) {
    const pcm = new Int16Array(message);
    const complete = await stream.accept(Float32Array.from(pcm, (value) => value / 32768));
    audio_s += pcm.length / RATE;
    postMessage({ event: "taken", bytes: message.byteLength });
    if (complete) postMessage(stream.result(stream.atEndpoint ? "final" : "partial", audio_s, spent()));
  } else if (message.event === "config") {
    postMessage({ event: "ready" });
  } else if (message.event === "end") {
    await stream.flush();
    postMessage(stream.result("final", audio_s, spent()));
    postMessage({ event: "end" });
  }
}

const fail = (error) => postMessage({ event: "error", message: String(error?.message ?? error) });
before.catch(fail);
onmessage = ({ data }) => {
  before = before.then(() => receive(data)).catch(fail); // one after the other
};
