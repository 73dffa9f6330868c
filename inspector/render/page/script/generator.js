// The random numbers of a draw, as torch's generator on the CPU gives them: Mersenne Twister, and of it exponential times.
const Generator = (() => {
  "use strict";

  const N = 624; // words of the state
  const M = 397; // how far the word is that each is mixed with

  /**
   * torch.Generator().manual_seed(seed) on the CPU.
   *
   * Source: Matsumoto and Nishimura 1998, "Mersenne Twister"; torch seeds it with the lowest 32 bits.
   */
  class Mt19937 {
    /** @param {number | bigint | string} seed a whole number from 0 to 2^63 − 1; beyond 2^53 as a bigint or as digits */
    constructor(seed) {
      this.state = new Uint32Array(N);
      this.next = N;
      this.state[0] = Number(BigInt(seed) & 0xffffffffn);
      for (let i = 1; i < N; i++) {
        const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
        this.state[i] = Math.imul(1812433253, before) + i;
      }
    }

    /** @returns {Mt19937} another one, which goes on from here */
    copy() {
      const other = Object.create(Mt19937.prototype);
      return Object.assign(other, { state: this.state.slice(), next: this.next });
    }

    /** Mixes the whole state anew. */
    twist() {
      const state = this.state;
      const mix = (i, next, far) => {
        const bits = (state[i] & 0x80000000) | (state[next] & 0x7fffffff);
        state[i] = state[far] ^ (bits >>> 1) ^ (-(bits & 1) & 0x9908b0df);
      };
      for (let i = 0; i < N - M; i++) mix(i, i + 1, i + M);
      for (let i = N - M; i < N - 1; i++) mix(i, i + 1, i + M - N);
      mix(N - 1, 0, M - 1);
      this.next = 0;
    }

    /** @returns {number} the next 32 random bits, as a whole number */
    word() {
      if (this.next === N) this.twist();
      let bits = this.state[this.next++];
      bits ^= bits >>> 11;
      bits ^= (bits << 7) & 0x9d2c5680;
      bits ^= (bits << 15) & 0xefc60000;
      return (bits ^ (bits >>> 18)) >>> 0;
    }

    /** @param {number} count passes over so many numbers of `exponential` */
    skip(count) {
      for (let left = 2 * count; left > 0; ) {
        if (this.next === N) this.twist();
        const step = Math.min(left, N - this.next);
        this.next += step;
        left -= step;
      }
    }

    /**
     * tensor.exponential_(1, generator=g) of a float32 tensor with so many numbers.
     *
     * Each takes 53 random bits as a uniform u in [0, 1), and is −log(1 − u), computed in float64 and rounded to float32.
     * @param {number} count how many
     * @returns {Float32Array}
     */
    exponential(count) {
      const numbers = new Float32Array(count);
      for (let i = 0; i < count; i++) {
        const high = this.word() & 0x1fffff; // of 64 bits torch takes the lowest 53
        numbers[i] = -Math.log1p(-(high * 2 ** 32 + this.word()) * 2 ** -53);
      }
      return numbers;
    }
  }

  /**
   * The noise q of step after step of one run: every step takes one number per token of the vocabulary.
   * @param {number | bigint | string} seed of the run
   * @param {number} vocabulary tokens
   * @param {number} steps how many
   * @param {number} [first] the step to begin with
   * @returns {Float32Array[]} q of each step, by token id
   */
  function noise(seed, vocabulary, steps, first = 0) {
    const generator = new Mt19937(seed);
    generator.skip(first * vocabulary);
    return Array.from({ length: steps }, () => generator.exponential(vocabulary));
  }

  return { noise, Mt19937 };
})();
