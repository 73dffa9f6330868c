/** Step by step: a slider over the run, the text so far, and the candidates on their way to the draw. */
Page.panel({
  id: "steps",
  title: () => t("Step by step", "Шаг за шагом"),
  needs: (side) => side.run.steps.length > 0,
  build(root, page) {
    const shown = el("div");
    root.append(shown);
    return {
      step() {
        shown.replaceChildren(
          el("p", {}, `${page.at + 1} / ${page.run.steps.length}: `, tokenName(page.step.token)),
          bars(
            page.step.candidates.map((c) => ({ name: tokenName(c.token), values: [c.probability_before, c.probability_after] })),
            [t("token", "токен"), t("before", "до"), t("after", "после")],
            t("Candidates", "Кандидаты"),
          ),
        );
      },
    };
  },
});
