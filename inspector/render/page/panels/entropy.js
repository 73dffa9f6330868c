/** How unsure the model was, over the whole output: a column for each step, as high as the entropy of its raw distribution. */
Page.panel({
  id: "entropy",
  title: () => t("How unsure the model was", "Насколько модель была не уверена"),
  intro: () =>
    t(
      "The entropy of every step's raw distribution, in nats: 0 where one token is certain. A column goes to its step.",
      "Энтропия исходного распределения каждого шага, в натах: 0 там, где один токен неизбежен. Столбик ведёт к своему шагу.",
    ),
  needs: (side) => side.run.steps.length > 0,
  build(root, page) {
    const { run, side } = page;
    const entropies = run.steps.map((step) => number(step.entropy));
    const most = Math.max(...entropies.filter(Number.isFinite), 0);
    const nats = (x) => `${fixed(x, 2)} ${t("nats", "нат")}`;
    const told = el("p", { id: "entropy-step", class: "quiet" });
    const cells = run.steps.map((step, i) =>
      el(
        "button",
        {
          type: "button",
          class: "cell",
          "aria-label": `${t("step", "шаг")} ${i + 1}: ${quoted(step.token.text)}, ${nats(entropies[i])}`,
          on: {
            click: () => page.goTo(i),
            mouseenter: () => tell(i),
            mouseleave: () => tell(page.at),
            focus: () => tell(i),
            blur: () => tell(page.at),
          },
        },
        svg(
          "svg",
          { class: "column", viewBox: "0 0 10 100", preserveAspectRatio: "none", "aria-hidden": "true" },
          svg("rect", { width: 10, height: height(entropies[i]), y: 100 - height(entropies[i]) }),
        ),
        el("bdi", { class: "name" }, Tint.written(step.token)),
      ),
    );
    const strip = el("div", { class: "strip", role: "group", "aria-label": t("Entropy of every step", "Энтропия каждого шага") }, ...cells);
    root.append(el("div", { class: "wide" }, strip), told, el("p", { id: "entropy-said" }, ...unsure()), scale());

    function height(x) {
      return most > 0 && Number.isFinite(x) ? (100 * x) / most : 0;
    }

    function scale() {
      const full = t(`The highest column is the largest entropy of this run, ${nats(most)}.`, `Самый высокий столбик — наибольшая энтропия этого прогона, ${nats(most)}.`);
      if (!side.vocabulary) return el("p", { class: "quiet" }, full);
      const size = whole(side.vocabulary);
      const limit = nats(Math.log(side.vocabulary));
      return el("p", { class: "quiet" }, full, t(` Were all ${size} tokens equally likely, it would be ln ${size} = ${limit}.`, ` Будь все токены (${size}) равновероятны, она была бы ln ${size} = ${limit}.`));
    }

    /** The steps with the largest entropies, in a sentence. */
    function unsure() {
      const order = run.steps.map((_, i) => i).filter((i) => Number.isFinite(entropies[i])).sort((a, b) => entropies[b] - entropies[a]);
      const [first, ...others] = order.slice(0, 3);
      if (first === undefined) return [];
      const name = (i) => [t(`step ${i + 1}, `, `шаг ${i + 1}, `), tokenName(run.steps[i].token), ` (${nats(entropies[i])})`];
      const alike = fixed(Math.exp(entropies[first]), 1);
      return [
        t("Most unsure: ", "Меньше всего уверенности: "),
        ...name(first),
        t(`, as between ${alike} equally likely tokens`, `, как между ${alike} равновероятными токенами`),
        ...others.flatMap((i) => ["; ", ...name(i)]),
        ".",
      ];
    }

    function tell(i) {
      const p = Tint.chosen(run.steps[i]);
      told.replaceChildren(
        t(`step ${i + 1}: `, `шаг ${i + 1}: `),
        tokenName(run.steps[i].token),
        `, ${nats(entropies[i])}`,
        p === null ? "" : t(`; the chosen token had ${percent(p)}`, `; у выбранного токена было ${percent(p)}`),
      );
    }

    return {
      step() {
        const inside = strip.contains(document.activeElement);
        cells.forEach((cell, i) => {
          cell.tabIndex = i === page.at ? 0 : -1;
          markCurrent(cell, i === page.at);
        });
        if (inside) cells[page.at].focus({ preventScroll: true });
        tell(page.at);
      },
    };
  },
});
