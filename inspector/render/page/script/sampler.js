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

  /**
   * The tokens whose logits are not recorded, as a block.
   * @typedef {object} Rest
   * @property {number} count how many there are
   * @property {number} weight that many of them, which need not be whole, have the score `logit`; those beyond it have no probability
   * @property {number} logit
   */

  /** @type {Rest} */
  const NO_REST = { count: 0, weight: 0, logit: GONE };

  // ---- arithmetic as torch's on the CPU ----

  /** a · b + c, rounded once: the product of two float32 is exact in float64. */
  const fma = (a, b, c) => f32(a * b + c);

  const [PER_LN2, LN2_HIGH, LN2_LOW] = [1.442695040888963407, 0.693145751953125, 1.428606765330187045e-6].map(f32);
  const [E6, E5, E4, E3, E2] = [
    0.000198527617612853646278381, 0.00139304355252534151077271, 0.00833336077630519866943359, 0.0416664853692054748535156,
    0.166666671633720397949219,
  ].map(f32);

  const POWERS = Float64Array.from({ length: 253 }, (_, i) => 2 ** (i - 126)); // 2 ** x is slow

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
    const u = fma(fma(fma(fma(fma(E6, s, E5), s, E4), s, E3), s, E2), s, 0.5);
    // In two steps, as a power of two below float32's smallest would be 0.
    const half = power >> 1;
    return f32(f32(f32(1 + fma(f32(s * s), u, s)) * POWERS[half + 126]) * POWERS[power - half + 126]);
  }

  /** The sum of float32 numbers, in the order in which torch's vectors add them. */
  function sum(numbers) {
    const size = numbers.length;
    if (size < LANES) return numbers.reduce((total, x) => f32(total + x), 0);
    const lanes = new Float32Array(LANES);
    for (let i = 0; i < size; i++) lanes[i & (LANES - 1)] += numbers[i];
    for (let width = LANES / 2; width >= 1; width /= 2) for (let i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
  }

  function largest(numbers) {
    let most = -Infinity;
    for (let i = 0; i < numbers.length; i++) most = Math.max(most, numbers[i]);
    return most;
  }

  /**
   * torch.softmax in float32.
   * @param {Float32Array} scores
   * @param {Rest} [rest] of the tokens that are not among them
   * @returns {Float32Array}
   */
  function softmax(scores, rest = NO_REST) {
    const { most, exps, total } = weighed(scores, rest);
    const share = f32(1 / total);
    for (let i = 0; i < exps.length; i++) exps[i] *= share;
    return exps;
  }

  /** What softmax divides: the exponentials beside the largest score, and their sum. */
  function weighed(scores, rest) {
    const most = rest.weight ? Math.max(largest(scores), rest.logit) : largest(scores);
    const exps = new Float32Array(scores.length);
    for (let i = 0; i < exps.length; i++) exps[i] = exp(f32(scores[i] - most));
    return { most, exps, total: rest.weight ? sum(exps) + rest.weight * Math.exp(rest.logit - most) : sum(exps) };
  }

  /** Running sums as torch.cumsum has them: added in float64, each rounded to float32. */
  function cumulated(numbers) {
    let total = 0;
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

  // ---- what is given ----

  /** A recorded logit: what JSON has no number for is a text in it. */
  const finite = (logit) => (logit === "-inf" ? GONE : Number(logit));

  /**
   * A recorded step as the filters take it: its tokens by ascending id, as torch has them.
   * @param {object} distribution a `Distribution` as a Run records it
   * @param {object[]} [extras] candidates that may stand beyond it, as the chosen one: their logits are known too
   * @returns {{ids: Int32Array, logits: Float32Array, draws: ?Float32Array, place: Map<number, number>, size: number,
   *   rest: number, restMass: number, floor: number, beyond: Set<number>}} `size` is the vocabulary's, `floor` the largest logit that
   *   one of the `rest` tokens can have, `place` where an id stands, `beyond` the ids of known tokens that stand somewhere among the rest
   */
  function prepare(distribution, extras = []) {
    const { ids, logits, draws, rest, rest_mass: restMass } = distribution;
    const known = ids.map((id, i) => ({ id, logit: finite(logits[i]), draw: draws ? draws[i] : null }));
    const step = { size: ids.length + rest, rest, restMass, floor: f32(known.length ? known[known.length - 1].logit : 0) };
    step.beyond = new Set();
    for (const { token, logit, draw, probability_before: p } of extras) {
      if (!step.rest || known.some(({ id }) => id === token.id)) continue;
      known.push({ id: token.id, logit: finite(logit), draw });
      step.beyond.add(token.id);
      step.rest -= 1;
      step.restMass = Math.max(0, step.restMass - p);
    }
    known.sort((a, b) => a.id - b.id);
    step.ids = Int32Array.from(known, ({ id }) => id);
    step.logits = Float32Array.from(known, ({ logit }) => logit);
    step.draws = draws ? Float32Array.from(known, ({ draw }) => draw ?? NaN) : null;
    step.place = new Map(known.map(({ id }, i) => [id, i]));
    return step;
  }

  /**
   * What of the rest is known is how many tokens it has, their mass, and the largest logit that one of them can have. Two guesses at
   * its shape stand at the two ends of what can be: all its tokens alike, and as few as possible with all the mass.
   */
  const SHAPES = {
    flat(step, weight) {
      return { count: step.rest, weight: step.rest, logit: Math.min(step.floor, largest(step.logits) + Math.log(weight / step.rest)) };
    },
    steep(step, weight) {
      const most = Math.exp(step.floor - largest(step.logits));
      return { count: step.rest, weight: Math.min(step.rest, weight / most), logit: step.floor };
    },
  };

  function restOf(step, shape) {
    if (!step.rest) return NO_REST;
    if (!(step.restMass > 0)) return { count: step.rest, weight: 0, logit: GONE };
    const recorded = weighed(step.logits, NO_REST).total;
    return SHAPES[shape](step, (recorded * step.restMass) / (1 - step.restMass));
  }

  // ---- the filters: each takes scores and the rest, and returns what it makes of them ----

  function map(scores, keep) {
    const left = scores.slice();
    for (let i = 0; i < left.length; i++) if (!keep(left[i], i)) left[i] = GONE;
    return left;
  }

  /** So many tokens of the rest fewer; which, is not known. */
  const fewer = (rest, count) => ({ ...rest, count: rest.count - count, weight: Math.max(0, Math.min(rest.weight - count, rest.count - count)) });

  function without(state, ids, { step }) {
    const scores = state.scores.slice();
    const beyond = new Set(state.beyond);
    for (const id of ids) {
      if (id >= step.size) continue;
      if (step.place.has(id)) scores[step.place.get(id)] = GONE;
      else beyond.add(id);
    }
    return { scores, beyond, rest: fewer(state.rest, beyond.size - state.beyond.size) };
  }

  function only(state, ids, { step }) {
    const scores = new Float32Array(state.scores.length).fill(GONE);
    const beyond = new Set();
    for (const id of ids) {
      if (step.place.has(id)) scores[step.place.get(id)] = 0;
      else beyond.add(id);
    }
    return { scores, beyond: state.beyond, rest: beyond.size ? { count: beyond.size, weight: beyond.size, logit: 0 } : NO_REST };
  }

  /**
   * What a filter by rank left of a state; loose where a known token that stands among the rest may fare otherwise than here: of the rest
   * nobody knows how many are before it.
   */
  function ranked(before, after, { step }) {
    const at = [...step.beyond].map((id) => step.place.get(id)).filter((place) => before.scores[place] !== GONE);
    const loose = before.rest.count > 0 && at.some((place) => after.rest.count > 0 || after.scores[place] !== GONE);
    return { ...after, loose: before.loose || loose };
  }

  const APPLY = {
    repetition_penalty(state, given) {
      const { step, context } = given;
      const penalty = f32(given.sampling.repetition_penalty);
      const scores = state.scores.slice();
      let beyond = 0;
      for (const id of new Set(context)) {
        const at = step.place.get(id);
        if (at === undefined) beyond += !state.beyond.has(id);
        else scores[at] = scores[at] < 0 ? scores[at] * penalty : scores[at] / penalty;
      }
      if (!state.rest.count || !beyond) return { ...state, scores };
      // Those of the rest may lose all their mass, or nothing; with a penalty below 1 they may rise by no one knows how much.
      const weight = given.loses ? Math.max(0, state.rest.weight - beyond) : state.rest.weight;
      return { ...state, scores, rest: { ...state.rest, weight }, loose: penalty < 1 };
    },

    no_repeat_ngram_size(state, given) {
      const { context } = given;
      const size = given.sampling.no_repeat_ngram_size;
      const ids = [];
      for (let at = 0; at + size <= context.length; at++) {
        let begun = true;
        for (let i = 0; i < size - 1; i++) begun &&= context[at + i] === context[context.length - size + 1 + i];
        if (begun) ids.push(context[at + size - 1]);
      }
      return without(state, ids, given);
    },

    bad_words_ids(state, given) {
      const { context, bounds } = given;
      const ids = [];
      for (const word of given.sampling.bad_words_ids) {
        const last = word.length - 1;
        if (last === 0 && bounds.stopIds.includes(word[0])) continue;
        const begin = context.length - last;
        if (begin >= 0 && word.every((id, i) => i === last || id === context[begin + i])) ids.push(word[last]);
      }
      return without(state, ids, given);
    },

    min_length(state, given) {
      return given.context.length < given.sampling.min_length ? without(state, given.bounds.stopIds, given) : state;
    },

    min_new_tokens(state, given) {
      const fresh = given.context.length - given.bounds.promptLength;
      return fresh < given.sampling.min_new_tokens ? without(state, given.bounds.stopIds, given) : state;
    },

    forced_bos_token_id(state, given) {
      return given.context.length === 1 ? only(state, [given.sampling.forced_bos_token_id], given) : state;
    },

    forced_eos_token_id(state, given) {
      return given.context.length + 1 === given.bounds.maxLength ? only(state, given.sampling.forced_eos_token_id, given) : state;
    },

    suppress_tokens(state, given) {
      return without(state, given.sampling.suppress_tokens, given);
    },

    begin_suppress_tokens(state, given) {
      const { sampling, bounds, context } = given;
      const forced = bounds.promptLength === 1 && (sampling.forced_bos_token_id ?? null) !== null;
      return context.length === bounds.promptLength + forced ? without(state, sampling.begin_suppress_tokens, given) : state;
    },

    temperature(state, given) {
      const temperature = f32(given.sampling.temperature);
      return {
        ...state,
        scores: state.scores.map((x) => x / temperature),
        rest: { ...state.rest, logit: state.rest.logit / temperature },
      };
    },

    top_k(state, given) {
      const { scores, rest } = state;
      const k = Math.min(given.sampling.top_k, scores.length + rest.count);
      const descending = scores.slice().sort().reverse();
      const above = descending.findLastIndex((x) => x >= rest.logit) + 1; // those before the rest, or beside it
      if (!rest.count || k <= above) {
        const least = descending[k - 1];
        return ranked(state, { ...state, scores: map(scores, (x) => x >= least), rest: rest.logit < least ? NO_REST : rest }, given);
      }
      if (k > above + rest.count) {
        const least = descending[k - 1 - rest.count];
        return ranked(state, { ...state, scores: map(scores, (x) => x >= least) }, given);
      }
      const count = k - above;
      const left = { ...rest, count, weight: Math.min(rest.weight, count) };
      return ranked(state, { ...state, scores: map(scores, (x) => x >= rest.logit), rest: left }, given);
    },

    top_p(state, given) {
      const { scores, rest } = state;
      const limit = f32(1 - given.sampling.top_p);
      const places = sorted(scores);
      const ascending = scores.map((_, i) => scores[places[i]]);
      if (!rest.weight) {
        const gone = cumulated(softmax(ascending)).map((mass, i) => mass <= limit && i < places.length - 1);
        const out = new Set(places.filter((_, i) => gone[i]));
        return { ...state, scores: map(scores, (_, i) => !out.has(i)), rest: NO_REST };
      }
      const { most, total } = weighed(scores, rest);
      const p = softmax(ascending, rest);
      const each = Math.exp(rest.logit - most) / total;
      const out = new Set();
      let [mass, left] = [0, null];
      const passRest = () => {
        const weight = f32(mass + each * rest.weight) <= limit ? 0 : rest.weight - Math.max(0, Math.floor((limit - mass) / each));
        left = weight > 0 ? { ...rest, count: Math.ceil(weight), weight } : NO_REST;
        mass += each * rest.weight;
      };
      p.forEach((share, i) => {
        if (!left && ascending[i] >= rest.logit) passRest();
        mass += share;
        if (i < p.length - 1 && f32(mass) <= limit) out.add(places[i]);
      });
      if (!left) passRest();
      return ranked(state, { ...state, scores: map(scores, (_, i) => !out.has(i)), rest: left }, given);
    },

    min_p(state, given) {
      const { scores, rest } = state;
      const p = softmax(scores, rest);
      const least = f32(f32(given.sampling.min_p) * largest(p));
      const { most, total } = weighed(scores, rest);
      const stays = rest.weight > 0 && Math.exp(rest.logit - most) / total >= least;
      return {
        ...state,
        scores: map(scores, (_, i) => !(p[i] < least)),
        rest: stays ? { ...rest, count: Math.ceil(rest.weight) } : NO_REST,
      };
    },

    typical_p(state, given) {
      const { scores, rest } = state;
      const { most, total } = weighed(scores, rest);
      const logTotal = f32(Math.log(total));
      const logs = scores.map((x) => f32(f32(x - most) - logTotal));
      const restLog = rest.logit - most - Math.log(total);
      let entropy = rest.weight ? -rest.weight * Math.exp(restLog) * restLog : 0;
      for (const x of logs) if (x !== GONE) entropy -= f32(x * f32(Math.exp(x)));
      entropy = f32(entropy);
      const distances = logs.map((x) => Math.abs(f32(-x - entropy)));
      const restDistance = rest.weight ? Math.abs(f32(-restLog - entropy)) : Infinity;
      const places = sorted(distances);
      const p = softmax(scores.map((_, i) => scores[places[i]]), rest);
      const enough = f32(given.sampling.typical_p);
      const steps = Array.from(p, (share, i) => [distances[places[i]], share]);
      if (rest.weight) {
        const at = steps.findIndex(([distance]) => distance >= restDistance);
        steps.splice(at < 0 ? steps.length : at, 0, [restDistance, rest.weight * Math.exp(restLog)]);
      }
      let mass = 0;
      const [farthest] = steps.find(([, share]) => f32((mass += share)) >= enough) ?? steps[steps.length - 1];
      const left = rest.weight && restDistance <= farthest ? { ...rest, count: Math.ceil(rest.weight) } : NO_REST;
      return ranked(state, { ...state, scores: map(scores, (_, i) => !(distances[i] > farthest)), rest: left }, given);
    },
  };

  // ---- the ledger ----

  /**
   * One filter's work, or the beginning, with the name "raw".
   * @typedef {object} Stage
   * @property {string} name
   * @property {Float32Array} scores after it, by place; −Infinity where a token is out
   * @property {Float32Array} probabilities softmax of the scores
   * @property {number} kept tokens left after it, those of the rest counted
   * @property {number} given tokens that it was given
   * @property {number[]} removed ids that it removed, without those of the rest, and those of which it is not known
   * @property {number} count how many it removed, those of the rest counted
   * @property {number} mass the probability of the removed ones in the softmax of what it was given
   * @property {{count: number, mass: number}} rest what is left of the tokens that are not recorded
   * @property {number} most the largest probability that one of them can have
   * @property {number} highest the largest score that one of them can have
   * @property {boolean} loose one of them can have risen above what is recorded, or may have left a token in or out that stands among them
   * @property {boolean} approximate a number of it depends on how the rest is shaped, by more than 1e-6
   * @property {number} spread by how much a probability differs between the ends of what can be
   * @property {{kept: number[], mass: number[]}} reach the least and the most of both, between those ends
   */

  const TOLERANCE = 1e-6;
  const restMass = ({ rest }, { most, total }) => (rest.weight ? (rest.weight * Math.exp(rest.logit - most)) / total : 0);

  function course(given) {
    let state = { scores: given.step.logits, rest: restOf(given.step, given.shape), beyond: new Set(), loose: false };
    const stages = [stageOf("raw", state, state, null, given)];
    for (const name of FILTERS) {
      if (!isOn(given.sampling, name)) continue;
      const next = { loose: false, ...APPLY[name](state, given) };
      next.loose ||= state.loose;
      stages.push(stageOf(name, state, next, stages[stages.length - 1], given));
      state = next;
    }
    return stages;
  }

  function stageOf(name, before, after, last, { step }) {
    const removed = [];
    let mass = 0;
    let kept = after.rest.count;
    for (let i = 0; i < after.scores.length; i++) {
      if (after.scores[i] !== GONE) kept++;
      else if (before.scores[i] !== GONE) {
        removed.push(step.ids[i]);
        mass += last.probabilities[i];
      }
    }
    const fell = Math.max(0, before.rest.count - after.rest.count);
    if (fell) {
      const sums = weighed(before.scores, before.rest);
      mass += Math.max(0, restMass(before, sums) - (after.rest.weight * Math.exp(before.rest.logit - sums.most)) / sums.total);
    }
    const now = weighed(after.scores, after.rest);
    return {
      name,
      scores: after.scores,
      probabilities: softmax(after.scores, after.rest),
      kept,
      given: last ? last.kept : kept,
      removed,
      count: removed.length + fell,
      mass,
      rest: { count: after.rest.count, mass: restMass(after, now) },
      most: after.rest.count ? Math.exp(after.rest.logit - now.most) / now.total : 0,
      highest: after.rest.count ? after.rest.logit : GONE,
      loose: after.loose,
      approximate: after.loose,
      spread: 0,
      reach: { kept: [kept, kept], mass: [mass, mass] },
    };
  }

  /** Marks in the stages with one guess at the rest what another one makes otherwise. */
  function compare(stages, others) {
    stages.forEach((stage, i) => {
      const other = others[i];
      stage.spread = Math.max(stage.spread, Math.abs(stage.mass - other.mass), Math.abs(stage.rest.mass - other.rest.mass));
      for (let j = 0; j < stage.probabilities.length; j++) {
        stage.spread = Math.max(stage.spread, Math.abs(stage.probabilities[j] - other.probabilities[j]));
      }
      const same = stage.kept === other.kept && stage.scores.every((x, j) => (x === GONE) === (other.scores[j] === GONE));
      stage.loose ||= other.loose;
      stage.approximate ||= stage.loose || !same || stage.spread > TOLERANCE;
      const widened = ([least, most], x) => [Math.min(least, x), Math.max(most, x)];
      stage.reach = { kept: widened(stage.reach.kept, other.kept), mass: widened(stage.reach.mass, other.mass) };
      stage.most = Math.max(stage.most, other.most);
      stage.highest = Math.max(stage.highest, other.highest);
    });
  }

  /**
   * Runs the filters that the settings turn on over a step.
   * @param {object} step of `prepare`
   * @param {number[]} context ids of the prompt and of the tokens before this step
   * @param {object} sampling as a Run records it
   * @param {{promptLength: number, maxLength: ?number, stopIds: number[]}} bounds of the run
   * @returns {{stages: Stage[], scores: Float32Array, probabilities: Float32Array, kept: number, rest: {count: number, mass: number},
   *   approximate: boolean, spread: number, error: ?string, others: Stage[]}} the course, and what its end leaves. `error` is "none" where
   *   the settings leave no token, and "extreme" where they make a score that is no number. `others` are the ends with other guesses at
   *   the rest: in its other shape, and with a penalty that takes all the mass of those of the rest that it concerns, or none.
   */
  function filter(step, context, sampling, bounds) {
    const given = { step, context, sampling, bounds };
    const stages = course({ ...given, shape: "flat", loses: false });
    const guesses = [["steep", false]];
    if (isOn(sampling, "repetition_penalty") && context.some((id) => !step.place.has(id))) guesses.push(["flat", true], ["steep", true]);
    const others = (step.rest ? guesses : []).map(([shape, loses]) => course({ ...given, shape, loses }));
    for (const other of others) compare(stages, other);
    for (const stage of stages) if (stage.loose) stage.removed = stage.removed.filter((id) => !step.beyond.has(id));
    const last = stages[stages.length - 1];
    const best = largest(last.scores);
    const error = last.kept === 0 ? "none" : best === Infinity || Number.isNaN(best) ? "extreme" : null;
    const { scores, probabilities, kept, rest, approximate, spread } = last;
    return { step, sampling, stages, scores, probabilities, kept, rest, approximate, spread, error, others: others.map((other) => other[other.length - 1]) };
  }

  /**
   * The filter that removed a token for good; null where it is in at the end, or was out from the beginning.
   * @param {object} filtered of `filter`
   * @param {number} id
   */
  function removedBy({ step, stages }, id) {
    const at = step.place.get(id);
    let by = null;
    stages.slice(1).forEach((stage, i) => {
      if (stage.scores[at] !== GONE) by = null;
      else if (stages[i].scores[at] !== GONE) by = stage.name;
    });
    return by;
  }

  // ---- the draw ----

  /** The place of the largest number, of the first where several are; −1 where there is none. */
  function first(numbers) {
    let at = -1;
    numbers.forEach((x, i) => {
      if (x > GONE && (at < 0 || x > numbers[at])) at = i;
    });
    return at;
  }

  /**
   * Chooses a token: the best one when greedy, else by the race: the largest p / q wins.
   * @param {object} filtered of `filter`
   * @param {?Float32Array} q noise by place; null when greedy
   * @param {number} [fastest] the smallest q of the tokens that are not recorded, where it is known
   * @returns {{winner: ?number, runnerUp: ?number, ratios: ?Float32Array, sure: boolean}} ids, p / q by place, and whether none of the
   *   tokens that are not recorded can have won
   */
  function race(filtered, q, fastest = 0) {
    const { step, rest, others } = filtered;
    const run = ({ scores, probabilities }) => {
      const ratios = filtered.sampling.temperature === 0 ? null : probabilities.map((p, i) => p / q[i]);
      return { ratios, runs: (ratios ?? scores).map((x, i) => (scores[i] === GONE ? GONE : x)) };
    };
    const { ratios, runs } = run(filtered);
    const winner = first(runs);
    const second = first(runs.map((x, i) => (i === winner ? GONE : x)));
    let sure = winner >= 0;
    if (rest.count || others.some((other) => other.rest.count)) {
      const end = filtered.stages[filtered.stages.length - 1];
      const ahead = ratios ? end.most / fastest : end.highest;
      const wins = (all) => first(all) === winner && all[winner] > ahead;
      sure &&= !end.loose && wins(runs) && others.every((other) => wins(run(other).runs));
    }
    const at = (place) => (place < 0 ? null : step.ids[place]);
    return { winner: at(winner), runnerUp: at(second), ratios, sure };
  }

  return { FILTERS, isOn, sorted, prepare, filter, removedBy, race };
})();
