/** Contributions: the chosen token's logit as a sum over what every component wrote into the residual stream. */
Page.panel({
  id: "contributions",
  title: () => t("What did each part add?", "Что добавила каждая часть?"),
  intro: () =>
    t(
      "The chosen token's logit as a sum over everything that was written into the residual stream, and its lead over the best other token likewise.",
      "Логит выбранного токена как сумма всего, что записано в остаточный поток, и так же его отрыв от лучшего из других.",
    ),
  needs: (side) => Within.has(side, "contributions"),
  build(root, page) {
    if (Within.refused(root, page, "contributions")) return {};
    const { contributions } = page.side.inside;
    const memory = page.memory("contributions");
    memory.order ??= "written";
    const place = el("div");
    root.append(place);

    function order(value) {
      memory.order = value;
      step();
      document.getElementById(`choice-${value}`).focus();
    }

    function step() {
      const known = Object.keys(contributions);
      const own = String(page.at);
      const at = own in contributions ? own : known[known.length - 1];
      const record = contributions[at];
      const [chosen, rival] = [record.token, record.rival].map((token) => quoted(token.text));
      const largest = Math.max(...record.terms.flatMap((term) => [Math.abs(term.logit), Math.abs(term.difference)]), 1e-9);
      const terms = [...record.terms];
      if (memory.order === "size") terms.sort((a, b) => Math.abs(b.difference) - Math.abs(a.difference));
      const [logit, lead] = ["logit", "difference"].map((name) => record.checks.find((check) => check.name === name));
      const row = (name, values, kind) =>
        el("tr", { class: kind }, el("th", { scope: "row" }, name), ...values.map((value) => el("td", {}, signed(value, largest, !kind), el("span", { class: "number" }, plus(value)))));
      place.replaceChildren(
        ...[
          at !== own &&
            el("p", { class: "remark" }, t(`Told of step ${Number(at) + 1} alone, since the model is large.`, `Показано только для шага ${Number(at) + 1}: модель велика.`)),
          el(
            "p",
            {},
            t(
              `Step ${Number(at) + 1}: ${chosen}, logit ${fixed(record.logit, 3)}; the best other token: ${rival}, logit ${fixed(record.rival_logit, 3)}.`,
              `Шаг ${Number(at) + 1}: ${chosen}, логит ${fixed(record.logit, 3)}; лучший из других: ${rival}, логит ${fixed(record.rival_logit, 3)}.`,
            ),
            record.after.length > 0 && t(` Both are before ${record.after.join(" → ")}, which is no sum.`, ` Оба — до ${record.after.join(" → ")}: это уже не сумма.`),
          ),
          el(
            "div",
            { class: "tools" },
            el("span", {}, t("Order:", "Порядок:")),
            choice(
              "choice",
              t("Order", "Порядок"),
              [["written", t("as written", "как записано")], ["size", t("the largest lead first", "наибольший отрыв первым")]],
              memory.order,
              order,
            ),
          ),
          el(
            "table",
            { class: "bars signed" },
            el("caption", { class: "said" }, t("Contributions of the components", "Вклады частей")),
            el(
              "thead",
              {},
              el("tr", {}, ...[t("written by", "кто пишет"), t(`to the logit of ${Cells.called(record.token)}`, `в логит ${Cells.called(record.token)}`), t(`to its lead over ${Cells.called(record.rival)}`, `в отрыв от ${Cells.called(record.rival)}`)].map((head) => el("th", { scope: "col" }, head))),
            ),
            el("tbody", {}, ...terms.map((term) => row(term.role, [term.logit, term.difference])), row(t("sum", "сумма"), [logit.sum, lead.sum], "sum")),
          ),
          el("h3", {}, t("Do they add up?", "Сходится ли сумма?")),
          grid(
            [t("check", "проверка"), t("sum", "сумма"), t("model", "модель"), t("error", "ошибка"), t("allowed", "допустимо"), ""],
            record.checks.map((check) => [
              names()[check.name] ?? check.name,
              fixed(check.sum, 6),
              fixed(check.target, 6),
              exponent(check.error),
              exponent(check.allowed),
              check.error <= check.allowed ? t("✓ holds", "✓ верно") : t("✗ does not hold", "✗ неверно"),
            ]),
            t("Checks of the sum", "Проверки суммы"),
            [1, 2, 3, 4],
          ),
          el(
            "p",
            { class: "quiet" },
            t(
              "The scale of the final norm is held at its value here: a way of reading a logit, not a cause.",
              "Масштаб последней нормы взят таким, каков он здесь: это способ прочитать логит, а не причина.",
            ),
          ),
        ].filter(Boolean),
      );
    }

    const names = () => ({
      residual: t("stream (the worst dimension)", "поток (худшая координата)"),
      logit: t("logit", "логит"),
      difference: t("lead", "отрыв"),
    });
    const plus = (value) => (fixed(value, 3).startsWith("−") ? "" : "+") + fixed(value, 3);

    /** A bar from the middle: to the left below zero, to the right above. */
    function signed(value, largest, drawn) {
      const width = (50 * Math.abs(value)) / largest;
      return svg(
        "svg",
        { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
        drawn && svg("rect", { class: value < 0 ? "below" : null, x: value < 0 ? 50 - width : 50, width, height: 10 }),
        drawn && svg("line", { x1: 50, x2: 50, y1: 0, y2: 10 }),
      );
    }

    return { step };
  },
});
