/** Attention: all heads at a glance, one of them enlarged, and whom a token looks at. */
Page.panel({
  id: "attention",
  title: () => t("Where does each head look?", "Куда смотрит каждая голова?"),
  intro: () =>
    t(
      "The weights with which every token takes from the others: a small map for each head; choose one to see it in numbers.",
      "С какими весами каждый токен берёт от других: у каждой головы маленькая карта; выберите одну, чтобы увидеть её в числах.",
    ),
  needs: (side) => Within.has(side, "attention"),
  build(root, page) {
    if (Within.refused(root, page, "attention")) return {};
    const { attention, weights, strongest, begin, length } = page.side.inside;
    const memory = page.memory("attention");
    memory.layer ??= 0;
    memory.head ??= 0;
    const tokens = Within.tokens(page);
    const unpacked = weights.map(() => null);
    const most = Math.max(...weights.map((one) => one.heads));
    const overview = el("p", { class: "quiet" });
    const chosen = el("div", { class: "attending-map" });
    const told = el("p", { id: "attention-said" });
    const looks = el("div", { class: "attending-looks" });
    const pickers = el("div", { class: "tools" });
    const LISTED = 12; // keys of a row in the list, where the map is whole
    let map = null;
    let row = length - 1;

    /** The bytes of a layer's weights and keys. */
    function bytes(layer) {
      unpacked[layer] ??= { weights: Page.bytesOf(weights[layer].weights), keys: weights[layer].keys === null ? null : Page.bytesOf(weights[layer].keys) };
      return unpacked[layer];
    }

    /** What a row holds: [key, weight] for each key that is told. */
    function rowOf(layer, head, position) {
      const own = bytes(layer);
      if (!strongest) {
        const each = attention.causal ? (length * (length + 1)) / 2 : length * length;
        const start = head * each + (attention.causal ? (position * (position + 1)) / 2 : position * length);
        const wide = attention.causal ? position + 1 : length;
        return Array.from({ length: wide }, (_, key) => [key, own.weights[start + key] / 255]);
      }
      const start = (head * (length - begin) + position - begin) * strongest;
      const wide = own.keys.length / own.weights.length;
      const keyAt = (i) => (wide === 1 ? own.keys[i] : own.keys[2 * i] + 256 * own.keys[2 * i + 1]);
      const found = Array.from({ length: strongest }, (_, i) => [keyAt(start + i), own.weights[start + i] / 255]);
      return found.filter(([key]) => !attention.causal || key <= position);
    }

    /** A head as a picture: rows look, columns are looked at; what is darker has more weight. */
    function picture(layer, head, ink) {
      const rows = length - begin;
      const side = Math.min(64, length);
      const canvas = el("canvas", { width: side, height: Math.min(side, rows), class: "small", "aria-hidden": "true" });
      const context = canvas.getContext("2d");
      context.fillStyle = ink;
      for (let position = begin; position < length; position++) {
        for (const [key, weight] of rowOf(layer, head, position)) {
          context.globalAlpha = Math.sqrt(weight); // so that small ones are seen, too
          context.fillRect(Math.floor((key * canvas.width) / length), Math.floor(((position - begin) * canvas.height) / rows), 1, 1);
        }
      }
      return canvas;
    }

    const summary = (layer, head) => attention.layers[layer].heads[head];
    const name = (layer, head) => t(`layer ${Within.layerOf(weights[layer].role)}, head ${head}`, `слой ${Within.layerOf(weights[layer].role)}, голова ${head}`);

    /** A head's numbers in a sentence. */
    function said(layer, head) {
      const { entropy, distance, first } = summary(layer, head);
      return t(
        `${name(layer, head)}: entropy ${fixed(entropy)} nats, looks ${fixed(distance, 1)} tokens back, weight on the first token ${fixed(first)} (means over all tokens).`,
        `${name(layer, head)}: энтропия ${fixed(entropy)} нат, смотрит на ${fixed(distance, 1)} токена назад, вес на первом токене ${fixed(first)} (средние по всем токенам).`,
      );
    }

    function choose(layer, head) {
      memory.layer = layer;
      memory.head = Math.min(head, weights[layer].heads - 1);
      draw();
    }

    const tokenAt = (position) => [el("span", { class: "place" }, String(position)), " ", Cells.name(tokens[position])];

    /** Whom the token at a position looks at. */
    function list(position) {
      row = position;
      const { layer, head } = memory;
      const all = rowOf(layer, head, position).sort((a, b) => b[1] - a[1] || a[0] - b[0]);
      const listed = all.filter(([, weight]) => weight > 0).slice(0, strongest || LISTED);
      const rest = 1 - listed.reduce((sum, [, weight]) => sum + weight, 0);
      looks.replaceChildren(
        el("h3", {}, t("Whom ", "На кого смотрит "), tokenName(tokens[position]), t(` at position ${position} looks at`, ` в позиции ${position}`)),
        bars(
          listed.map(([key, weight]) => ({ name: tokenAt(key), values: [weight], texts: [fixed(weight, 2)] })),
          [t("token", "токен"), t("weight", "вес")],
          t("Weights of one row, the largest first", "Веса одной строки, от большего к меньшему"),
        ),
        el("p", { class: "quiet" }, t(`All others together: ${fixed(Math.max(0, rest), 2)}.`, `Все прочие вместе: ${fixed(Math.max(0, rest), 2)}.`)),
      );
    }

    function whole() {
      const { layer, head } = memory;
      const rows = tokens.map((_, position) => rowOf(layer, head, position));
      map = Cells.table({
        class: "map",
        caption: t(`Attention of ${name(layer, head)}: rows look at columns`, `Внимание, ${name(layer, head)}: строки смотрят на столбцы`),
        corner: t("looks ↓ at →", "смотрит ↓ на →"),
        columns: Cells.places(tokens, 0),
        rows: Cells.places(tokens, 0),
        cell(r, c) {
          const weight = rows[r][c]?.[1];
          return weight === undefined ? null : { text: Math.round(100 * weight) || "", level: Cells.level(weight) };
        },
        label: (r, c) =>
          t(
            `${quoted(tokens[r].text)} at position ${r} looks at ${quoted(tokens[c].text)} at position ${c} with weight ${fixed(rows[r][c][1], 2)}`,
            `${quoted(tokens[r].text)} в позиции ${r} смотрит на ${quoted(tokens[c].text)} в позиции ${c} с весом ${fixed(rows[r][c][1], 2)}`,
          ),
        show: (r) => list(r),
      });
      return [Cells.legend(t("weight, in hundredths", "вес, в сотых"), "0", "100"), map.element];
    }

    /** Where maps are not whole: a slider over the rows. */
    function rows() {
      map = null;
      const slider = el("input", {
        id: "attention-row",
        type: "range",
        min: begin,
        max: length - 1,
        value: row,
        on: { input: () => list(Number(slider.value)) },
      });
      return [field(t("Position that looks", "Позиция, которая смотрит"), slider)];
    }

    function draw() {
      const { layer, head } = memory;
      pickers.replaceChildren(
        select("attention-layer", t("Layer", "Слой"), weights.map((one) => Within.layerOf(one.role)), layer, (value) => choose(value, memory.head)),
        select("attention-head", t("Head", "Голова"), Array.from({ length: weights[layer].heads }, (_, i) => String(i)), head, (value) => choose(memory.layer, value)),
      );
      told.textContent = said(layer, head);
      chosen.replaceChildren(...(strongest ? rows() : whole()));
      small.element.querySelectorAll("td.picked").forEach((cell) => cell.classList.remove("picked"));
      small.element.querySelectorAll("tbody tr")[layer].cells[head + 1].classList.add("picked");
      small.stop(layer, head);
      step();
    }

    function step() {
      const now = Within.position(page);
      const inside = now >= begin && now < length;
      map?.markRow(inside ? now : -1);
      if (inside) map?.stop(now, now);
      list(inside ? now : row);
      const slider = document.getElementById("attention-row");
      if (slider) slider.value = row;
    }

    const probe = el("span", { class: "ink" });
    root.append(probe);
    const ink = getComputedStyle(probe).color;
    probe.remove();
    const small = Cells.table({
      class: most > 8 ? "heads many" : "heads",
      caption: t("All heads: layers by heads; Enter enlarges one", "Все головы: слои и головы; Enter увеличивает"),
      corner: t("layer / head", "слой / голова"),
      columns: Array.from({ length: most }, (_, i) => ({ name: [String(i)] })),
      rows: weights.map((one) => ({ name: [Within.layerOf(one.role)] })),
      cell: (r, c) => (c < weights[r].heads ? { text: picture(r, c, ink), level: null } : null),
      label: (r, c) => said(r, c),
      show: (r, c) => (overview.textContent = said(r, c)),
      press: choose,
    });
    overview.textContent = t("Rows look at columns; small weights are drawn stronger than they are. Point at a map for its numbers; click or press Enter to enlarge it.", "Строки смотрят на столбцы; малые веса нарисованы сильнее, чем есть. Наведите на карту, чтобы увидеть её числа; щелчок или Enter увеличивает её.");
    const beside = el("div", { class: strongest ? "attending long" : "attending" }, el("div", { class: "attending-heads" }, small.element, overview, pickers, told), chosen, looks);
    root.append(...[Within.part(page), beside, ...notes()].filter(Boolean));
    draw();

    function notes() {
      const worst = Math.min(...weights.map((one) => one.least));
      const mean = weights.reduce((sum, one) => sum + one.held * one.heads, 0) / weights.reduce((sum, one) => sum + one.heads, 0);
      const packed = strongest
        ? t(
            `Of every row the strongest keys are here (${strongest}): they hold ${percent(mean)} of the weight on average, at least ${percent(worst)}.`,
            `От каждой строки здесь сильнейшие ключи (${strongest}): в них в среднем ${percent(mean)} веса, не меньше ${percent(worst)}.`,
          )
        : t("Maps are whole.", "Карты целые.");
      const error = t("Each weight is rounded to a 255th: off by at most 0.002.", "Каждый вес округлён до 1/255: ошибка не больше 0,002.");
      const [scale, off] = [fixed(attention.scale), Within.apart(attention.difference)];
      const own = attention.beside || attention.usual === "None"; // the blocks written here have no other attention
      const from = own
        ? t(
            `Seen in the model's own attention, or computed beside it: final hidden states (up to ${scale}) ${off}.`,
            `Увидено в собственном внимании модели или посчитано рядом: скрытые состояния (до ${scale}) ${off}.`,
          )
        : t(
            `From an eager pass; the model usually runs ${attention.usual}: final hidden states (up to ${scale}) ${off}.`,
            `Из прохода eager; обычно модель считает через ${attention.usual}: скрытые состояния (до ${scale}) ${off}.`,
          );
      return [
        attention.unseen.length > 0 && el("p", { class: "remark" }, t("No weights were seen in: ", "Весов не видно в: "), visible(attention.unseen.join(", "))),
        el("p", { class: "quiet" }, `${packed} ${error} ${from}`),
      ];
    }

    return { step };
  },
});
