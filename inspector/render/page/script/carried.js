/**
 * The model in the page: a small model of inspector.models, run by the page itself.
 *
 * `Carried.open(record, base64)` takes the record and the weights that inspector/report/carrying.py wrote and gives a model, whose
 * `run(ids, interventions)` is one pass of backbone and head. Weights are float16; all arithmetic is float64. Numbers lie in flat
 * arrays, a row for every token: T tokens, D hidden, H heads, K head width, V vocabulary.
 *
 * Names of places are the roles that Python uses: "layers.3", "layers.3.attn", "layers.3.attn.head.2", "layers.3.mlp" and
 * "layers.3.mlp.experts.1".
 */
const Carried = (() => {
  "use strict";

  // ---- numbers ----

  /** The float16 numbers that base64 holds, as float64. */
  function halves(base64) {
    const letters = atob(base64);
    const powers = Float64Array.from({ length: 31 }, (_, exponent) => 2 ** (Math.max(exponent, 1) - 25));
    const numbers = new Float64Array(letters.length / 2);
    for (let i = 0; i < numbers.length; i++) {
      const bits = letters.charCodeAt(2 * i) | (letters.charCodeAt(2 * i + 1) << 8);
      const exponent = (bits >> 10) & 31;
      const size = ((bits & 1023) + (exponent ? 1024 : 0)) * powers[exponent]; // infinities are never carried
      numbers[i] = bits & 0x8000 ? -size : size;
    }
    return numbers;
  }

  /**
   * x [T, I] · weightᵀ [I, O] + bias → [T, O]. Four tokens by two outputs at a time: fetching numbers takes longer than multiplying them.
   */
  function linear(x, T, { weight, bias }) {
    const [O, I] = weight.shape;
    const w = weight.numbers;
    const y = new Float64Array(T * O);
    for (let t = 0; t < T; t += 4) {
      const b = t + 1 < T ? I : 0, c = t + 2 < T ? 2 * I : b, d = t + 3 < T ? 3 * I : c; // beyond the last token: again the last
      for (let o = 0; o < O; o += 2) {
        const next = o + 1 < O ? I : 0;
        let p = 0, q = 0, r = 0, s = 0, pp = 0, qq = 0, rr = 0, ss = 0;
        for (let i = t * I, end = i + I, j = o * I; i < end; i++, j++) {
          const v = w[j], vv = w[j + next];
          const xa = x[i], xb = x[i + b], xc = x[i + c], xd = x[i + d];
          p += xa * v;
          q += xb * v;
          r += xc * v;
          s += xd * v;
          pp += xa * vv;
          qq += xb * vv;
          rr += xc * vv;
          ss += xd * vv;
        }
        const at = t * O + o, step = next ? 1 : 0;
        for (const [n, one, two] of [[0, p, pp], [1, q, qq], [2, r, rr], [3, s, ss]]) {
          if (t + n >= T) break;
          y[at + n * O + step] = two;
          y[at + n * O] = one;
        }
      }
    }
    if (bias) for (let i = 0; i < y.length; i++) y[i] += bias.numbers[i % O];
    return y;
  }

  /** a + b, number by number. */
  function added(a, b) {
    const sum = new Float64Array(a.length);
    for (let i = 0; i < a.length; i++) sum[i] = a[i] + b[i];
    return sum;
  }

  /** Probabilities of a row of scores. */
  function softmax(scores) {
    const largest = scores.reduce((most, score) => Math.max(most, score), -Infinity);
    const p = Float64Array.from(scores, (score) => Math.exp(score - largest));
    const total = p.reduce((sum, one) => sum + one, 0);
    return p.map((one) => one / total);
  }

  /** The error function, to the last digits of float64: a series of which every term is positive. */
  function erf(x) {
    const size = Math.abs(x);
    if (size >= 6) return Math.sign(x);
    let term = size, sum = size;
    for (let n = 1; term > sum * 1e-17; n++) {
      term *= (2 * size * size) / (2 * n + 1);
      sum += term;
    }
    return (Math.sign(x) * 2 * Math.exp(-size * size) * sum) / Math.sqrt(Math.PI);
  }

  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const range = (n) => Array.from({ length: n }, (_, i) => i);

  // ---- modules: each makes of its own weights and settings a function ----

  /** Norms: x [T, D] → [T, D]. */
  const NORMS = {
    RMSNorm: ({ weight }, { eps }) => (x) => normed(x, weight, (row) => [0, Math.sqrt(mean(row, (v) => v * v) + eps)]),
    LayerNorm: ({ weight, bias }, { eps }) => (x) =>
      normed(x, weight, (row) => {
        const centre = mean(row, (v) => v);
        return [centre, Math.sqrt(mean(row, (v) => (v - centre) ** 2) + eps)];
      }, bias),
  };

  function mean(row, of) {
    let sum = 0;
    for (const v of row) sum += of(v);
    return sum / row.length;
  }

  function normed(x, weight, measure, bias) {
    const D = weight.numbers.length;
    const y = new Float64Array(x.length);
    for (let at = 0; at < x.length; at += D) {
      const [centre, size] = measure(x.subarray(at, at + D));
      for (let i = 0; i < D; i++) y[at + i] = ((x[at + i] - centre) / size) * weight.numbers[i] + (bias ? bias.numbers[i] : 0);
    }
    return y;
  }

  /**
   * cos and sin of RoPE's angles for T positions, [T, K/2] each. Python makes angles and tables in float32 whatever the model computes
   * in, so these are rounded likewise.
   */
  function rotation({ frequencies, factor }, T) {
    const half = frequencies.length;
    const turn = (f) => Float64Array.from({ length: T * half }, (_, i) =>
      Math.fround(Math.fround(f(Math.fround(Math.floor(i / half) * frequencies[i % half]))) * Math.fround(factor)));
    return { half, cos: turn(Math.cos), sin: turn(Math.sin) };
  }

  /** Turns, in place, K numbers from `start` on of every one of `heads` pieces of `width` numbers of each token. */
  function turn(x, T, heads, width, start, rope) {
    if (!rope) return x;
    const { half, cos, sin } = rope;
    for (let t = 0; t < T; t++) {
      for (let h = 0; h < heads; h++) {
        const at = (t * heads + h) * width + start;
        for (let i = 0; i < half; i++) {
          const a = x[at + i], b = x[at + half + i], c = cos[t * half + i], s = sin[t * half + i];
          x[at + i] = a * c - b * s;
          x[at + half + i] = b * c + a * s;
        }
      }
    }
    return x;
  }

  /**
   * Each token takes the mean of the values of itself and those before it, weighted by softmax(q·k·scale).
   * q [T, H, K], k [T, G, K], v [T, G, W], G groups of neighbouring heads → { out [T, H, W], weights [H, T, T] }.
   */
  function attend(q, k, v, T, H, G, K, W, scale) {
    const out = new Float64Array(T * H * W);
    const weights = new Float64Array(H * T * T);
    for (let h = 0; h < H; h++) {
      const g = Math.floor((h * G) / H);
      for (let t = 0; t < T; t++) {
        const row = weights.subarray((h * T + t) * T, (h * T + t) * T + t + 1);
        let largest = -Infinity;
        for (let s = 0; s <= t; s++) {
          let dot = 0;
          for (let i = 0; i < K; i++) dot += q[(t * H + h) * K + i] * k[(s * G + g) * K + i];
          row[s] = dot * scale;
          if (row[s] > largest) largest = row[s];
        }
        let total = 0;
        for (let s = 0; s <= t; s++) total += row[s] = Math.exp(row[s] - largest);
        for (let s = 0; s <= t; s++) {
          row[s] /= total;
          for (let i = 0; i < W; i++) out[(t * H + h) * W + i] += row[s] * v[(s * G + g) * W + i];
        }
      }
    }
    return { out, weights };
  }

  /** Attentions: x [T, D] → { out [T, H·W], weights [H, T, T] }, before the output projection; and how many heads there are. */
  const ATTENTIONS = {
    MultiHeadAttention: (part, { n_heads: H }) => ({
      H,
      look: (x, T) => {
        const [q, k, v] = ["q_proj", "k_proj", "v_proj"].map((name) => linear(x, T, part(name)));
        const K = q.length / T / H;
        return attend(q, k, v, T, H, H, K, K, 1 / Math.sqrt(K));
      },
    }),
    GroupedQueryAttention: (part, { n_heads: H, n_kv_heads: G }) => ({
      H,
      look: (x, T, rope) => {
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map((name) => linear(x, T, part(name)));
        const K = q.length / T / H;
        if (part.has("q_norm")) [q, k] = [part("q_norm")(q), part("k_norm")(k)];
        turn(q, T, H, K, 0, rope);
        turn(k, T, G, K, 0, rope);
        return attend(q, k, v, T, H, G, K, K, 1 / Math.sqrt(K));
      },
    }),
    MultiHeadLatentAttention: (part, settings) => {
      const { n_heads: H, kv_lora_rank: C, qk_nope_head_dim: N, qk_rope_head_dim: R, v_head_dim: W, scale } = settings;
      return {
        H,
        look: (x, T, rope) => {
          const low = part.has("q_a_proj");
          const q = low ? linear(part("q_a_layernorm")(linear(x, T, part("q_a_proj"))), T, part("q_b_proj")) : linear(x, T, part("q_proj"));
          turn(q, T, H, N + R, N, rope);
          // 1. What is kept of a token: a latent, and one turned key for all heads.
          const kept = linear(x, T, part("kv_a_proj_with_mqa"));
          turn(kept, T, 1, C + R, C, rope);
          const latent = new Float64Array(T * C);
          for (let t = 0; t < T; t++) latent.set(kept.subarray(t * (C + R), t * (C + R) + C), t * C);
          // 2. Every head's keys and values are made of it.
          const both = linear(part("kv_a_layernorm")(latent), T, part("kv_b_proj"));
          const k = new Float64Array(T * H * (N + R)), v = new Float64Array(T * H * W);
          for (let t = 0; t < T; t++) {
            for (let h = 0; h < H; h++) {
              const from = (t * H + h) * (N + W), to = (t * H + h) * (N + R);
              k.set(both.subarray(from, from + N), to);
              k.set(kept.subarray(t * (C + R) + C, (t + 1) * (C + R)), to + N);
              v.set(both.subarray(from + N, from + N + W), (t * H + h) * W);
            }
          }
          return attend(q, k, v, T, H, H, N + R, W, scale === null ? 1 / Math.sqrt(N + R) : scale);
        },
      };
    },
  };

  /** The indices of the K largest scores, the largest first. */
  const best = (scores, K) => range(scores.length).sort((i, j) => scores[j] - scores[i] || i - j).slice(0, K);

  /** By how much the last of the K chosen is ahead of the first that was not. */
  function lead(scores, K) {
    const sorted = [...scores].sort((a, b) => b - a);
    return K < sorted.length ? sorted[K - 1] - sorted[K] : Infinity;
  }

  /** Gates: scores of one token, [E] → { experts, weights, lead }, the largest weight first. */
  const GATES = {
    NoisyTopKGate: (settings) => (scores) => { // the noise is for training alone
      const experts = best(scores, settings.n_chosen);
      return { experts, weights: [...softmax(experts.map((e) => scores[e]))], lead: lead(scores, settings.n_chosen) };
    },
    BalancedGate: ({ n_chosen, scale, norm_topk_prob, n_groups, n_chosen_groups }, bias) => (scores) => {
      const shares = [...scores].map(sigmoid);
      let steered = shares.map((share, e) => share + bias.numbers[e]);
      if (n_groups > 1) {
        const size = steered.length / n_groups;
        const groups = range(n_groups).map((g) =>
          steered.slice(g * size, (g + 1) * size).sort((a, b) => b - a).slice(0, 2).reduce((a, b) => a + b, 0));
        const open = best(groups, n_chosen_groups);
        steered = steered.map((score, e) => (open.includes(Math.floor(e / size)) ? score : -Infinity));
      }
      const experts = best(steered, n_chosen).sort((i, j) => shares[j] - shares[i]);
      const total = norm_topk_prob ? experts.reduce((sum, e) => sum + shares[e], 0) + 1e-20 : 1;
      return { experts, weights: experts.map((e) => (shares[e] / total) * scale), lead: lead(steered, n_chosen) };
    },
  };

  /** Feed-forwards: x [N, D], and a place that may be changed → [N, D]; mixtures keep where each token went in `pass.routing`. */
  const FEED_FORWARDS = {
    FeedForward: (part) => (x, N) => {
      const up = linear(x, N, part("up_proj"));
      for (let i = 0; i < up.length; i++) up[i] *= 0.5 * (1 + erf(up[i] / Math.SQRT2));
      return linear(up, N, part("down_proj"));
    },
    SwiGLU: (part) => (x, N) => {
      const gate = linear(x, N, part("gate_proj"));
      const up = linear(x, N, part("up_proj"));
      for (let i = 0; i < up.length; i++) up[i] *= gate[i] * sigmoid(gate[i]);
      return linear(up, N, part("down_proj"));
    },
    MixtureOfExperts: (part) => (x, N, pass, role) => {
      const D = x.length / N;
      const gate = part("gate");
      const scores = linear(x, N, gate);
      const E = gate.weight.shape[0];
      const choices = range(N).map((t) => gate.choose(scores.subarray(t * E, (t + 1) * E)));
      const [experts, weights, leads] = ["experts", "weights", "lead"].map((name) => choices.map((one) => one[name]));
      pass.routing.push({ role, count: E, experts, weights, leads });
      const y = part.has("shared_experts") ? part("shared_experts")(x, N) : new Float64Array(N * D);
      for (let e = 0; e < E; e++) {
        const tokens = range(N).filter((t) => choices[t].experts.includes(e));
        if (!tokens.length) continue;
        const own = new Float64Array(tokens.length * D);
        tokens.forEach((t, n) => own.set(x.subarray(t * D, (t + 1) * D), n * D));
        const out = part(`experts.${e}`)(own, tokens.length);
        pass.act(`${role}.experts.${e}`, out, tokens);
        tokens.forEach((t, n) => {
          const weight = choices[t].weights[choices[t].experts.indexOf(e)];
          for (let i = 0; i < D; i++) y[t * D + i] += weight * out[n * D + i];
        });
      }
      return y;
    },
  };

  // ---- a model ----

  /**
   * A carried model.
   * @param {object} record what inspector/records/carried.py describes.
   * @param {string} base64 its weights.
   */
  function open(record, base64) {
    const all = halves(base64);
    const tensors = new Map(Object.entries(record.tensors).map(([name, { shape, offset }]) =>
      [name, { shape, numbers: all.subarray(offset, offset + shape.reduce((a, b) => a * b, 1)) }]));
    const made = new Map();

    /** What is below a name: `part("q_proj")`; and whether there is such a thing. */
    function below(name) {
      const part = (path) => module(`${name}.${path}`);
      part.has = (path) => `${name}.${path}` in record.parts;
      return part;
    }

    function module(name) {
      if (!made.has(name)) made.set(name, build(name));
      return made.get(name);
    }

    function build(name) {
      const { kind, settings } = record.parts[name];
      const own = { weight: tensors.get(`${name}.weight`), bias: tensors.get(`${name}.bias`) };
      if (kind in NORMS) return NORMS[kind](own, settings);
      if (kind in ATTENTIONS) return ATTENTIONS[kind](below(name), settings);
      if (kind in GATES) return { ...own, choose: GATES[kind](settings, tensors.get(`${name}.e_score_correction_bias`)) };
      if (kind in FEED_FORWARDS) return FEED_FORWARDS[kind](below(name));
      if (kind === "Linear" || kind === "Embedding") return own;
      if (kind === "Block") return block(name, settings);
      throw new Error(`${name} is a ${kind}, which carried.js does not know`);
    }

    /** One layer: x [T, D] → [T, D]. */
    function block(name, { norm_first: first }) {
      const part = below(name);
      const attn = part("self_attn"), mlp = part("mlp"), output = module(`${name}.self_attn.o_proj`);
      const [normAttn, normMlp] = [part("norm_attn"), part("norm_mlp")];
      return {
        heads: attn.H,
        experts: part.has("mlp.gate") ? part("mlp.gate").weight.shape[0] : 0,
        run: (x, T, rope, pass, role) => {
          const looked = attn.look(first ? normAttn(x) : x, T, rope);
          pass.attention.push({ role: `${role}.attn`, heads: attn.H, weights: looked.weights });
          for (let h = 0; h < attn.H; h++) pass.act(`${role}.attn.head.${h}`, looked.out, range(T), h, attn.H);
          const out = linear(looked.out, T, output);
          pass.act(`${role}.attn`, out, range(T));
          x = added(x, out);
          if (!first) x = normAttn(x);
          const forward = mlp(first ? normMlp(x) : x, T, pass, `${role}.mlp`);
          pass.act(`${role}.mlp`, forward, range(T));
          x = added(x, forward);
          return first ? x : normMlp(x);
        },
      };
    }

    const scale = record.parts.backbone.settings.scale;
    const embedding = tensors.get("backbone.embed_tokens.weight");
    const table = tensors.get("backbone.positions.pe");
    const rope = record.parts["backbone.rope"];
    const D = embedding.shape[1];
    const V = record.texts.length;
    const count = (top) => Object.keys(record.parts).filter((name) => new RegExp(`^${top}\\.\\d+$`).test(name)).length;
    const layers = range(count("backbone\\.layers")).map((i) => module(`backbone.layers.${i}`));
    const depths = range(count("mtp"));
    const blocks = layers.map((layer, i) => ({
      role: `layers.${i}`,
      attn: `layers.${i}.attn`,
      heads: range(layer.heads).map((h) => `layers.${i}.attn.head.${h}`),
      mlp: `layers.${i}.mlp`,
      experts: range(layer.experts).map((e) => `layers.${i}.mlp.experts.${e}`),
    }));
    const places = new Set(blocks.flatMap(({ role, attn, heads, mlp, experts }) => [role, attn, ...heads, mlp, ...experts]));

    function embed(ids) {
      const x = new Float64Array(ids.length * D);
      ids.forEach((id, t) => {
        for (let i = 0; i < D; i++) x[t * D + i] = embedding.numbers[id * D + i] * scale;
      });
      return x;
    }

    const head = (hidden) => linear(hidden, hidden.length / D, module("lm_head"));
    const finalNorm = (hidden) => module("backbone.norm")(hidden);

    /**
     * One pass over ids, changed as the interventions say, in their order where several meet.
     *
     * @param {number[]} ids from 1 to `context` of them.
     * @param {{kind: string, role: string, value: string|number|number[], position?: number|number[]|null}[]} interventions as Python's
     *   Intervention: "ablate" with "zero" or "mean" (over the positions), "scale" with a factor, "patch" with other ids, whose
     *   activations are put in; at one or several positions, negative ones counted from the end, or everywhere. Prompts of one length are
     *   patched position by position, of others the last position alone.
     * @param {Map<string, Map<number, Float64Array>>} kept role → filled with what it gives at each position.
     * @returns {object} ids, length; logits [T, V]; hidden: of every block [T, D]; attention: of every block { role, heads, weights
     *   [H, T, T] }; routing: of every mixture { role, count, experts [T][K], weights [T][K], leads [T] }; further: of every depth of multi-token
     *   prediction, logits [T − k, V] (of token t + 1 + k at place t); acted: role → at how many positions something became another.
     */
    function run(ids, interventions = [], kept = new Map()) {
      const T = ids.length;
      if (T < 1 || T > record.context) throw new RangeError(`${T} tokens: give 1 to ${record.context}`);
      const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < embedding.shape[0]));
      if (wrong !== undefined) throw new RangeError(`token id ${wrong}: give 0 to ${embedding.shape[0] - 1}`);
      const changes = interventions.map((one) => checked(one, T, places, activations));
      const pass = { ids: [...ids], length: T, hidden: [], attention: [], routing: [], further: [], acted: {} };
      pass.act = (role, x, tokens, slice, slices) => {
        tokens.forEach((token, n) => kept.get(role)?.set(token, rowOf(x, tokens, n, slice, slices).slice()));
        for (const change of changes) {
          if (change.role === role) pass.acted[role] = Math.max(pass.acted[role] || 0, changed(x, tokens, change, slice, slices));
        }
      };
      let x = embed(ids);
      if (table) for (let i = 0; i < x.length; i++) x[i] += table.numbers[i];
      const turned = rope && rotation(rope.settings, T);
      layers.forEach((layer, i) => {
        x = layer.run(x, T, turned, pass, `layers.${i}`);
        pass.act(`layers.${i}`, x, range(T));
        pass.hidden.push(x);
      });
      const hidden = finalNorm(x);
      pass.logits = head(hidden);
      depths.reduce((before, k) => {
        const length = T - k - 1;
        if (length < 1) return before;
        const part = below(`mtp.${k}`);
        const [word, state] = [part("enorm")(embed(ids.slice(k + 1))), part("hnorm")(before.subarray(0, length * D))];
        const joined = new Float64Array(length * 2 * D);
        for (let t = 0; t < length; t++) {
          joined.set(word.subarray(t * D, (t + 1) * D), t * 2 * D);
          joined.set(state.subarray(t * D, (t + 1) * D), t * 2 * D + D);
        }
        const own = rope && rotation(rope.settings, length);
        const after = part("norm")(part("block").run(linear(joined, length, part("eh_proj")), length, own, unwatched(), ""));
        pass.further.push(head(after));
        return after;
      }, hidden);
      delete pass.act;
      return pass;
    }

    /** What stands at a place while the model reads ids: their number, and position → numbers. */
    function activations(role, ids) {
      const kept = new Map([[role, new Map()]]);
      run(ids, [], kept);
      return { length: ids.length, rows: kept.get(role) };
    }

    /** Logits [V] at a position of a pass; negative ones count from the end. */
    const logitsAt = (pass, position = -1) => {
      const at = (position + pass.length) % pass.length;
      return pass.logits.subarray(at * V, (at + 1) * V);
    };

    /** The logit lens at a position: of every block what the head would say of its hidden state, { role, logits [V] }. */
    function lens(pass, position = -1) {
      const at = (position + pass.length) % pass.length;
      return pass.hidden.map((x, i) => ({ role: `layers.${i}`, logits: head(finalNorm(x.subarray(at * D, (at + 1) * D))) }));
    }

    const special = new Set(record.special);
    const marks = record.alphabet ? Object.keys(record.alphabet).filter((piece) => special.has(record.alphabet[piece])) : [];

    /** The ids that are fed for a text, and its characters that the model does not know, each once. */
    function encode(text) {
      if (!record.alphabet) {
        const words = text.split(/[\s,]+/).filter(Boolean);
        const wrong = words.filter((word) => !(/^[0-9]+$/.test(word) && Number(word) < embedding.shape[0]));
        return { ids: words.filter((word) => !wrong.includes(word)).map(Number), unknown: [...new Set(wrong)] };
      }
      const ids = [...record.begin];
      const unknown = new Set();
      for (const piece of cut(text, marks)) {
        for (const one of marks.includes(piece) ? [piece] : record.composed ? piece.normalize("NFC") : piece) {
          const id = Object.hasOwn(record.alphabet, one) ? record.alphabet[one] : record.unknown;
          ids.push(id);
          if (id === record.unknown) unknown.add(one);
        }
      }
      return { ids, unknown: [...unknown] };
    }

    /** What ids say: special tokens are left out. */
    const text = (ids) => record.alphabet
      ? ids.filter((id) => !special.has(id)).map((id) => record.texts[id]).join("")
      : ids.join(" ");

    return {
      record,
      blocks,
      depths: depths.length,
      postNorm: blocks.length > 0 && !record.parts["backbone.layers.0"].settings.norm_first,
      encode,
      text,
      token: (id) => ({ id, text: record.texts[id], special: special.has(id), stop: record.stops.includes(id) }),
      run,
      logitsAt,
      lens,
    };
  }

  /** The pass of a block that is not the backbone's: nothing in it is changed or shown. */
  const unwatched = () => ({ act() {}, attention: [], routing: [] });

  /** A text cut around the marks in it: the first that stands there, of several the longest. */
  function* cut(text, marks) {
    let from = 0;
    for (let at = 0; at < text.length; at++) {
      const mark = marks.filter((one) => text.startsWith(one, at)).sort((a, b) => b.length - a.length)[0];
      if (!mark) continue;
      yield text.slice(from, at);
      yield mark;
      from = at + mark.length;
      at = from - 1;
    }
    yield text.slice(from);
  }

  /** An intervention with its positions counted from 0. Throws where it says nothing. */
  function checked({ kind, role, value, position = null }, T, places, activations) {
    if (!places.has(role)) throw new RangeError(`no place ${role}: choose one of ${[...places].slice(0, 4).join(", ")}, …`);
    const says = { ablate: ["zero", "mean"].includes(value), scale: Number.isFinite(value), patch: Array.isArray(value) };
    if (!says[kind]) throw new RangeError(`${kind} ${role} ${value}: ablate with zero or mean, scale by a number, or patch with ids`);
    const given = position === null ? range(T) : [position].flat();
    const wrong = given.find((one) => !(Number.isInteger(one) && one >= -T && one < T));
    if (wrong !== undefined) throw new RangeError(`position ${wrong}: the prompt has ${T} tokens`);
    let positions = new Set(given.map((one) => (one + T) % T));
    let source = null; // position → what is put in there
    if (kind === "patch") {
      const { length, rows } = activations(role, value);
      if (length === T) source = rows;
      else {
        const others = position !== null && [...positions].some((one) => one !== T - 1);
        if (others) throw new RangeError(`position ${position}: between prompts of different lengths only the last is patched`);
        source = new Map(rows.has(length - 1) ? [[T - 1, rows.get(length - 1)]] : []);
      }
      positions = new Set([...positions].filter((one) => source.has(one)));
    }
    return { kind, role, value, positions, source };
  }

  /** The numbers of the n-th row of x that are meant: of a head its slice, else all. */
  function rowOf(x, tokens, n, slice = 0, slices = 1) {
    const width = x.length / tokens.length, size = width / slices, from = n * width + slice * size;
    return x.subarray(from, from + size);
  }

  /**
   * Changes an activation in place: rows of x, one for every token in `tokens`; of a head the slice of each row that is its own.
   * Returns at how many positions something became another.
   */
  function changed(x, tokens, { kind, value, positions, source }, slice, slices) {
    const rows = tokens.map((_, n) => rowOf(x, tokens, n, slice, slices));
    const centre = rows[0].map((_, i) => (value === "mean" ? mean(rows, (row) => row[i]) : 0));
    let count = 0;
    tokens.forEach((token, n) => {
      if (!positions.has(token)) return;
      const row = rows[n], before = row.slice();
      row.set(kind === "scale" ? before.map((one) => one * value) : kind === "patch" ? source.get(token) : centre);
      count += before.some((one, i) => one !== row[i]);
    });
    return count;
  }

  return { open, softmax };
})();
