// From recorded logits to a token, as inspector/loop/sampling.py does it: the filters in transformers' order, what each removed,
// the draw. In float32 throughout, in the order in which torch adds, so that sums that decide what stays round alike.
const Sampler = (() => {
  "use strict";

  const f32 = Math.fround;
  const GONE = -Infinity; // the score of a token that was removed
  const LANES = 16; // numbers that torch adds at once, with AVX-512; elsewhere its sums differ in the last bit

  /** The filters in the order in which they act. */
  const FILTERS = [
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
  ];
  const DRAWS = new Set(["temperature", "top_k", "top_p", "min_p", "typical_p"]); // a greedy run has no use for these

  /**
   * Whether a filter acts in a run of these settings.
   * @param {object} sampling as a Run records it
   * @param {string} name of `FILTERS`
   */
  function isOn(sampling, name) {
    const value = sampling[name];
    if (value === null || value === undefined) return false;
    if (DRAWS.has(name) && sampling.temperature === 0) return false;
    if (name === "min_length" && isOn(sampling, "min_new_tokens")) return false; // which stands above it
    if (name === "repetition_penalty" || name === "temperature") return value !== 1;
    if (name === "top_p" || name === "typical_p") return value < 1;
    return Array.isArray(value) || name === "forced_bos_token_id" || value > 0;
  }

  // ---- arithmetic as torch's on the CPU ----

  /** a · b + c, rounded once: the product of two float32 is exact in float64. */
  const fma = (a, b, c) => f32(a * b + c);

  const [PER_LN2, LN2_HIGH, LN2_LOW] = [1.442695040888963407, 0.693145751953125, 1.428606765330187045e-6].map(f32);
  const SERIES = [
    0.000198527617612853646278381, 0.00139304355252534151077271, 0.00833336077630519866943359, 0.0416664853692054748535156,
    0.166666671633720397949219, 0.5,
  ].map(f32);

  /** The even one of the two nearest whole numbers, where both are equally near. */
  function round(x) {
    const below = Math.floor(x);
    if (x - below !== 0.5) return Math.round(x);
    return below % 2 === 0 ? below : below + 1;
  }

  /**
   * exp in float32, to the bit what torch's vectors give: a polynomial of what is left of x beside the powers of two in e^x.
   *
   * Source: Shibata and Petrogalli 2020, "SLEEF" (arXiv 2001.09258).
   */
  function exp(x) {
    if (x < -104) return 0;
    if (x > 100) return Infinity;
    const power = round(f32(x * PER_LN2));
    const s = fma(power, -LN2_LOW, fma(power, -LN2_HIGH, x));
    const u = SERIES.reduce((sum, term) => fma(sum, s, term));
    // In two steps, as a power of two below float32's smallest would be 0.
    const half = power >> 1;
    return f32(f32(f32(1 + fma(f32(s * s), u, s)) * 2 ** half) * 2 ** (power - half));
  }

  /** The sum of float32 numbers, in the order in which torch's vectors add them. */
  function sum(numbers) {
    const size = numbers.length;
    if (size < LANES) return numbers.reduce((total, x) => f32(total + x), 0);
    const lanes = new Float32Array(LANES);
    for (let i = 0; i < size; i++) lanes[i % LANES] += numbers[i];
    for (let width = LANES / 2; width >= 1; width /= 2) for (let i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
  }

  const largest = (numbers) => numbers.reduce((most, x) => Math.max(most, x), -Infinity);

  /**
   * torch.softmax in float32.
   * @param {Float32Array} scores
   * @param {{logit: number, weight: number}} [rest] so many tokens more with one score
   * @returns {Float32Array}
   */
  function softmax(scores, rest = NO_REST) {
    const most = largest(scores);
    const exps = scores.map((x) => exp(f32(x - most)));
    const total = rest.weight ? sum(exps) + rest.weight * Math.exp(rest.logit - most) : sum(exps);
    const share = f32(1 / total);
    return exps.map((x) => f32(x * share));
  }

  /** Running sums as torch.cumsum has them: added in float64, each rounded to float32. */
  function cumulated(numbers, begin = 0) {
    let total = begin;
    return numbers.map((x) => (total += x));
  }

  /**
   * The places of the numbers in ascending order, as torch.sort gives them where it is not told to be stable: equal numbers stand in
   * the order of the C++ library's std::sort (Musser 1997, "Introspective Sorting", in the form of libstdc++), which torch calls.
   * @param {Float32Array} numbers
   * @returns {Uint32Array}
   */
  function sorted(numbers) {
    const places = Uint32Array.from(numbers, (_, i) => i);
    const less = (a, b) => numbers[a] < numbers[b];
    const swap = (i, j) => ([places[i], places[j]] = [places[j], places[i]]);
    const SMALL = 16; // pieces up to this length are left to the insertion at the end

    function insert(at, first) {
      const value = places[at];
      while (at > first && less(value, places[at - 1])) places[at] = places[--at];
      places[at] = value;
    }

    function sink(first, hole, length, value) {
      const top = hole;
      let child = hole;
      while (child < Math.floor((length - 1) / 2)) {
        child = 2 * (child + 1);
        if (less(places[first + child], places[first + child - 1])) child--;
        places[first + hole] = places[first + child];
        hole = child;
      }
      if (length % 2 === 0 && child === (length - 2) / 2) {
        child = 2 * child + 1;
        places[first + hole] = places[first + child];
        hole = child;
      }
      for (let parent = (hole - 1) >> 1; hole > top && less(places[first + parent], value); parent = (hole - 1) >> 1) {
        places[first + hole] = places[first + parent];
        hole = parent;
      }
      places[first + hole] = value;
    }

    function heapsort(first, end) {
      const length = end - first;
      for (let parent = (length - 2) >> 1; parent >= 0; parent--) sink(first, parent, length, places[first + parent]);
      for (let last = end - 1; last > first; last--) {
        const value = places[last];
        places[last] = places[first];
        sink(first, 0, last - first, value);
      }
    }

    /** Brings the middle one of three to the front, and splits the others by it. */
    function split(first, end) {
      const [a, b, c] = [first + 1, first + ((end - first) >> 1), end - 1];
      const [A, B, C] = [places[a], places[b], places[c]];
      if (less(A, B)) swap(first, less(B, C) ? b : less(A, C) ? c : a);
      else swap(first, less(A, C) ? a : less(B, C) ? c : b);
      let [low, high] = [first + 1, end];
      for (; ; low++) {
        while (less(places[low], places[first])) low++;
        high--;
        while (less(places[first], places[high])) high--;
        if (low >= high) return low;
        swap(low, high);
      }
    }

    function loop(first, end, depth) {
      for (; end - first > SMALL; depth--) {
        if (depth === 0) return heapsort(first, end);
        const cut = split(first, end);
        loop(cut, end, depth - 1);
        end = cut;
      }
    }

    if (numbers.length) loop(0, numbers.length, 2 * (31 - Math.clz32(numbers.length)));
    for (let i = 1; i < numbers.length; i++) insert(i, 0);
    return places;
  }
