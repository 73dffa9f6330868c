/** Other settings on the recorded logits: which steps would have chosen otherwise, with the same noise, and what each filter removes. */
Page.panel({
  id: "live",
  title: () => t("Other settings", "Другие настройки"),
  intro: () =>
    t(
      "The recorded logits and the recorded noise of each step, under settings that you move: what would have been chosen?",
      "Записанные логиты и записанный шум каждого шага при настройках, которые двигаете вы: что было бы выбрано?",
    ),
  needs: (side) => side.run.steps.length > 0 && side.run.steps.every((step) => step.distribution),
  build(root, page) {
    const memory = page.memory("live");
    memory.moved ??= {}; // setting → value, of those that are not as recorded
    const LISTED = 10; // candidates that are shown of a step
    const NAMED = 8; // removed tokens that are named
    const AT_ONCE = 5000; // logits that are filtered before the page draws again: all of a run with a small vocabulary
    const { run, side } = page;
    const size = Draws.size(side, 0);
    // Of each setting what the slider spans, what stands for "off", and what Sampling has for that.
    const SETTINGS = [
      { name: "temperature", label: () => t("temperature (0: greedy)", "температура (0: жадно)"), min: 0, max: 2, step: 0.05, off: 1, none: 1 },
      { name: "top_k", label: () => t("top-k (0: all)", "top-k (0: все)"), min: 0, max: Math.min(100, size), step: 1, off: 0, none: null, most: size },
      { name: "top_p", label: () => t("top-p (1: all)", "top-p (1: все)"), min: 0.01, max: 1, step: 0.01, off: 1, none: null, most: 1 },
      { name: "min_p", label: () => t("min-p (0: all)", "min-p (0: все)"), min: 0, max: 1, step: 0.01, off: 0, none: null, most: 1 },
      { name: "repetition_penalty", label: () => t("repetition penalty (1: none)", "штраф за повтор (1: нет)"), min: 0.5, max: 2, step: 0.05, off: 1, none: 1, least: 0.05 },
    ];
    const shown = ({ name, off }) => (name in memory.moved ? memory.moved[name] : run.sampling[name]) ?? off;

    const inputs = SETTINGS.map((setting) => {
      const { name, min, max, step } = setting;
      const value = shown(setting);
      const slider = el("input", { id: `live-${name}`, type: "range", min, max, step, value, on: { input: () => move(setting, slider.value) } });
      const exact = el("input", {
        id: `live-${name}-exact`, type: "number", min: setting.least ?? min, max: setting.most ?? null, step: "any", value: trimmed(value),
        "aria-label": `${setting.label()}, ${t("exact", "точно")}`, on: { change: () => move(setting, exact.value) },
      });
      return { setting, slider, exact, whole: el("div", { class: "field setting" }, field(setting.label(), slider), exact) };
    });
    const reset = el("button", { id: "live-recorded", type: "button", on: { click: asRecorded } }, t("As recorded", "Как записано"));
    const summary = el("p", { id: "live-said", "aria-live": "polite" });
    const tries = el("ol", { id: "live-steps", class: "tries" });
    const now = el("div", { id: "live-step" });
    root.append(el("div", { class: "settings" }, ...inputs.map(({ whole: control }) => control), reset), summary, tries, now);

    function trimmed(value) {
      return String(Number(Number(value).toPrecision(6)));
    }

    function move(setting, text) {
      const { name, min, max, most = Infinity, least = min } = setting;
      const recorded = run.sampling[name] ?? setting.off;
      const asked = Number(text);
      const value = Math.min(most, Math.max(least, text === "" || !Number.isFinite(asked) ? recorded : name === "top_k" ? Math.round(asked) : asked));
      if (value === recorded) delete memory.moved[name];
      else memory.moved[name] = value;
      drawAll();
    }

    function asRecorded() {
      memory.moved = {};
      drawAll();
    }

    /** The settings of a step with what was moved. */
    function settings(at) {
      const moved = Object.fromEntries(SETTINGS.filter(({ name }) => name in memory.moved).map(({ name, off, none }) =>
        [name, memory.moved[name] === off ? none : memory.moved[name]]));
      return { ...Draws.settings(run, at), ...moved };
    }

    /**
     * What a step would have chosen: `kind` is "same", "other", "unsure" where a token that is not recorded may have won, "undrawn"
     * where noise would be needed and none was recorded, "none" where no token is left, "forced" where the token was named by hand.
     */
    function tryStep(at) {
      const [step, sampling] = [Draws.prepare(run, at), settings(at)];
      const filtered = Draws.filtered(run, at, sampling);
      const found = { at, filtered, winner: null, kind: "same" };
      if (filtered.error) return { ...found, kind: "none" };
      if (sampling.temperature !== 0 && !step.draws) return { ...found, kind: run.steps[at].forced ? "forced" : "undrawn" };
      // The noise of the tokens that are not recorded is known where the page's generator gives the run's.
      const fastest = step.rest && memory.swept && Draws.agrees(side, at) ? Draws.verdict(side, at).fastest : 0;
      const { winner, sure } = Sampler.race(filtered, step.draws, fastest);
      // As recorded, what won is known; the page's own finding tells of its arithmetic only where it is not a guess.
      if (!Object.keys(memory.moved).length && (filtered.approximate || !sure)) {
        const believed = !sure || winner !== run.steps[at].token.id;
        return { ...found, winner: run.steps[at].token.id, kind: run.steps[at].forced ? "forced" : "same", believed };
      }
      const kind = run.steps[at].forced ? "forced" : winner === run.steps[at].token.id ? "same" : "other";
      return { ...found, winner, kind: kind === "forced" || sure ? kind : "unsure" };
    }

    let found = [];
    let turn = 0;

    /** Draws all anew: the shown step first, and the others behind it in slices, so that a slider moves on while they are computed. */
    function drawAll() {
      for (const { setting, slider, exact } of inputs) {
        slider.value = shown(setting);
        exact.value = trimmed(shown(setting));
        exact.parentElement.classList.toggle("moved", setting.name in memory.moved);
      }
      reset.disabled = !Object.keys(memory.moved).length;
      found = run.steps.map(() => null);
      drawStep();
      tryOthers((turn += 1));
    }

    function tryOthers(mine) {
      if (mine !== turn || !root.isConnected) return;
      let logits = 0;
      for (let at = 0; at < found.length; at++) {
        if (found[at]) continue;
        if (logits >= AT_ONCE) return setTimeout(tryOthers, 0, mine);
        found[at] = tryStep(at);
        logits += found[at].filtered.scores.length;
      }
      drawSummary();
      drawTries();
    }

    const listOf = (steps) => steps.map(({ at }) => at + 1).join(", ");
    const atSteps = (steps) => (steps.length > 1 && steps.length === run.steps.length ? t("every step", "каждом шаге") : steps.length === 1 ? t(`step ${listOf(steps)}`, `шаге ${listOf(steps)}`) : t(`steps ${listOf(steps)}`, `шагах ${listOf(steps)}`));

    function drawSummary() {
      const of = (kind) => found.filter((one) => one.kind === kind);
      const [other, unsure, undrawn, none] = ["other", "unsure", "undrawn", "none"].map(of);
      const steps = counted(run.steps.length, "step", "steps", "шага", "шагов", "шагов");
      const each = found.length === 1 ? t("at its only step", "на единственном шаге") : t(`at each of ${steps}`, `на каждом из ${steps}`);
      const parts = [];
      summary.dataset.other = listOf(other);
      if (!Object.keys(memory.moved).length) {
        const wrong = found.filter((one) => one.kind !== "same" && one.kind !== "forced" || !sameCounts(one));
        parts.push(wrong.length
          ? t(`With the recorded settings this page finds otherwise than Python at ${atSteps(wrong)}: sums round differently there.`,
              `С записанными настройками страница находит иное, чем Python, на ${atSteps(wrong)}: суммы округляются там по-разному.`)
          : t(`With the recorded settings this page finds the recorded token, and after every filter the recorded number of tokens, ${each}.`,
              `С записанными настройками страница находит записанный токен и после каждого фильтра записанное число токенов ${each}.`));
        const believed = found.filter((one) => one.believed).length;
        if (believed) {
          parts.push(t(` At ${whole(believed)} of them that is the record's word: by the recorded logits alone another token could have won.`,
            ` На ${whole(believed)} из них это слово записи: по одним записанным логитам мог победить и другой токен.`));
        }
      } else if (other.length) {
        parts.push(
          t(`Otherwise at ${other.length} of ${steps}, first at step ${other[0].at + 1}: `, `Иначе на ${other.length} из ${steps}, впервые на шаге ${other[0].at + 1}: `),
          tokenName(page.token(other[0].winner)), t(" instead of ", " вместо "), tokenName(run.steps[other[0].at].token), ". ",
          other[0].at + 1 < run.steps.length && t(
            "After it the text would be another one, and so would the logits: the later marks say what would be chosen after the recorded text.",
            "После него текст был бы другим, и логиты тоже: дальнейшие пометки говорят, что было бы выбрано после записанного текста.",
          ),
        );
      } else if (!unsure.length && !undrawn.length && !none.length) {
        parts.push(t(`The same token ${each}.`, `Тот же токен ${each}.`));
      }
      if (none.length) parts.push(t(` No token is left at ${atSteps(none)}.`, ` Ни одного токена не осталось на ${atSteps(none)}.`));
      if (unsure.length) {
        parts.push(t(` Not certain at ${atSteps(unsure)}: a token whose logit is not recorded may have won.`,
          ` Неизвестно на ${atSteps(unsure)}: мог победить токен, чей логит не записан.`));
      }
      if (undrawn.length) {
        parts.push(t(" No noise was recorded where the run was greedy: with a temperature above 0 the bars show the probabilities, and nothing is drawn.",
          " Там, где прогон жадный, шум не записан: при температуре выше 0 полосы показывают вероятности, и ничего не тянут."));
      }
      summary.replaceChildren(...parts.filter(Boolean));
    }

    /** Whether after every filter as many tokens are left as were recorded; where that depends on what is not recorded, nothing is said. */
    function sameCounts({ at, filtered }) {
      const { kept } = run.steps[at];
      return filtered.stages.every(({ name, kept: left, approximate }) => approximate || !(name in kept) || kept[name] === left);
    }

    function drawTries() {
      const first = found.find(({ kind }) => kind === "other");
      tries.replaceChildren(...found.map(({ at, kind, winner }) => {
        const token = run.steps[at].token;
        const words = {
          same: "", other: [" → ", winner !== null && tokenName(page.token(winner))], unsure: " → ?", undrawn: "",
          none: [" → ", t("none", "нет")], forced: t(" (by hand)", " (вручную)"),
        }[kind];
        const later = first && at > first.at;
        return el("li", {}, el(
          "button",
          {
            id: `live-try-${at}`, type: "button", class: ["try", kind, later && "later", first?.at === at && "first"].filter(Boolean).join(" "),
            "aria-current": at === page.at ? "step" : null, on: { click: () => page.goTo(at) },
          },
          el("span", { class: "quiet" }, `${at + 1} `), tokenName(token), words,
        ));
      }));
    }

    function drawStep() {
      const { at } = page;
      const { filtered, winner, kind } = (found[at] ??= tryStep(at));
      const { stages, step, approximate, spread } = filtered;
      const moved = Object.keys(memory.moved).length > 0;
      const recorded = Draws.asRecorded(run, at);
      const columns = [stages[0], ...(moved ? [recorded.stages[recorded.stages.length - 1]] : []), stages[stages.length - 1]];
      const heads = [t("raw", "исходные"), ...(moved ? [t("as recorded", "как записано")] : []), moved ? t("with these settings", "с этими настройками") : t("after the filters", "после фильтров")];
      const best = Array.from(step.ids.keys()).sort((a, b) => stages[0].scores[b] - stages[0].scores[a] || a - b).slice(0, LISTED);
      for (const id of [run.steps[at].token.id, winner]) {
        const place = step.place.get(id);
        if (place !== undefined && !best.includes(place)) best.push(place);
      }
      const name = (id) => {
        const marks = [id === run.steps[at].token.id && t("recorded", "записан"), moved && kind !== "unsure" && id === winner && t("now", "теперь")];
        return el("span", {}, tokenName(page.token(id)), ` ${marks.filter(Boolean).join(", ")}`);
      };
      const isOut = ({ scores, exact }, place) => {
        const known = exact?.get(step.ids[place]);
        return known ? !(known.probability_after > 0) : scores[place] === -Infinity;
      };
      const cell = (stage, place, course) => {
        const [id, p] = [step.ids[place], stage.probabilities[place]];
        const known = stage.exact?.get(id);
        if (known) return known.probability_after > 0 ? percent(known.probability_after) : Draws.filterName(known.removed_by);
        if (!isOut(stage, place)) return stage.approximate ? roughly(percent(p)) : percent(p);
        const by = Draws.filterName(Sampler.removedBy(course, id));
        return stage.loose && step.beyond.has(id) ? roughly(by) : by;
      };
      /** A number of a filter: as recorded, where the run has it, else from its least to its most. */
      const between = (write, least, most) => (write(least) === write(most) ? write(least) : `${write(least).replace(/ %$/, "")}–${write(most)}`);
      const left = ({ recorded: known, reach: { kept: [least, most] } }) =>
        (known ? whole(known.kept) : least < most ? `≈ ${between(whole, least, most)}` : whole(most));
      const mass = ({ recorded: known, approximate: rough, count, mass: gone, reach }) => {
        if (known) return known.count ? percent(known.mass) : "–";
        return rough && reach.mass[1] > 0 ? `≈ ${between(percent, ...reach.mass)}` : count ? percent(gone) : "–";
      };
      const last = stages[stages.length - 1];
      const candidates = bars(
        best.map((place) => ({
          name: name(step.ids[place]),
          values: columns.map((stage) => stage.probabilities[place]),
          texts: columns.map((stage, i) => cell(stage, place, moved && i === 1 ? recorded : filtered)),
          class: [kind !== "unsure" && step.ids[place] === winner && "chosen", isOut(last, place) && "gone"].filter(Boolean).join(" "),
        })),
        [t("token", "токен"), ...heads],
        t("Probabilities of the step before and after the filters; a removed token has the filter's name", "Вероятности шага до и после фильтров; у убранного токена имя фильтра"),
      );
      const removals = grid(
        [t("filter", "фильтр"), t("tokens", "токены"), t("removed", "убрал"), t("mass", "масса"), t("which", "какие")],
        stages.slice(1).map((stage, i) => [
          Draws.filterName(stage.name),
          `${left(stages[i])} → ${left(stage)}`,
          stage.recorded ? whole(stage.recorded.count) : stage.reach.kept[0] < stage.reach.kept[1] ? "?" : whole(stage.count),
          mass(stage),
          names(stage),
        ]),
        t("What each filter removed, and its share of the probability that it was given", "Что убрал каждый фильтр и какую долю полученной вероятности"),
        [1, 2, 3],
      );
      const none = t("No filter is on: the token is drawn from the model's own distribution.", "Фильтров нет: токен тянут из распределения самой модели.");
      const guess = t(
        `≈: only the ${whole(step.ids.length)} largest logits of this step are recorded. The other ${tokensOf(step.rest)}, ${percent(step.restMass)} of the raw probability, count here as equal ones; were they as unequal as can be, a probability above would differ by up to ${percent(spread)}.`,
        `≈: записаны только ${whole(step.ids.length)} наибольших логитов этого шага. Остальные ${tokensOf(step.rest)}, ${percent(step.restMass)} исходной вероятности, считаются здесь равными; будь они неравны насколько возможно, вероятность выше отличалась бы не больше чем на ${percent(spread)}.`,
      );
      now.replaceChildren(
        el("h3", {}, t(`Step ${at + 1}`, `Шаг ${at + 1}`)),
        el("div", { class: "beside" }, candidates, el(
          "div",
          {},
          stages.length > 1 ? removals : el("p", { class: "quiet" }, none),
          approximate && el("p", { class: "remark", id: "live-approximate" }, guess),
        )),
      );
    }

    /** The removed tokens by name, the most probable first. */
    function names({ name, removed, count, recorded }) {
      if (name === "temperature" || name === "repetition_penalty") return t("changes logits alone", "меняет лишь логиты");
      const raw = found[page.at].filtered.stages[0];
      const { place } = found[page.at].filtered.step;
      const first = [...removed].sort((a, b) => raw.scores[place.get(b)] - raw.scores[place.get(a)]).slice(0, NAMED);
      const more = (recorded?.count ?? count) - first.length;
      const spaced = first.flatMap((id) => [" ", tokenName(page.token(id))]).slice(1);
      if (more > 0) spaced.push(first.length ? t(` and ${whole(more)} more`, ` и ещё ${whole(more)}`) : t("logits not recorded", "логиты не записаны"));
      return el("span", {}, ...spaced);
    }

    /** Finds out, a step at a time so that the page stays quick, how fast the tokens were that are not recorded. */
    async function sweep() {
      if (memory.swept || !Draws.prepare(run, 0).rest) return;
      for (let at = 0; at < run.steps.length; at++) {
        Draws.verdict(side, at);
        await new Promise((resume) => setTimeout(resume));
      }
      memory.swept = true;
      if (root.isConnected) drawAll();
    }

    drawAll();
    sweep();
    return {
      step() {
        tries.querySelectorAll("button").forEach((button, at) => {
          markCurrent(button, at === page.at);
        });
        drawStep();
      },
    };
  },
});
