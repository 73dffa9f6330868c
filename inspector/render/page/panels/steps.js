/** Step by step: a slider over the run, the text so far, and the candidates on their way to the draw. */
Page.panel({
  id: "steps",
  title: () => t("Step by step", "Шаг за шагом"),
  intro: () =>
    t(
      "One step is one token. The slider and the arrow keys go through them, space plays; a token of the text goes to its step.",
      "Один шаг — один токен. Ползунок и стрелки ведут по шагам, пробел проигрывает; токен в тексте ведёт к своему шагу.",
    ),
  needs: (side) => side.run.steps.length > 0,
  build(root, page) {
    const { run } = page;
    const NAMED = 5; // removed tokens that are named of each filter
    const last = run.steps.length - 1;

    // ---- where we are ----

    const play = el("button", { id: "steps-play", type: "button", on: { click: () => Page.play(!Page.playing()) } });
    const slider = el("input", {
      id: "steps-slider",
      type: "range",
      min: 1,
      max: last + 1,
      step: 1,
      "aria-label": t("Step", "Шаг"),
      on: {
        input() {
          const wanted = Number(slider.value) - 1; // what is shown anew sets the slider
          Page.play(false);
          page.goTo(wanted);
        },
        keydown(event) {
          if (event.key !== " ") return;
          event.preventDefault();
          Page.play(!Page.playing());
        },
      },
    });
    const place = el("span", { id: "steps-at" });
    const tokens = run.steps.map((step, i) => textToken(step, i));
    const text = el("p", { id: "steps-text", class: "running", role: "group", "aria-label": t("The text so far", "Текст до этого места") });
    const end = el("span", { class: "quiet", hidden: "" }, ` ■ ${ending(run.stop_reason)}`);
    text.append(Tint.tail(run.prompt), ...Tint.line(run.prompt, tokens), end);
    const told = el("p", { id: "steps-token", class: "quiet" });
    const why = el("p", { id: "steps-why", class: "why" });
    const own = el("div");
    const course = el("div", { id: "steps-course" });
    const removed = el("ul", { id: "steps-removed", class: "plain" });
    root.append(el("div", { class: "stepping" }, play, slider, place), text, el("div", { class: "about" }, told, Tint.legend()), why, own, course, removed);

    function textToken(step, i) {
      const p = Tint.chosen(step);
      const classes = ["run", Tint.tint(p), step.token.special && "special"].filter(Boolean).join(" ");
      const tell = () => (told.replaceChildren(...about(i)), undefined);
      const untell = () => (told.replaceChildren(...about(page.at)), undefined);
      return el(
        "button",
        {
          type: "button",
          class: classes,
          "aria-label": `${t("step", "шаг")} ${i + 1}: ${quoted(step.token.text)}, ${percent(p)}`,
          on: { click: () => page.goTo(i), mouseenter: tell, mouseleave: untell, focus: tell, blur: untell },
        },
        el("bdi", {}, Tint.written(step.token)),
      );
    }

    /** A chosen token in a line: its step, its probability in the model, and in the draw. */
    function about(i) {
      const step = run.steps[i];
      const chosen = step.candidates.find(({ token }) => token.id === step.token.id);
      const parts = [t(`step ${i + 1}: `, `шаг ${i + 1}: `), tokenName(step.token)];
      if (chosen) {
        const raw = t(`raw probability ${percent(chosen.probability_before)}`, `исходная вероятность ${percent(chosen.probability_before)}`);
        parts.push(`, ${raw}, ${t("after the filters", "после фильтров")} ${percent(chosen.probability_after)}`);
      }
      return parts;
    }

    function ending(reason) {
      return {
        eos: t("the model's end token", "токен конца самой модели"),
        max_new_tokens: t("the limit of new tokens", "предел новых токенов"),
        context_full: t("the context is full", "контекст заполнен"),
        interrupted: t("interrupted", "прервано"),
      }[reason] ?? reason;
    }

    function showPlace() {
      const inside = text.contains(document.activeElement);
      play.textContent = Page.playing() ? `❚❚ ${t("Stop", "Стоп")}` : `▶ ${t("Play", "Проиграть")}`;
      slider.value = page.at + 1;
      slider.setAttribute("aria-valuetext", t(`step ${page.at + 1} of ${last + 1}`, `шаг ${page.at + 1} из ${last + 1}`) + `: ${quoted(page.step.token.text)}`);
      place.textContent = `${page.at + 1} / ${last + 1}`;
      tokens.forEach((token, i) => {
        // What comes later keeps its room, so that nothing below moves from step to step.
        token.classList.toggle("later", i > page.at);
        token.tabIndex = i === page.at ? 0 : -1;
        markCurrent(token, i === page.at);
      });
      end.hidden = page.at !== last;
      if (inside) tokens[page.at].focus({ preventScroll: true });
      told.replaceChildren(...about(page.at));
    }

    // ---- the way of the candidates ----

    /** The rows of the table: the candidates, and a runner-up that is not listed, the largest logit first. */
    function listed(step) {
      const runner = step.runner_up;
      const beside = runner && !step.candidates.some(({ token }) => token.id === runner.token.id) ? [runner] : [];
      return [...step.candidates, ...beside].sort((a, b) => number(b.logit) - number(a.logit));
    }

    const greedy = (step) => "greedy" in step.kept;
    const drawn = (candidate) => (candidate?.draw ?? null) !== null && Number.isFinite(number(candidate.draw));
    const ratio = ({ probability_after: p, draw }) => p / number(draw);

    /** A filter's name and its value in the settings of the step, such as "top-p 0.9". */
    function stageName(name) {
      const value = Draws.settings(run, page.at)[name];
      return typeof value === "number" ? `${Draws.filterName(name)} ${value.toLocaleString(page.lang, { maximumFractionDigits: 6 })}` : Draws.filterName(name);
    }

    /**
     * The columns between the logit and the draw: each has a head, of a candidate its probability there, or the name of the filter that
     * removed it there, and what the tokens that are not listed have.
     */
    function stages(step, rows) {
      if (!step.distribution) {
        const left = rows.reduce((rest, { probability_after: p }) => rest - p, 1);
        return [
          { head: t("before", "до"), of: (c) => ({ p: c.probability_before }), rest: step.other_mass },
          {
            head: t("after the filters", "после фильтров"),
            of: (c) => (c.removed_by && c.removed_by !== "greedy" ? { by: c.removed_by } : { p: c.probability_after }),
            rest: Math.max(0, left),
          },
        ];
      }
      const { place } = Draws.prepare(run, page.at);
      const { stages: found } = Draws.asRecorded(run, page.at);
      const end = greedy(step) ? -1 : found.length - 1; // after which stage the record has the probabilities itself
      // Where a candidate was removed the record says; the way there is the page's own arithmetic.
      const out = (c, at) => c.removed_by && found.findIndex(({ name }) => name === c.removed_by) <= at && c.removed_by !== "greedy";
      return found.map((stage, i) => {
        const p = (c) => (i === 0 ? c.probability_before : i === end ? c.probability_after : stage.probabilities[place.get(c.token.id)]);
        const others = i === 0 ? step.other_mass : rows.reduce((rest, c) => rest - (out(c, i) ? 0 : p(c)), 1);
        const kept = i === 0 ? stage.kept : (step.kept[stage.name] ?? stage.kept);
        return {
          head: i === 0 ? t("raw", "исходно") : stageName(stage.name),
          of: (c) => (!out(c, i) ? { p: p(c) } : out(c, i - 1) ? {} : { by: stage.name }),
          rest: others < 1e-6 ? 0 : others,
          left: kept - rows.filter((c) => !out(c, i)).length,
          about: stage.approximate && i !== end,
        };
      });
    }

    function showCourse() {
      const { step } = page;
      const rows = listed(step);
      if (!rows.length) return course.replaceChildren(el("p", { class: "quiet" }, t("This step was recorded without candidates.", "Этот шаг записан без кандидатов.")));
      const columns = stages(step, rows);
      const fastest = Math.max(...rows.filter(drawn).map(ratio));
      const race = rows.some(drawn);
      const numbers = (value, text) => [bar(value), el("span", { class: "number" }, text)];
      // One scale for all columns, so that a bar grows only where its probability does.
      const most = Math.max(...columns.flatMap((column) => rows.map((c) => column.of(c).p ?? 0)), greedy(step) ? 1 : 0);
      const share = (p, rough) => numbers(p / most, rough ? roughly(percent(p)) : percent(p));
      const row = (c) => {
        const won = c.token.id === step.token.id;
        const second = !won && c.token.id === step.runner_up?.token.id;
        const cells = columns.map((column) => {
          const { p, by } = column.of(c);
          if (by) return el("td", { class: "out" }, `✕ ${Draws.filterName(by)}`);
          return el("td", {}, p === undefined ? null : share(p, column.about));
        });
        const out = c.removed_by && c.removed_by !== "greedy";
        const ends = race
          ? el("td", {}, drawn(c) && c.probability_after > 0 ? numbers(ratio(c) / fastest, digits(ratio(c))) : null)
          : greedy(step) && el("td", {}, won ? share(1, false) : null);
        const mark = won ? t(" ◀ chosen", " ◀ выбран") : second ? t(" runner-up", " второй") : null;
        return el(
          "tr",
          { class: [won && "chosen", out && "gone"].filter(Boolean).join(" ") || null },
          el("th", { scope: "row" }, tokenName(c.token), mark && el("span", { class: "mark" }, mark)),
          el("td", { class: "number" }, fixed(c.logit, 2)),
          ...cells,
          ends || null,
        );
      };
      const size = Draws.size(page.side, page.at);
      const others = size ? size - rows.length : null;
      const heads = [t("token", "токен"), t("logit", "логит"), ...columns.map(({ head }) => head)];
      if (race) heads.push("p/q");
      else if (greedy(step)) heads.push(t("greedy", "жадно"));
      const rest = columns.map(({ rest: mass, left, about: rough }) => {
        if (left === 0) return el("td", {}, t("none left", "не осталось"));
        const fewer = left > 0 && left !== others && el("div", {}, t(`${whole(left)} left`, `осталось ${whole(left)}`));
        return el("td", {}, el("span", { class: "number" }, rough ? roughly(percent(mass)) : percent(mass)), fewer || null);
      });
      const caption = t("The candidates on their way through the filters to the draw", "Кандидаты на пути через фильтры к розыгрышу");
      course.replaceChildren(
        el(
          "div",
          { class: "wide", role: "group", "aria-label": caption, tabindex: "0" },
          el(
            "table",
            { class: "bars course" },
            el("caption", { class: "said" }, caption),
            el("thead", {}, el("tr", {}, ...heads.map((head, i) => el("th", { scope: "col", class: i === 1 ? "number" : null }, head)))),
            el(
              "tbody",
              {},
              ...rows.map(row),
              others !== 0 &&
                el(
                  "tr",
                  { class: "others" },
                  el("th", { scope: "row" }, others === null ? t("all others", "все прочие") : t(`${whole(others)} others`, `${counted(others, "", "", "прочий", "прочих", "прочих")}`)),
                  el("td"),
                  ...rest,
                  race || greedy(step) ? el("td") : null,
                ),
            ),
          ),
        ),
        columns.some(({ about: rough }) => rough) &&
          el("p", { class: "quiet" }, t(
            "≈: of the tokens whose logits are not recorded only their number and their raw mass are known.",
            "≈: о токенах, чьи логиты не записаны, известны лишь их число и их исходная масса.",
          )) || "",
      );
    }

    // ---- what was removed ----

    /** The names of filters that can remove tokens, in their order, with what they took away; `mass` is null where it was not recorded. */
    function removals(step) {
      let given = Draws.size(page.side, page.at) || null;
      const found = [];
      for (const [name, kept] of Object.entries(step.kept)) {
        if (name !== "greedy" && name !== "temperature" && name !== "repetition_penalty") {
          found.push({ name, mass: null, given, count: given === null ? null : given - kept, ...step.removed[name] });
        }
        given = kept;
      }
      return found;
    }

    /** The most probable of the tokens that a filter removed. */
    function gone(step, name) {
      if (!step.distribution) return step.candidates.filter((c) => c.removed_by === name).map(({ token }) => token);
      const { place, logits } = Draws.prepare(run, page.at);
      const stage = Draws.asRecorded(run, page.at).stages.find((one) => one.name === name);
      const logit = (id) => logits[place.get(id)];
      return [...(stage?.removed ?? [])].sort((a, b) => logit(b) - logit(a)).map(page.token);
    }

    function showRemoved() {
      const { step } = page;
      const idle = [];
      const lines = [];
      for (const { name, count, given, mass } of removals(step)) {
        if (count === 0) {
          idle.push(stageName(name));
          continue;
        }
        if (count === null) continue;
        const names = gone(step, name).slice(0, NAMED);
        const share = mass === null ? "" : t(` (${percent(mass)} of the mass that it was given)`, ` (${percent(mass)} массы, которая ему досталась)`);
        const more = count - names.length;
        lines.push(
          el(
            "li",
            {},
            t(`${stageName(name)} removed ${whole(count)} of ${whole(given)}${share}`, `${stageName(name)}: убрано ${whole(count)} из ${whole(given)}${share}`),
            names.length ? ": " : null,
            ...names.flatMap((token, i) => [i ? ", " : null, tokenName(token)]),
            names.length && more ? t(` and ${whole(more)} less probable ones`, ` и ещё ${whole(more)} менее вероятных`) : null,
          ),
        );
      }
      if (idle.length) lines.push(el("li", { class: "quiet" }, t(`Removed nothing here: ${idle.join(", ")}.`, `Ничего здесь не убрали: ${idle.join(", ")}.`)));
      removed.replaceChildren(...lines);
    }

    /** A setting's value, short. */
    function settingOf(value) {
      if (value === null || value === false || (Array.isArray(value) && !value.length)) return t("off", "нет");
      if (typeof value === "number") return value.toLocaleString(page.lang, { maximumFractionDigits: 10, useGrouping: false });
      return value === true ? t("on", "да") : visible(JSON.stringify(value));
    }

    /** Settings that are this step's alone. */
    function showOwn() {
      const { step } = page;
      own.replaceChildren();
      if (step.sampling) {
        const other = Object.keys(step.sampling).filter((name) => JSON.stringify(step.sampling[name]) !== JSON.stringify(run.sampling[name]));
        const said = other.map((name) => `${Draws.filterName(name)} ${settingOf(step.sampling[name])}`).join(", ");
        own.append(el("p", { class: "remark" }, t(`This step has settings of its own: ${said || "the run's"}.`, `У этого шага свои настройки: ${said || "как у прогона"}.`)));
      }
      if (step.seeded) {
        const { seed } = Draws.settings(run, page.at);
        own.append(el("p", { class: "remark" }, t(`The generator began anew at this step, with seed ${seed}.`, `На этом шаге генератор начал заново, с seed ${seed}.`)));
      }
    }

    // ---- why this one ----

    function reasons(step) {
      const name = tokenName(step.token);
      const chosen = step.candidates.find(({ token }) => token.id === step.token.id);
      const kept = Object.entries(step.kept).filter(([filter]) => filter !== "greedy").map(([, count]) => count);
      if (step.forced) {
        const p = chosen ? t(` The model gave it ${percent(chosen.probability_before)}.`, ` Модель давала ему ${percent(chosen.probability_before)}.`) : "";
        return [name, t(" was named by hand, whatever the settings would have chosen.", " назван вручную, что бы ни выбрали настройки."), p];
      }
      if (!chosen) return [name, t(" was chosen; its rivals were not recorded.", " выбран; другие кандидаты не записаны.")];
      if (kept.length && kept[kept.length - 1] === 1) {
        return [t("The filters left only ", "Фильтры оставили только "), name, t(": no other token could have been chosen.", ": другой токен выбрать было нельзя.")];
      }
      // Files of the first schema may lack the runner-up: then the best of those listed stands for it.
      const others = step.candidates.filter((c) => c !== chosen && (!c.removed_by || c.removed_by === "greedy"));
      const best = (of) => others.reduce((most, c) => (most === null || of(c) > of(most) ? c : most), null);
      if (greedy(step)) {
        const rival = step.runner_up ?? best((c) => number(c.logit));
        const scores = step.distribution && Draws.asRecorded(run, page.at).scores;
        const place = scores && Draws.prepare(run, page.at).place;
        const score = (c) => (scores ? scores[place.get(c.token.id)] : number(c.logit));
        const filters = kept.length > 0;
        const what = filters ? "logit after the filters" : "logit";
        const most = filters ? "наибольший логит после фильтров" : "наибольший логит";
        if (!rival) return [t(`Greedy, without noise: the largest ${what} wins, `, `Жадно, без шума: побеждает ${most}, `), name, ` ${fixed(score(chosen), 3)}.`];
        return [
          t(`Greedy, without noise: the largest ${what} wins, `, `Жадно, без шума: побеждает ${most}, `),
          name,
          ` ${fixed(score(chosen), 3)}; ${t("the runner-up is ", "второй — ")}`,
          tokenName(rival.token),
          ` ${fixed(score(rival), 3)}.`,
        ];
      }
      if (!drawn(chosen)) return [name, t(" was drawn; its noise was not recorded.", " вытянут; шум не записан.")];
      const rival = step.runner_up ?? (others.some(drawn) ? best((c) => (drawn(c) ? ratio(c) : -1)) : null);
      const parts = (c) => `${digits(c.probability_after)} / ${digits(number(c.draw))} = ${digits(ratio(c))}`;
      const won = [t("The largest p/q wins: ", "Побеждает наибольшее p/q: "), name, ` ${parts(chosen)}`];
      if (!rival) return [...won, "."];
      const unlikely = rival.probability_after > chosen.probability_after;
      return [
        ...won,
        unlikely ? t("; the runner-up, though more probable, is ", "; второй, хотя и вероятнее, — ") : t("; the runner-up is ", "; второй — "),
        tokenName(rival.token),
        ` ${parts(rival)}.`,
      ];
    }

    return {
      step() {
        showPlace();
        why.replaceChildren(...reasons(page.step));
        showOwn();
        showCourse();
        showRemoved();
        page.announce(t(`Step ${page.at + 1}. `, `Шаг ${page.at + 1}. `) + why.textContent);
      },
    };
  },
});
