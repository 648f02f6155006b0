// Sends the microphone or a file to the server's websocket and shows what comes back (docs/server.md).

import { Resampler } from "./resample.js";
import { wordsOf } from "./words.js";

const RATE = 16000;
const SLOW_S = 5; // audio waiting to be sent, in seconds, from which on the user is warned
const SEND_AHEAD = 1 << 18; // bytes that may wait in the socket while a file is sent at full speed
const $ = (id) => document.getElementById(id);

let info = { token_type: "word" };
let session = null;

// Error messages for the user

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function microphoneProblem(error) {
  const reasons = {
    NotAllowedError: "The microphone is blocked. Allow it for this page in the browser's address bar, then press Speak.",
    NotFoundError: "No microphone was found. Connect one, then press Speak.",
    NotReadableError: "The microphone is in use by another program, or switched off.",
  };
  return reasons[error.name] ?? `The microphone cannot be used: ${error.message}`;
}

function closeProblem(code) {
  if (code === 1001) return "The server was stopped.";
  if (code === 1009) return "The server refused the audio: a message was too large.";
  return "The connection to the server was lost. Is it running?";
}

// Captions

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function time(seconds) {
  return `${clock(seconds)}.${Math.floor((seconds % 1) * 10)}`;
}

function show(element, list) {
  element.replaceChildren(
    ...list.map(({ text, stable, start_s, end_s }) => {
      const word = document.createElement("span");
      word.className = stable ? "word stable" : "word";
      const [spoken, when] = [document.createElement("span"), document.createElement("small")];
      spoken.textContent = text;
      word.append(spoken, when);
      if (start_s !== undefined) {
        word.title = `${start_s.toFixed(2)} s to ${end_s.toFixed(2)} s`;
        when.textContent = time(start_s);
      }
      return word;
    }),
  );
}

// One session: from the first sample of a source to the last result

class Session {
  constructor(source) {
    this.source = source;
    this.samples = 0;
    this.began = Infinity; // time of the first sample in s: the earliest that the arrival of any later piece implies
    this.delays = [];
    this.timed = 0; // number of words of the current result whose delay has been measured
    this.computed = { audio_s: 0, seconds: 0, last: 0 };
    this.over = false;
  }

  open() {
    const url = new URL("stream", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.socket = globalThis.openSocket ? globalThis.openSocket() : new WebSocket(url); // see distill/export/web
    this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.socket.onclose = ({ code }) => this.end(closeProblem(code));
  }

  receive(message) {
    if (message.event === "hello") {
      this.socket.send(JSON.stringify({ event: "config", chunk_ms: Number($("chunk").value) }));
    } else if (message.event === "ready") {
      document.body.dataset.state = "listening";
      controls();
      this.source.start(this).catch((error) => this.end(`The audio cannot be used: ${error.message}`));
    } else if (message.event === "partial" || message.event === "final") {
      this.result(message);
    } else if (message.event === "error") {
      this.end(message.code === "full" ? "The server is full. Try again in a while." : `The server: ${message.message}`);
    } else if (message.event === "end") {
      this.end("");
    }
  }

  // Sends samples (Float32Array, 16 kHz) as 16-bit integers. live: spoken just now, so delays can be measured.
  send(samples, live) {
    if (this.over || this.socket.readyState !== WebSocket.OPEN || !samples.length) return;
    const pcm = new DataView(new ArrayBuffer(2 * samples.length));
    let peak = 0;
    samples.forEach((value, n) => {
      pcm.setInt16(2 * n, Math.max(-32768, Math.min(32767, Math.round(value * 32768))), true);
      peak = Math.max(peak, Math.abs(value));
    });
    this.socket.send(pcm.buffer);
    this.samples += samples.length;
    if (live) {
      this.began = Math.min(this.began, performance.now() / 1000 - this.samples / RATE);
      const behind = this.socket.bufferedAmount / (2 * RATE);
      problem(behind > SLOW_S ? `The connection is slow: ${behind.toFixed(0)} s of audio are waiting.` : "");
    }
    $("level").firstChild.style.transform = `scaleX(${Math.max(0, 1 + Math.log10(peak + 1e-9) / 2.5)})`;
    $("audio").textContent = clock(this.samples / RATE);
  }

  finish() {
    if (this.over || document.body.dataset.state === "finishing") return;
    document.body.dataset.state = "finishing";
    this.source.stop();
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ event: "end" }));
    else this.socket.close();
    controls();
  }

  result(message) {
    const captions = $("captions");
    const follow = captions.scrollHeight - captions.scrollTop - captions.clientHeight < 80;
    const list = wordsOf(message, info.token_type);
    if (message.event === "final") {
      if (list.length) {
        const line = document.createElement("p");
        line.className = "caption";
        line.dataset.endpoint = message.endpoint; // the rule that ended it
        show(line, list);
        $("finals").append(line);
      }
      $("partial").replaceChildren();
    } else {
      show($("partial"), list);
    }
    captions.classList.toggle("filled", Boolean($("finals").childElementCount || list.length));
    if (follow) captions.scrollTop = captions.scrollHeight;
    this.measure(message, list);
    if (message.event === "final") this.timed = 0;
  }

  measure({ audio_s, emitted_after_s }, list) {
    const now = performance.now() / 1000 - this.began;
    if (Number.isFinite(this.began) && document.body.dataset.state === "listening") {
      list = list.filter((word) => word.start_s !== undefined);
      if (list.length && !this.delays.length) $("first").textContent = `${(now - list[0].start_s).toFixed(2)} s`;
      for (const word of list.slice(this.timed)) this.delays.push(now - word.end_s);
      if (this.delays.length) {
        const median = this.delays.toSorted((a, b) => a - b)[this.delays.length >> 1];
        $("delay").textContent = `${median.toFixed(2)} s`;
      }
    }
    this.timed = list.length;
    // Several results of the same piece of audio report the same computation, which is counted once.
    const { computed } = this;
    if (audio_s === computed.audio_s) computed.seconds -= computed.last;
    Object.assign(computed, { audio_s, last: emitted_after_s, seconds: computed.seconds + emitted_after_s });
    if (audio_s > 0) $("rtf").textContent = (computed.seconds / audio_s).toFixed(3);
  }

  end(text) {
    if (this.over) return;
    this.over = true;
    this.source.stop();
    this.socket.onclose = null;
    this.socket.close();
    problem(text);
    const rest = $("partial"); // of a session that ended early: keep its last text
    if (rest.childElementCount) {
      const line = rest.cloneNode(true);
      line.removeAttribute("id");
      $("finals").append(line);
      rest.replaceChildren();
    }
    $("level").firstChild.style.transform = "";
    session = null;
    document.body.dataset.state = "idle";
    controls();
  }
}

