/** The draw: noise q from the seed, the race p/q, its winner and the best loser; replayed bit for bit, and drawn again with other seeds. */
Page.panel({
  id: "draw",
  title: () => t("The draw", "Розыгрыш"),
  intro: () =>
    t(
      "Each token that the filters left draws a noise q from the seed, an exponential time; the largest p/q wins. So each wins with its probability p.",
      "Каждый токен, оставленный фильтрами, тянет из seed шум q, экспоненциальное время; побеждает наибольшее p/q. Так каждый побеждает со своей вероятностью p.",
    ),
  needs: (side) => side.run.steps.some((_, at) => Draws.drew(side.run, at)),
  build(root, page) {
    const memory = page.memory("draw");
    memory.tried ??= new Map(); // step → seeds that were asked for
    const RACERS = 8;
    const SEEDS = Array.from({ length: 10 }, (_, seed) => String(seed));
    const LARGEST_SEED = 2n ** 63n - 1n;
    const AT_ONCE = 3e6; // random numbers that are drawn without being asked for

    const race = el("div");
    const replayed = el("p", { id: "draw-replayed", "aria-live": "polite" });
    const seed = el("input", { id: "draw-seed", type: "text", inputmode: "numeric", size: 8, value: memory.seed ?? "1" });
    const complaint = el("p", { id: "draw-complaint", class: "remark", role: "alert", hidden: "" });
    const controls = el(
      "div",
      { class: "settings drawing" },
      el("button", { id: "draw-replay", type: "button", on: { click: replay } }, t("Replay from the seed", "Повторить из seed")),
      el(
        "form",
        { class: "field", on: { submit: drawAgain } },
        field(t("another seed", "другой seed"), seed),
        el("button", { id: "draw-again", type: "submit" }, t("Draw again", "Тянуть снова")),
      ),
    );
    const others = el("div");
    root.append(el("div", { class: "beside" }, el("div", {}, race, controls, replayed, complaint), others));

    /** Who ran in a step: every token with its p, q and p/q, the fastest first. */
    function racers() {
      const { run, step } = page;
      const noise = Draws.recorded(run, page.at);
      const all = new Map();
      const add = (token, p, q) => p > 0 && q !== undefined && all.set(token.id, { token, p, q, ratio: Math.fround(p / Math.fround(q)) });
      if (step.distribution) {
        const { probabilities } = Draws.asRecorded(run, page.at);
        Draws.prepare(run, page.at).ids.forEach((id, i) => add(page.token(id), probabilities[i], noise.get(id)));
      }
      for (const candidate of [...step.candidates, step.runner_up]) {
        if (candidate) add(candidate.token, candidate.probability_after, noise.get(candidate.token.id));
      }
      return [...all.values()].sort((a, b) => b.ratio - a.ratio);
    }

    const parts = ({ p, q, ratio }) => `p ${digits(p)} / q ${digits(q)} = ${digits(ratio)}`;

    function drawRace() {
      if (!Draws.drew(page.run, page.at)) {
        race.replaceChildren(el("p", { id: "draw-said" }, page.step.forced
          ? t("This step's token was named by hand: nothing was drawn.", "Токен этого шага назван вручную: ничего не тянули.")
          : t("This step was greedy: the largest logit wins without noise.", "Этот шаг жадный: наибольший логит побеждает без шума.")));
        return;
      }
      const running = racers();
      const winner = running.find(({ token }) => token.id === page.step.token.id);
      const loser = running.find(({ token }) => token !== winner?.token);
      const likely = running.reduce((best, one) => (one.p > best.p ? one : best), running[0]);
      const said = el("p", { id: "draw-said" }, t(`Step ${page.at + 1}, seed ${origin().seed}: `, `Шаг ${page.at + 1}, seed ${origin().seed}: `));
      if (page.step.forced) {
        said.append(tokenName(page.step.token), t(" was named by hand, whatever the draw said.", " назван вручную, что бы ни дал розыгрыш."));
      } else if (winner) {
        said.append(tokenName(winner.token), t(" wins: ", " побеждает: "), parts(winner), ". ");
        if (loser) said.append(t("The best loser is ", "Лучший из проигравших: "), tokenName(loser.token), `: ${parts(loser)}. `);
        else said.append(t("No other token was left.", "Других токенов не осталось."));
        if (likely !== winner && likely !== loser) {
          said.append(t("The most probable one, ", "Самый вероятный, "), tokenName(likely.token), `, ${t("had", "имел")} ${parts(likely)}.`);
        }
      }
      const shown = running.slice(0, RACERS);
      const slowest = Math.max(...shown.map(({ q }) => q));
      race.replaceChildren(
        said,
        bars(
          shown.map((one) => ({
            name: tokenName(one.token),
            values: [one.p, one.q / slowest, one.ratio / shown[0].ratio],
            texts: [percent(one.p), digits(one.q), digits(one.ratio)],
            class: one === winner ? "chosen" : null,
          })),
          [t("token", "токен"), t("p after the filters", "p после фильтров"), t("noise q", "шум q"), "p/q"],
          t("The race: the largest p/q wins", "Гонка: побеждает наибольшее p/q"),
        ),
      );
      if (page.step.distribution && Draws.asRecorded(page.run, page.at).approximate) {
        race.append(el("p", { class: "remark" }, t(
          "Not all logits of this step are recorded: p of the tokens that are not among its candidates is approximate.",
          "Записаны не все логиты этого шага: p токенов вне списка кандидатов приблизительна.",
        )));
      }
      const more = running.length - shown.length;
      if (more) race.append(el("p", { class: "quiet" }, t(`and ${tokensOf(more)} with a smaller p/q`, `и ещё ${tokensOf(more)} с меньшим p/q`)));
    }

    const origin = () => Draws.origin(page.run, page.at);

    /** Draws the step anew from the run's seed, and says whether the numbers are those that Python recorded. */
    function replay() {
      const found = Draws.verdict(page.side, page.at);
      replayed.dataset.differ = found ? found.differ : "unknown";
      if (!found) {
        replayed.textContent = t("There is nothing to replay: this record does not tell how many tokens drew, or drew none.",
          "Повторять нечего: запись не говорит, сколько токенов тянули, или никто не тянул.");
        return;
      }
      const { compared, differ, drawn } = found;
      const { seed: own, before } = origin();
      const from = t(`Drawn anew in this page from seed ${own}, after ${counted(before, "draw", "draws")}: `,
        `Разыграно заново на этой странице из seed ${own}, после ${counted(before, "", "", "розыгрыша", "розыгрышей", "розыгрышей")}: `);
      if (differ) {
        replayed.textContent = from + t(
          `${whole(differ)} of ${whole(compared)} recorded numbers differ. This run's noise is from another generator than torch's on the CPU today: another device, another version, or a run that shared its draws with others. So other seeds stand here only where Python recorded them.`,
          `${whole(differ)} из ${whole(compared)} записанных чисел отличаются. Шум этого прогона не от нынешнего генератора torch на CPU: другое устройство, другая версия или прогон, деливший розыгрыши с другими. Поэтому другие seed стоят здесь, только если их записал Python.`,
        );
        return;
      }
      replayed.textContent = from + (compared === drawn
        ? t(`all ${whole(drawn)} numbers q are the recorded ones, bit for bit`, `все ${whole(drawn)} чисел q равны записанным, бит в бит`)
        : t(`of ${whole(drawn)} numbers q the ${whole(compared)} recorded ones are equal, bit for bit`,
            `из ${whole(drawn)} чисел q записанные ${whole(compared)} равны, бит в бит`));
      if (!page.step.distribution || page.step.forced) return replayed.append(".");
      const result = Draws.draw(page.side, page.at);
      if (!result.sure) {
        return replayed.append(t(". Not all logits are recorded: who won, only the record says.", ". Записаны не все логиты: кто победил, говорит только запись."));
      }
      replayed.append(t("; the winner is ", "; побеждает "), tokenName(page.token(result.winner)),
        result.winner === page.step.token.id ? t(", as recorded.", ", как записано.") : t(", and not the recorded token.", ", а не записанный токен."));
    }

    /** Why no other seed can be drawn here; null where it can. */
    function hindrance() {
      if (!Draws.drew(page.run, page.at)) return t("This step drew nothing.", "На этом шаге ничего не тянули.");
      if (!page.step.distribution) {
        return t("The logits of this run were not recorded, so another draw cannot be made of them.",
          "Логиты этого прогона не записаны, так что другой розыгрыш из них не сделать.");
      }
      if (!Draws.agrees(page.side, page.at)) {
        return t("The generator in this page does not give this run's noise: other seeds stand here only where Python recorded them.",
          "Генератор этой страницы не даёт шума этого прогона: другие seed стоят здесь, только если их записал Python.");
      }
      return null;
    }

    function complain(text) {
      complaint.hidden = !text;
      complaint.textContent = text ?? "";
      return Boolean(text);
    }

    function drawAgain(event) {
      event.preventDefault();
      const wanted = seed.value.trim();
      const wrong = /^\d{1,19}$/.test(wanted) && BigInt(wanted) <= LARGEST_SEED ? null
        : t(`seed ${wanted || "«»"}: give a whole number from 0 to 2^63 − 1`, `seed ${wanted || "«»"}: нужно целое число от 0 до 2^63 − 1`);
      if (complain(wrong ?? hindrance())) return;
      const number = String(BigInt(wanted));
      memory.seed = seed.value = String(BigInt(number) + 1n > LARGEST_SEED ? 0n : BigInt(number) + 1n);
      const tried = memory.tried.get(page.at) ?? [];
      memory.tried.set(page.at, [number, ...tried.filter((one) => one !== number)].slice(0, 20));
      drawOthers();
      const row = others.querySelector(`[data-seed="${number}"]`);
      page.announce(row?.closest("tr").textContent ?? "");
    }

    /** A row of the table of other seeds: from the generator, or as Python recorded it. */
    function rowOf(one) {
      const name = el("span", { "data-seed": one }, one);
      const recorded = page.side.redraws.find(({ step, seed: of }) => step === page.at && String(of) === one);
      const mark = (id) => (id === page.step.token.id ? t("yes", "да") : t("no", "нет"));
      if (recorded) {
        const { token, draw, ratio, loser, loser_ratio: behind } = recorded;
        return [name, tokenName(token), mark(token.id), digits(draw), digits(ratio),
          loser ? el("span", { class: "number" }, tokenName(loser), ` ${digits(behind)}`) : "–"];
      }
      const { winner, runnerUp, sure, of } = Draws.draw(page.side, page.at, one);
      if (!sure) {
        const unknown = t("a token whose logit is not recorded may have won", "мог победить токен, чей логит не записан");
        return [name, "?", unknown, "–", "–", "–"];
      }
      const { q, ratio } = of(winner);
      return [name, tokenName(page.token(winner)), mark(winner), digits(q), digits(ratio),
        runnerUp === null ? "–" : el("span", { class: "number" }, tokenName(page.token(runnerUp)), ` ${digits(of(runnerUp).ratio)}`)];
    }

    function drawOthers() {
      const possible = Draws.drew(page.run, page.at);
      const words = Draws.size(page.side, page.at) * (origin().before + 1) * SEEDS.length;
      const quick = possible && words < AT_ONCE && !hindrance();
      const recorded = page.side.redraws.filter(({ step }) => step === page.at).map(({ seed: of }) => String(of));
      const tried = hindrance() ? [] : (memory.tried.get(page.at) ?? []);
      const seeds = [...new Set([...tried, ...(quick ? SEEDS : recorded)])];
      if (!possible || !seeds.length) return others.replaceChildren();
      const ids = seeds.map(rowOf);
      others.replaceChildren(
        el("h3", {}, t("This step with other seeds", "Этот шаг с другими seed")),
        grid(
          ["seed", t("winner", "победитель"), t("as in the run", "как в прогоне"), "q", "p/q", t("best loser, p/q", "второй, p/q")],
          ids,
          t("The same step drawn with other seeds, its context unchanged", "Тот же шаг с другими seed, контекст прежний"),
          [3, 4],
        ),
        el("p", { class: "quiet" }, t(
          "The generator begins anew with the seed and is brought to this step; the text before stays the run's.",
          "Генератор начинает заново с этим seed и доводится до этого шага; текст до него остаётся от прогона.",
        )),
      );
    }

    return {
      step() {
        complain(null);
        replayed.replaceChildren();
        delete replayed.dataset.differ;
        drawRace();
        drawOthers();
      },
    };
  },
});
