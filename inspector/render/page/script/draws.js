/** The draws of a recorded run: what each step was chosen from, and its noise, as recorded and as the generator gives it anew. */
const Draws = (() => {
  "use strict";

  const [prepared, courses, drawn] = [new WeakMap(), new WeakMap(), new WeakMap()];

  /** The settings of a step. */
  const settings = (run, at) => run.steps[at].sampling ?? run.sampling;

  /** Ids that the step follows: the prompt and the tokens before. */
  function context(run, at) {
    return [...run.prompt.map((token) => token.id), ...run.steps.slice(0, at).map((step) => step.token.id)];
  }

  /** Where the run begins and ends, as the filters ask. A full context is read once more, for one token. */
  function bounds(run) {
    const wanted = run.prompt.length + run.max_new_tokens;
    const maxLength = run.context_length === null ? wanted : Math.min(wanted, run.context_length + 1);
    return { promptLength: run.prompt.length, maxLength, stopIds: run.stop_ids };
  }

  /** A step as `Sampler` takes it; null where its logits were not recorded. */
  function prepare(run, at) {
    const step = run.steps[at];
    if (!step.distribution) return null;
    if (!prepared.has(step)) {
      const extras = [...step.candidates, step.runner_up].filter((candidate) => candidate);
      prepared.set(step, Sampler.prepare(step.distribution, extras));
    }
    return prepared.get(step);
  }

  /**
   * A step under some settings. What the filters do up to the first that is set otherwise than in the run is recorded: those stages have
   * it as `recorded`, and the last one, where all is set alike, the candidates that the run has, by token id, as `exact`.
   */
  function filtered(run, at, sampling) {
    const found = Sampler.filter(prepare(run, at), context(run, at), sampling, bounds(run));
    const [own, step] = [settings(run, at), run.steps[at]];
    const value = (of, name) => (Sampler.isOn(of, name) ? JSON.stringify(of[name]) : null);
    const changed = Sampler.FILTERS.findIndex((name) => value(own, name) !== value(sampling, name));
    let given = found.stages[0].kept;
    for (const stage of found.stages.slice(1)) {
      const kept = step.kept[stage.name];
      if ((changed >= 0 && Sampler.FILTERS.indexOf(stage.name) >= changed) || kept === undefined) break;
      const taken = kept === given ? { count: 0, mass: 0 } : step.removed?.[stage.name];
      if (taken) stage.recorded = { given, kept, count: taken.count, mass: taken.mass };
      given = kept;
    }
    const listed = [...step.candidates, step.runner_up].filter((candidate) => candidate);
    const { length } = found.stages;
    if (changed < 0 && sampling.temperature !== 0) found.stages[length - 1].exact = new Map(listed.map((one) => [one.token.id, one]));
    return found;
  }

  /** A step under the settings that it was recorded with. */
  function asRecorded(run, at) {
    const step = run.steps[at];
    if (!courses.has(step)) courses.set(step, filtered(run, at, settings(run, at)));
    return courses.get(step);
  }

  /** The recorded noise of a step, by token id; empty where nothing was drawn. */
  function recorded(run, at) {
    const { distribution, candidates, runner_up: runnerUp } = run.steps[at];
    const noise = new Map();
    for (const candidate of [...candidates, runnerUp]) {
      if (candidate && (candidate.draw ?? null) !== null) noise.set(candidate.token.id, candidate.draw);
    }
    distribution?.draws?.forEach((draw, i) => noise.set(distribution.ids[i], draw));
    return noise;
  }

  /** Whether a step drew its token. */
  const drew = (run, at) => recorded(run, at).size > 0;

  /** How many tokens a step drew noise for; 0 where the record does not tell. */
  function size(side, at) {
    const { distribution } = side.run.steps[at];
    return distribution ? distribution.ids.length + distribution.rest : side.vocabulary;
  }

  /** The seed that a step's generator began with, and how many draws there were before. */
  function origin(run, at) {
    let [seed, before] = [run.sampling.seed, 0];
    for (let i = 0; i <= at; i++) {
      if (run.steps[i].seeded) [seed, before] = [settings(run, i).seed, 0];
      if (i < at && drew(run, i)) before += 1;
    }
    return { seed, before };
  }

  const begun = new WeakMap(); // run → seed → how many draws were before → the generator behind them

  /**
   * The noise of a step from the generator, for every token of the vocabulary. The generator is kept at every step where it has been, so
   * that none goes the whole way from the seed again.
   * @param {number | string} [seed] another one than the run's
   * @returns {Float32Array}
   */
  function again(side, at, seed = origin(side.run, at).seed) {
    if (!begun.has(side.run)) begun.set(side.run, new Map());
    const seeds = begun.get(side.run);
    const key = String(seed);
    if (!seeds.has(key)) seeds.set(key, new Map([[0, new Generator.Mt19937(seed)]]));
    const [states, { before }, count] = [seeds.get(key), origin(side.run, at), size(side, at)];
    const nearest = Math.max(...[...states.keys()].filter((draws) => draws <= before));
    const generator = states.get(nearest).copy();
    for (let draws = nearest; draws < before; ) {
      generator.skip(count);
      states.set((draws += 1), generator.copy());
    }
    const noise = generator.exponential(count);
    states.set(before + 1, generator);
    return noise;
  }

  /** The smallest noise of the tokens whose noise, or logit, is not known: those that `known` has not. */
  function fastestBut(noise, known) {
    let least = Infinity;
    for (let id = 0; id < noise.length; id++) if (noise[id] < least && !known.has(id)) least = noise[id];
    return least;
  }

  /**
   * Compares the generator's noise with the recorded one, bit for bit.
   * @returns {{compared: number, differ: number, drawn: number, fastest: number}} how many numbers were compared, how many of them
   *   differ, of how many that the step drew, and the smallest of those that were not recorded
   */
  function compare(side, at) {
    const [noise, known] = [again(side, at), recorded(side.run, at)];
    let differ = 0;
    for (const [id, draw] of known) differ += noise[id] !== Math.fround(draw);
    return { compared: known.size, differ, drawn: noise.length, fastest: fastestBut(noise, known) };
  }

  const compared = new WeakMap();

  /** The same, remembered; null where nothing was drawn, or where it is not known how much or from which seed. */
  function verdict(side, at) {
    const step = side.run.steps[at];
    if (!compared.has(step)) {
      const { seed } = origin(side.run, at);
      compared.set(step, drew(side.run, at) && size(side, at) && seed !== null ? compare(side, at) : null);
    }
    return compared.get(step);
  }

  /** Whether the generator gives the recorded noise of a step. */
  const agrees = (side, at) => verdict(side, at)?.differ === 0;

  /**
   * A step's draw, under its settings, with the noise of another seed.
   * @returns {{winner: ?number, runnerUp: ?number, sure: boolean, of: function(number): {p: number, q: number, ratio: number}}} ids,
   *   whether no token whose logit is not recorded can have won, and what ran for an id
   */
  function draw(side, at, seed = origin(side.run, at).seed) {
    const [step, course] = [prepare(side.run, at), asRecorded(side.run, at)];
    if (!drawn.has(step)) drawn.set(step, new Map());
    const seeds = drawn.get(step);
    if (!seeds.has(String(seed))) {
      const noise = again(side, at, seed);
      const q = Float32Array.from(step.ids, (id) => noise[id]);
      const { winner, runnerUp, ratios, sure } = Sampler.race(course, q, fastestBut(noise, step.place));
      const of = (id) => [step.place.get(id)].map((place) => ({ p: course.probabilities[place], q: q[place], ratio: ratios[place] }))[0];
      seeds.set(String(seed), { winner, runnerUp, sure, of });
    }
    return seeds.get(String(seed));
  }

  /** What a filter is called, as on the screens of the terminal. */
  function filterName(name) {
    return {
      repetition_penalty: t("penalty", "штраф за повтор"),
      no_repeat_ngram_size: t("n-grams", "запрет n-грамм"),
      bad_words_ids: t("bad words", "запрет слов"),
      min_length: "min-length",
      min_new_tokens: "min-new",
      forced_bos_token_id: "force-bos",
      forced_eos_token_id: "force-eos",
      suppress_tokens: "suppress",
      begin_suppress_tokens: "begin",
      temperature: t("temperature", "температура"),
      top_k: "top-k",
      top_p: "top-p",
      min_p: "min-p",
      typical_p: "typical-p",
      raw: t("raw", "исходные"),
    }[name] ?? name;
  }

  return { settings, context, prepare, filtered, asRecorded, recorded, drew, size, origin, verdict, agrees, draw, filterName };
})();
