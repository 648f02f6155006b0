// Changes the sampling rate of a stream: band-limited interpolation (J. O. Smith, "Digital audio resampling") with a
// windowed sinc. What is above the lower of the two Nyquist frequencies is removed, so nothing folds back.

const CROSSINGS = 32; // zero crossings of the sinc to either side
const BETA = 8; // of the Kaiser window: 80 dB down beyond its transition, which is 0.08 of the cutoff to either side
const CUTOFF = 0.92; // of the lower Nyquist frequency, so that the transition ends below it

function bessel(x) {
  let sum = 1;
  for (let term = 1, k = 1; term > 1e-12 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}

export class Resampler {
  constructor(from, to) {
    const divisor = gcd(from, to);
    this.up = to / divisor; // output n lies at input n * down / up
    this.down = from / divisor;
    const cutoff = CUTOFF * Math.min(1, to / from);
    this.reach = Math.ceil(CROSSINGS / cutoff); // input samples to either side
    this.filters = [];
    for (let phase = 0; phase < this.up; phase++) {
      const filter = new Float64Array(2 * this.reach);
      let sum = 0;
      for (let k = 0; k < filter.length; k++) {
        const t = k - this.reach + 1 - phase / this.up; // from the output sample to the input one
        const x = Math.PI * cutoff * t;
        const inside = 1 - (t / this.reach) ** 2;
        filter[k] = inside > 0 ? (x === 0 ? 1 : Math.sin(x) / x) * bessel(BETA * Math.sqrt(inside)) : 0;
        sum += filter[k];
      }
      this.filters.push(filter.map((value) => value / sum)); // a constant stays what it is
    }
    this.input = new Float32Array(this.reach - 1); // begins with silence
    this.position = 0; // of the next output, within input, less reach - 1
    this.phase = 0;
  }

  // Outputs (Float32Array) that the samples so far determine; they lag by `reach` inputs.
  accept(samples) {
    if (this.up === this.down) return samples;
    const input = new Float32Array(this.input.length + samples.length);
    input.set(this.input);
    input.set(samples, this.input.length);
    const output = [];
    while (this.position + 2 * this.reach <= input.length) {
      const filter = this.filters[this.phase];
      let sum = 0;
      for (let k = 0; k < filter.length; k++) sum += filter[k] * input[this.position + k];
      output.push(sum);
      this.phase += this.down;
      this.position += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    const gone = Math.min(this.position, input.length);
    this.input = input.slice(gone);
    this.position -= gone;
    return Float32Array.from(output);
  }

  // What is left at the end of the stream.
  finish() {
    return this.accept(new Float32Array(this.reach));
  }
}
