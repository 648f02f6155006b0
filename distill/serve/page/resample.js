// Resamples a stream by band-limited interpolation with a windowed sinc (J. O. Smith, "Digital audio resampling").
// Frequencies above the lower of the two Nyquist frequencies are removed, so there is no aliasing.

const CROSSINGS = 32; // zero crossings of the sinc on each side
const BETA = 8; // of the Kaiser window: 80 dB attenuation beyond a transition band of 0.08 of the cutoff on each side
const CUTOFF = 0.92; // times the lower Nyquist frequency, so that the transition band ends below it

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
    this.reach = Math.ceil(CROSSINGS / cutoff); // input samples that the filter covers on each side
    this.filters = [];
    for (let phase = 0; phase < this.up; phase++) {
      const filter = new Float64Array(2 * this.reach);
      let sum = 0;
      for (let k = 0; k < filter.length; k++) {
        const t = k - this.reach + 1 - phase / this.up; // input time minus output time, in input samples
        const x = Math.PI * cutoff * t;
        const inside = 1 - (t / this.reach) ** 2;
        filter[k] = inside > 0 ? (x === 0 ? 1 : Math.sin(x) / x) * bessel(BETA * Math.sqrt(inside)) : 0;
        sum += filter[k];
      }
      this.filters.push(filter.map((value) => value / sum)); // gain 1 at 0 Hz
    }
    this.input = new Float32Array(this.reach - 1); // silence before the first sample
    this.position = 0; // first sample of input that the next output needs
    this.phase = 0;
  }

  // Takes samples and returns the output samples (Float32Array) that are complete; they lag by `reach` input samples.
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

  // The remaining output samples at the end of the stream.
  finish() {
    return this.accept(new Float32Array(this.reach));
  }
}
