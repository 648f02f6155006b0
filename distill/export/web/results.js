// Greedy decoding of a stream, and its results: as distill/decode/greedy.py and stream_results.py have them.

import { words } from "./words.js";

const RATE = 16000;
const SILENT = 3e-4; // largest sample of audio in which nothing can be heard

const rounded = (value) => Math.round(value * 1e6) / 1e6;

export class Decoder {
  // rules: {silence, empty, length} in milliseconds, or null for a rule that ends nothing.
  constructor(tokens, tokenType, frameMs, rules) {
    Object.assign(this, { names: tokens, tokenType, frame_s: frameMs / 1000 });
    this.rules = {};
    for (const name of ["silence", "empty", "length"]) this.rules[name] = Math.ceil((rules[name] ?? Infinity) / frameMs);
    this.samples = 0;
    this.firstSound = null; // in samples; nothing is recognised before it
    this.frames = 0;
    this.last = 0; // token of the frame before; 0 is blank
    this.anyWords = false; // whether a final result had any
    this.begin();
  }

  begin() {
    this.tokens = [];
    this.start = this.frames;
  }

  // Notes samples (Float32Array) that arrive now.
  receive(samples) {
    this.arrival = performance.now();
    if (this.firstSound === null) {
      const sound = samples.findIndex((value) => Math.abs(value) > SILENT);
      if (sound >= 0) this.firstSound = this.samples + sound;
    }
    this.samples += samples.length;
  }

  // Decodes the log-posteriors (frames times tokens) of a chunk; returns a final result if the utterance ends, or null.
  accept(scores) {
    this.acceptLast(scores);
    const rule = this.rule();
    if (!rule) return null;
    const { start } = this;
    const guessed = rule === "silence" && this.silent;
    const final = this.final(rule);
    if (!guessed) return final;
    this.start = start;
    return null;
  }

  // Decodes those of a chunk behind the end of the audio.
  acceptLast(scores) {
    const size = this.names.length;
    for (let at = 0; at < scores.length; at += size) {
      let best = 0;
      for (let k = 1; k < size; k++) if (scores[at + k] > scores[at + best]) best = k;
      const posterior = Math.exp(scores[at + best]);
      if (best && best === this.last) {
        const token = this.tokens.at(-1); // none if it is of the utterance before
        if (token) Object.assign(token, { end: this.frames + 1, sum: token.sum + posterior });
      } else if (best) {
        this.tokens.push({ token: this.names[best], start: this.frames, end: this.frames + 1, sum: posterior });
      }
      this.last = best;
      this.frames += 1;
    }
  }

  get empty() {
    return !this.tokens.length;
  }

  get silent() {
    return this.firstSound === null || this.firstSound >= this.frames * this.frame_s * RATE;
  }

  rule() {
    const { silence, empty, length } = this.rules;
    const age = this.frames - this.start;
    const quiet = this.frames - (this.tokens.at(-1)?.end ?? this.start);
    if (!this.empty && quiet >= silence) return "silence";
    if ((this.silent || this.empty) && age >= empty) return "empty";
    if (age >= (quiet ? length : 2 * length)) return "length"; // not within a token
    return null;
  }

  partial() {
    return this.result("partial", null, this.tokens.length - (this.last !== 0 ? 1 : 0));
  }

  // The last result of the stream.
  finish() {
    return this.final("end");
  }

  final(endpoint) {
    const result = this.result("final", endpoint, this.tokens.length);
    this.anyWords ||= result.tokens.length > 0;
    this.begin();
    return result;
  }

  // stable: tokens that cannot change any more.
  result(event, endpoint, stable) {
    const audio_s = this.samples / RATE;
    const seconds = (frame) => rounded(Math.min(frame * this.frame_s, audio_s));
    const tokens = (this.silent ? [] : this.tokens).map(({ token, start, end, sum }) => ({
      token,
      start_s: seconds(start),
      end_s: seconds(end),
      confidence: rounded(sum / (end - start)),
    }));
    const text = this.text(tokens);
    return {
      event,
      text,
      stable: endpoint ? text : this.text(this.wholeWords(tokens.slice(0, Math.max(0, stable)))),
      start_s: seconds(this.start),
      endpoint,
      audio_s,
      emitted_after_s: (performance.now() - this.arrival) / 1000,
      tokens,
    };
  }

  text(tokens) {
    return words(tokens, this.tokenType)
      .map((word) => word.text)
      .join(" ");
  }

  // Without the last word if it may go on.
  wholeWords(tokens) {
    if (this.tokenType === "char" || this.tokenType === "bpe") {
      while (tokens.length && tokens.at(-1).token !== "<space>" && !tokens.pop().token.startsWith("▁"));
    }
    return tokens;
  }
}
