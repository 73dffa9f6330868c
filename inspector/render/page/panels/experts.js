/** Mixtures of experts: where each token went, with which weight, and how the load is shared. */
Page.panel({
  id: "experts",
  title: () => t("Which experts did each token go to?", "К каким экспертам пошёл каждый токен?"),
  intro: () =>
    t(
      "A mixture's router chooses a few experts for every token; their outputs are added with the weights shown.",
      "Маршрутизатор смеси выбирает каждому токену несколько экспертов; их выходы складываются с показанными весами.",
    ),
  needs: (side) => Within.has(side, "experts"),
  build(root, page) {
    if (Within.refused(root, page, "experts")) return {};
    const { mixtures } = page.side.inside.experts;
    const { begin } = page.side.inside;
    const memory = page.memory("experts");
    memory.mixture ??= 0;
    const tokens = Within.tokens(page);
    const shown = tokens.slice(begin);
    const detail = el("p", { class: "detail" });
    const place = el("div");
    const pick = select("experts-mixture", t("Mixture", "Смесь"), mixtures.map((one) => one.role), memory.mixture, (value) => {
      memory.mixture = value;
      draw();
      step();
    });
    let table = null;

    const weightOf = (mixture, e, c) => {
      const { experts, weights } = mixture.choices[c];
      const at = experts.indexOf(e);
      return at < 0 ? null : weights[at];
    };

    function said(r, c) {
      const mixture = mixtures[memory.mixture];
      const weight = weightOf(mixture, r, c);
      const all = mixture.choices[c].experts.map((e, i) => `${e}: ${fixed(mixture.choices[c].weights[i], 3)}`).join(", ");
      const here = `${begin + c} (${quoted(shown[c].text)})`;
      return t(
        `Position ${here}, expert ${r}: ${weight === null ? "not chosen" : `weight ${fixed(weight, 3)}`}. Its experts: ${all}.`,
        `Позиция ${here}, эксперт ${r}: ${weight === null ? "не выбран" : `вес ${fixed(weight, 3)}`}. Её эксперты: ${all}.`,
      );
    }

    function draw() {
      const mixture = mixtures[memory.mixture];
      const top = Math.max(mixture.total ?? 0, ...mixture.choices.flatMap((choice) => choice.weights), 1e-9);
      table = Cells.table({
        caption: t(`Experts of ${mixture.role} by positions`, `Эксперты ${mixture.role} по позициям`),
        corner: t("expert", "эксперт"),
        columns: Cells.places(shown, begin),
        rows: mixture.load.map((_, e) => ({ name: [String(e)] })),
        cell(r, c) {
          const weight = weightOf(mixture, r, c);
          return { text: weight === null ? "·" : fixed(weight, 2), level: weight === null ? 0 : Cells.level(weight / top) };
        },
        label: said,
        show: (r, c) => detail.replaceChildren(said(r, c)),
      });
      const total =
        mixture.total === null
          ? t("The weights of a token sum to different numbers.", "Сумма весов у токенов разная.")
          : t(`The weights of every token sum to ${fixed(mixture.total, 2)}.`, `Веса каждого токена дают в сумме ${fixed(mixture.total, 2)}.`);
      const shared = mixture.shared ? t(" Besides, every token goes to shared experts.", " Кроме них, каждый токен идёт к общим экспертам.") : "";
      place.replaceChildren(
        Cells.legend(t("weight", "вес"), "0", fixed(top)),
        table.element,
        detail,
        el("h3", {}, t("How the load is shared", "Как поделена нагрузка")),
        bars(
          mixture.load.map((load, e) => ({ name: t(`expert ${e}`, `эксперт ${e}`), values: [load, mixture.importance[e]] })),
          [t("expert", "эксперт"), t("load: share of all choices", "нагрузка: доля всех выборов"), t("importance: share of all weights", "важность: доля всех весов")],
          t("Load and importance of the experts", "Нагрузка и важность экспертов"),
        ),
        el(
          "p",
          { class: "quiet" },
          `${total}${shared} `,
          t(
            `The chosen experts, each asked alone, add up to what the mixture gives: numbers up to ${fixed(mixture.scale)} ${Within.apart(mixture.error)}.`,
            `Выбранные эксперты, опрошенные по одному, дают в сумме выход смеси: числа до ${fixed(mixture.scale)} ${Within.apart(mixture.error)}.`,
          ),
        ),
      );
    }

    function step() {
      const c = Within.position(page) - begin;
      const inside = c >= 0 && c < shown.length;
      table.markColumn(inside ? c : -1);
      if (!inside) return;
      const [first] = mixtures[memory.mixture].choices[c].experts;
      table.stop(first, c);
      detail.replaceChildren(said(first, c));
    }

    draw();
    root.append(...[Within.part(page), pick, place].filter(Boolean));
    return { step };
  },
});
