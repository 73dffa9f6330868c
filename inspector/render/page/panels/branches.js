/** Branches: what would have followed greedily, had another token been taken at the step. */
Page.panel({
  id: "branches",
  title: () => t("Had another token been taken", "Если бы взяли другой токен"),
  intro: () =>
    t(
      "From each of the most probable other tokens the model goes on greedily, with the run's penalties and without a draw. A branch opens to its whole text.",
      "От каждого из самых вероятных других токенов модель продолжает жадно, со штрафами прогона и без розыгрыша. Ветвь раскрывается в полный текст.",
    ),
  needs: (side) => side.branches.length > 0,
  build(root, page) {
    const { run, side } = page;
    const memory = page.memory("branches");
    const before = el("p", { class: "running", "aria-label": t("The text before this step", "Текст до этого шага") });
    const tree = el("ol", { id: "branches-tree", class: "tree" });
    root.append(before, tree, Tint.legend(), note());

    function note() {
      return el("p", { class: "quiet" }, t(
        "All branches were computed side by side; where two logits are as near as rounding, a text by itself might go on otherwise.",
        "Все ветви вычислены рядом; где два логита различаются лишь на округление, отдельный текст мог бы продолжиться иначе.",
      ));
    }

    const end = (reason) => (reason === "eos" ? " ■" : reason === null ? "" : " …");

    /** What was chosen, as a branch. */
    function taken() {
      const steps = run.steps.slice(page.at);
      return { tokens: steps.map(({ token }) => token), probabilities: steps.map(Tint.chosen), stop_reason: run.stop_reason, chosen: true };
    }

    function item(branch, i) {
      const open = memory.open === `${page.at} ${i}`;
      const [first, ...others] = branch.tokens;
      const id = `branch-${i}`;
      const toggle = el(
        "button",
        {
          id: `${id}-open`,
          type: "button",
          class: "plain",
          "aria-expanded": String(open),
          "aria-controls": id,
          on: {
            click() {
              memory.open = open ? null : `${page.at} ${i}`;
              show();
              document.getElementById(`${id}-open`).focus();
            },
          },
        },
        open ? "▾ " : "▸ ",
        tokenName(first),
        ` ${percent(branch.probabilities[0])}`,
      );
      // Opened, the same tokens stand in the whole text.
      const further = others.map((token, k) => Tint.token(token, branch.probabilities[k + 1]));
      const line = open ? null : el("span", {}, ...Tint.line(run.prompt, further), end(branch.stop_reason));
      return el(
        "li",
        { class: branch.chosen ? "own" : null },
        el("div", { class: "fork" }, toggle, branch.chosen && el("span", { class: "mark" }, t(" ◀ chosen", " ◀ выбран")), " ", line),
        el("div", { id, hidden: open ? null : "" }, open && wholeText(branch)),
      );
    }

    /** The whole text of a branch, with the place where it parts from the run. */
    function wholeText(branch) {
      const common = run.steps.slice(0, page.at);
      const own = branch.tokens.map((token, k) => Tint.token(token, branch.probabilities[k], { class: k || branch.chosen ? null : "parting" }));
      const mark = branch.chosen ? null : el("span", { class: "mark" }, ` ▶ ${t("parts here", "расходится здесь")} `);
      return el(
        "p",
        { class: "running whole" },
        Tint.tail(run.prompt),
        ...Tint.line(run.prompt, common.map((step) => Tint.token(step.token, Tint.chosen(step)))),
        mark,
        ...Tint.line(run.prompt, own),
        end(branch.stop_reason),
      );
    }

    function show() {
      const here = side.branches.filter(({ step }) => step === page.at);
      const texts = [...run.prompt, ...run.steps.slice(0, page.at).map(({ token }) => token)];
      before.replaceChildren(Tint.tail(texts));
      const items = [taken(), ...here].map(item);
      if (!here.length) items.push(el("li", { class: "quiet" }, t("No other token was recorded at this step.", "На этом шаге других токенов не записано.")));
      tree.replaceChildren(...items);
    }

    return { step: show };
  },
});