// Sources of audio

class Microphone {
  async open() {
    if (!navigator.mediaDevices) {
      throw new Error("browsers give it only to https pages and to localhost.");
    }
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("capture.js");
  }

  async start(target) {
    const resampler = new Resampler(this.context.sampleRate, RATE);
    const node = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => target.send(resampler.accept(data), true);
    this.context.createMediaStreamSource(this.stream).connect(node);
    this.stream.getAudioTracks()[0].onended = () => target.end("The microphone was disconnected.");
    await this.context.resume();
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}

class AudioFile {
  constructor(file) {
    this.file = file;
  }

  async open() {
    const bytes = await this.file.arrayBuffer();
    // Decoding resamples to the context's rate.
    this.buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
    this.audio = new Float32Array(this.buffer.length);
    for (let c = 0; c < this.buffer.numberOfChannels; c++) {
      this.buffer.getChannelData(c).forEach((value, n) => (this.audio[n] += value / this.buffer.numberOfChannels));
    }
  }

  async start(target) {
    const aloud = $("aloud").checked;
    if (aloud) {
      this.context = new AudioContext();
      const player = new AudioBufferSourceNode(this.context, { buffer: this.buffer });
      player.connect(this.context.destination);
      player.start();
    }
    const piece = RATE / 50;
    const began = performance.now();
    for (let at = 0; at < this.audio.length && !this.stopped; at += piece) {
      const due = () => aloud && began + (1000 * (at + piece)) / RATE - performance.now();
      while (!this.stopped && (due() > 0 || target.socket.bufferedAmount > SEND_AHEAD)) {
        await new Promise((resolve) => setTimeout(resolve, Math.max(5, due())));
      }
      if (!this.stopped) target.send(this.audio.subarray(at, at + piece), aloud);
    }
    target.finish();
  }

  stop() {
    this.stopped = true;
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}

// Controls

function controls() {
  const { state } = document.body.dataset;
  $("speak").textContent = state === "idle" ? "Speak" : state === "listening" ? "Stop" : "Wait …";
  $("speak").disabled = state === "opening" || state === "finishing";
  for (const id of ["file", "chunk", "aloud"]) $(id).disabled = state !== "idle";
}

async function begin(source, explain) {
  problem("");
  document.body.dataset.state = "opening";
  controls();
  try {
    await source.open();
  } catch (error) {
    source.stop();
    document.body.dataset.state = "idle";
    controls();
    problem(explain(error));
    return;
  }
  $("finals").replaceChildren();
  $("partial").replaceChildren();
  $("captions").classList.remove("filled");
  for (const id of ["delay", "first", "rtf"]) $(id).textContent = "–";
  session = new Session(source);
  session.open();
}

$("speak").onclick = () => (session ? session.finish() : begin(new Microphone(), microphoneProblem));
$("file").onclick = () => $("chosen").click();
$("chosen").onchange = () => {
  const [file] = $("chosen").files;
  if (!file) return;
  begin(new AudioFile(file), () => `${file.name} is not audio that this browser can read.`);
  $("chosen").value = ""; // so that the same file can be chosen again
};

try {
  info = await (await fetch("info")).json();
  $("model").textContent = info.model;
  for (const ms of info.chunk_ms) $("chunk").append(new Option(`${ms} ms`, ms));
  $("chunk").value = info.defaults.chunk_ms;
} catch {
  problem("The server does not answer. Is it running? Then load this page again.");
}
controls();
