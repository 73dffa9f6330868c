/** Logit lens: what the head would say after every layer, at every position. */
Page.panel({
  id: "lens",
  title: () => t("What would it say after each layer?", "Что она сказала бы после каждого слоя?"),
  intro: () =>
    t(
      "The logit lens: the hidden state after each layer, read by the head as if the layer were the last one. A cell names the token that is most probable there.",
      "Логит-линза: скрытое состояние после каждого слоя, прочитанное головой так, будто слой последний. В клетке — самый вероятный там токен.",
    ),
  needs: (side) => Within.has(side, "lens"),
  build(root, page) {
    if (Within.refused(root, page, "lens")) return {};
    const { lens, begin } = page.side.inside;
    const memory = page.memory("lens");
    memory.tint ??= "probability";
    memory.row ??= lens.layers.length - 1;
    const tokens = Within.tokens(page);
    const shown = tokens.slice(begin);
    const most = Math.max(...lens.layers.flatMap((layer) => layer.entropy.map(number)));
    const detail = el("div", { class: "detail" });
    const place = el("div");
    let table = null;

    const share = (layer, c) => (memory.tint === "probability" ? layer.probabilities[c][0] : number(layer.entropy[c]) / (most || 1));

    /** The numbers of a cell in a sentence. */
    function said(r, c) {
      const layer = lens.layers[r];
      const choice = page.token(lens.choices[c]);
      const here = quoted(tokens[begin + c].text);
      const after = tokens[begin + c + 1];
      const next = after ? t(` What came next: ${quoted(after.text)}.`, ` Дальше стоит ${quoted(after.text)}.`) : "";
      return (
        t(
          `After ${layer.role}, at position ${begin + c} (${here}): ${quoted(page.token(layer.ids[c][0]).text)} with ${percent(layer.probabilities[c][0])}; ` +
            `entropy ${fixed(layer.entropy[c])} nats. The model's final choice here, ${quoted(choice.text)}, is number ${whole(layer.rank[c])} with ${percent(layer.probability[c])}.`,
          `После ${layer.role}, позиция ${begin + c} (${here}): ${quoted(page.token(layer.ids[c][0]).text)}, ${percent(layer.probabilities[c][0])}; ` +
            `энтропия ${fixed(layer.entropy[c])} нат. Окончательный выбор модели здесь, ${quoted(choice.text)}, на месте ${whole(layer.rank[c])} с ${percent(layer.probability[c])}.`,
        ) + next
      );
    }

    function show(r, c) {
      const layer = lens.layers[r];
      detail.replaceChildren(
        el("p", {}, said(r, c)),
        bars(
          layer.ids[c].map((id, i) => ({
            name: Cells.name(page.token(id)),
            values: [layer.probabilities[c][i]],
            class: id === lens.choices[c] ? "chosen" : null,
          })),
          [t("token", "токен"), t("probability", "вероятность")],
          t("The most probable tokens here", "Самые вероятные здесь токены"),
        ),
      );
    }

    function draw() {
      table = Cells.table({
        caption: t("Logit lens: layers by positions", "Логит-линза: слои и позиции"),
        corner: t("after layer", "после слоя"),
        columns: Cells.places(shown, begin),
        rows: lens.layers.map((layer) => ({ name: [Within.layerOf(layer.role)] })),
        cell: (r, c) => ({ text: Cells.brief(page.token(lens.layers[r].ids[c][0]).text), level: Cells.level(share(lens.layers[r], c)) }),
        label: said,
        show(r, c) {
          memory.row = r;
          show(r, c);
        },
      });
      const options = [["probability", t("probability of the best token", "вероятность лучшего токена")], ["entropy", t("entropy", "энтропия")]];
      place.replaceChildren(
        el("div", { class: "tools" }, el("span", {}, t("Tint:", "Тон:")), choice("choice", t("Tint", "Тон"), options, memory.tint, tint)),
        memory.tint === "probability"
          ? Cells.legend(t("probability", "вероятность"), "0", "1")
          : Cells.legend(t("entropy, nats", "энтропия, нат"), "0", fixed(most)),
        table.element,
      );
    }

    function tint(value) {
      memory.tint = value;
      draw();
      step();
      document.getElementById(`choice-${value}`).focus();
    }

    function step() {
      const c = Within.position(page) - begin;
      const inside = c >= 0 && c < shown.length;
      table.markColumn(inside ? c : -1);
      if (inside) {
        table.stop(memory.row, c);
        show(memory.row, c);
      } else {
        detail.replaceChildren(el("p", {}, t("This step is before the positions that are shown.", "Этот шаг раньше показанных позиций.")));
      }
    }

    draw();
    root.append(...[Within.part(page), el("div", { class: "reading" }, place, detail), proof()].filter(Boolean));

    function proof() {
      const by = lens.norm ? t("final norm and head", "последнюю норму и голову") : t("head", "голову");
      const exact = lens.apart
        ? t(
            `Several positions are read at once: logits differ from those of inspector.lens by up to ${exponent(lens.apart)}.`,
            `Позиции прочитаны по нескольку сразу: логиты отличаются от inspector.lens не больше чем на ${exponent(lens.apart)}.`,
          )
        : t("Every number equals that of inspector.lens bit for bit.", "Каждое число равно числу inspector.lens бит в бит.");
      return el(
        "p",
        { class: "quiet" },
        t(
          `Read by the ${by}; the last row is the model's own distribution. The marked column chose the token of this step. ${exact}`,
          `Прочитано через ${by}; последняя строка — распределение самой модели. Выделенный столбец выбрал токен этого шага. ${exact}`,
        ),
      );
    }

    return { step };
  },
});
