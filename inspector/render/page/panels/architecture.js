/**
 * What the models are made of: their trees as diagrams from token ids to logits, aligned by role, and what tells them apart.
 *
 * The two columns are subgrids of one grid: a row of the one is a row of the other. Inside a column boxes are nested as modules are.
 */
Page.panel({
  id: "architecture",
  title: () => t("Architecture", "Архитектура"),
  intro: () =>
    t(
      "From token ids, at the top, to logits. A solid box is a module with its shape, its parameters and their share; a dashed one is a step that is no module. Press a name to see what it is.",
      "От номеров токенов вверху до логитов. Сплошная рамка — модуль: форма, параметры и их доля; пунктирная — шаг без модуля. Нажмите на имя, чтобы узнать, что это.",
    ),
  needs: (side) => Boolean(side.tree),
  build(root, page) {
    const { report } = page;
    const memory = page.memory("architecture");
    const sides = report.sides.filter((side) => side.tree);
    const two = sides.length === 2;
    const differing = new Set(two ? report.traits.filter((row) => sign(row) === "≠").map((row) => row.trait) : []);
    const roles = new Map((two ? report.roles : []).map((row) => [row.role, row]));
    // trait → the boxes at which it is named, by their keys; the first that there is
    const PLACES = {
      embedding: /^(fn scale|embed)$/,
      positions: /^(fn rope|positions|embed_pos)$/,
      norm: /(^|\.)norm_(attn|mlp)$/,
      attention: /^layers\d*\.\*\.(attn|mixer)$|^mixer$/,
      feed_forward: /^layers\d*\.\*\.mlp$/,
      head: /^head$/,
    };
    const about = el("div", { class: "arch-about", id: "arch-about" });
    let count = 0; // boxes drawn: the same role may stand in a column twice, as in a module for further tokens

    root.append(
      part(two ? traits() : ownTraits()),
      part(legend(), diagram(), about),
      part(
        heading(t("What the parameters are for", "На что уходят параметры")),
        sums(),
        heading(t("What it costs", "Чего это стоит")),
        costs(),
        ...modules(),
      ),
    );
    mark(memory.chosen ?? null);

    function heading(text) {
      return el("h3", {}, text);
    }

    function modelName(side) {
      return el("bdi", {}, visible(side.run.model));
    }

    // What differs, in words.

    function sign(row) {
      if (row.a === null || row.b === null) return "?";
      return JSON.stringify(row.a) === JSON.stringify(row.b) ? "=" : "≠";
    }

    function traitName(trait) {
      return t(...(report.words[trait] ?? [trait, trait]));
    }

    function traits() {
      const rows = report.traits;
      const table = grid(
        [t("trait", "свойство"), ...sides.map(modelName)],
        rows.map((row) => [`${sign(row)} ${traitName(row.trait)}`, ...sides.map((side) => t(...side.trait_words[row.trait]))]),
        t("What the two do alike and otherwise", "Что у двух моделей одинаково и что нет"),
      );
      table.querySelectorAll("tbody tr").forEach((tr, i) => sign(rows[i]) === "≠" && tr.classList.add("arch-other"));
      table.id = "arch-traits";
      const other = rows.filter((row) => sign(row) === "≠").map((row) => traitName(row.trait));
      const parts = report.roles.filter((row) => row.a !== row.b).length;
      const said = t(
        `${other.length} of ${rows.length} traits differ${other.length ? `: ${other.join(", ")}` : ""}; of ${report.roles.length} roles ${parts} have something else in them.`,
        `Различаются свойства: ${other.length} из ${rows.length}${other.length ? ` (${other.join(", ")})` : ""}; роли, в которых стоит разное: ${parts} из ${report.roles.length}.`,
      );
      return el("div", {}, el("p", {}, said), table);
    }

    function ownTraits() {
      const [side] = sides;
      const table = grid(
        [t("trait", "свойство"), modelName(side)],
        Object.entries(side.trait_words).map(([trait, words]) => [traitName(trait), t(...words)]),
        t("What the model does", "Что делает модель"),
      );
      table.id = "arch-traits";
      return table;
    }

    function legend() {
      return el(
        "p",
        { class: "quiet arch-legend" },
        two ? el("span", {}, el("b", { class: "arch-sign" }, "≠"), t(" other than beside it, ", " не то, что рядом, "), el("b", { class: "arch-sign" }, "+"), t(" only here", " только здесь")) : null,
        el("span", {}, t("bar: share of the parameters; a line at the left: the residual goes round the part", "полоса: доля параметров; линия слева: вход идёт в обход части")),
      );
    }

    // The trees as boxes.

    function diagram() {
      const columns = sides.map(Boxes.column);
      const rows = Boxes.placed(Boxes.aligned(columns[0], columns[1] ?? []), two);
      const parts = columns.map((list, i) => {
        const part = el("div", { class: "arch-side", role: "group", "aria-label": visible(sides[i].run.model) }, ...filled(list, i), tied(list));
        part.style.gridRow = `1 / span ${rows}`;
        part.style.gridColumn = String(i + 1);
        return part;
      });
      const heads = sides.map((side) => el("h3", { class: "arch-model" }, modelName(side)));
      const kinds = two ? "arch two" : "arch";
      return el("div", {}, el("div", { class: `${kinds} arch-models` }, ...heads), el("div", { class: kinds, id: "arch" }, ...parts));
    }

    /** A list of boxes with the lines between them; in a layer also those that go round its parts. */
    function filled(list, i) {
      const drawn = [];
      list.forEach((box, n) => {
        const before = list[n - 1];
        if (before && before.row + before.rows < box.row) drawn.push(line("arch-through", before.row + before.rows, box.row));
        drawn.push(drawnBox(box, i));
      });
      return [...drawn, ...residuals(list)];
    }

    function line(kind, from, to) {
      const span = el("span", { class: kind, "aria-hidden": "true" });
      span.style.gridRow = `${from} / ${to}`;
      return span;
    }

    /** The lines of the residual stream: from where a part begins to the sum behind it. */
    function residuals(list) {
      const drawn = [];
      let start = 0;
      list.forEach((box, n) => {
        if (box.key !== "fn +") return;
        const place = box.side.traits?.norm?.[0]?.kind ?? "";
        const isNorm = (other) => /(^|\.)norm/.test(other.key);
        while (start < n && /post$|stream$/.test(place) && isNorm(list[start])) start += 1; // these norms are on the stream itself
        if (start < n) drawn.push(line("arch-round", list[start].row, box.row + 1));
        start = n + 1;
      });
      return drawn;
    }

    /** The line between a tied weight's two places. */
    function tied(list) {
      const to = list.find((box) => box.node?.tied_to);
      if (!to) return null;
      const from = Boxes.flat(list).find((box) => box.node && to.node.tied_to === `${box.path}.weight`);
      const outer = from && list.find((box) => box === from || Boxes.flat(box.children).includes(from));
      if (!from) return null;
      const below = outer === from ? 0 : Boxes.offset(outer, from);
      const bracket = el("span", { class: "arch-tied" }, el("span", {}, t("the same matrix", "та же матрица")));
      bracket.style.gridRow = `${outer.row + below} / ${to.row + 1}`;
      return bracket;
    }

    function kind(box) {
      const family = box.side.tree.type.replace(/(ForCausalLM|ForConditionalGeneration|LMHeadModel|LMHead|Decoder|Model)$/, "");
      const type = box.node.type;
      return type !== family && family && type.startsWith(family) ? type.slice(family.length) : type;
    }

    /** "≠" where the other side has something else in this place, "+" where it has nothing, "" where the two are alike. */
    function difference(box) {
      if (box.beside === undefined || box.data) return "";
      if (box.beside === null) return "+";
      const row = roles.get(box.key.replace(/^layers\d*\.\*\./, ""));
      if (/^layers\d*\.\*$/.test(box.key)) return box.times === box.beside.times ? "" : "≠";
      if (box.node.functional) return box.node.type === box.beside.node.type ? "" : "≠";
      if (row) return row.a === row.b ? "" : "≠";
      if (box.children.length || box.beside.children.length) return "";
      return box.node.shape === box.beside.node.shape && kind(box) === kind(box.beside) ? "" : "≠";
    }

    function named(box) {
      return [...differing].filter((trait) => PLACES[trait]?.test(box.key)).map(traitName);
    }

    /** Whether what is in a box runs one after the other; the parts of attention and of feed-forward partly run side by side. */
    function isFlow(box) {
      return box.node.part === "backbone" || /^layers\d*\.\*$|\.block$/.test(box.key);
    }

    function drawnBox(box, i) {
      if (box.data) {
        const chip = el("div", { class: "arch-data" }, el("span", {}, box.data), " ", el("code", {}, box.shape));
        chip.style.gridRow = String(box.row);
        return chip;
      }
      const { node } = box;
      const other = difference(box);
      const part = { backbone: "BACKBONE", head: "LM_HEAD", mtp: "MTP" }[node.part];
      const around = box.times / node.repeat; // the layers that it is in
      const share = (node.parameters * around) / Math.max(1, box.side.tree.parameters);
      const chips = two ? named(box) : [];
      const classes = ["arch-box", node.functional ? "arch-step" : "", box.children.length ? "arch-holds" : "", isFlow(box) ? "arch-flow" : "", node.part ? `arch-as-${node.part}` : "", other ? "arch-other" : ""];
      const repeated = node.repeat > 1 ? el("b", {}, ` × ${whole(node.repeat)}`) : null;
      const button = el(
        "button",
        { type: "button", class: "plain arch-name", id: `arch-${i}-${(count += 1)}`, "data-key": box.key, "data-path": box.path, "aria-pressed": "false", on: { click: () => press(box.key) } },
        Roles.name(box.key),
      );
      const head = el(
        "div",
        { class: "arch-head" },
        other ? el("b", { class: "arch-sign", title: other === "+" ? t("only here", "только здесь") : t("other than beside it", "не то, что рядом") }, other, " ") : null,
        part ? el("b", { class: "arch-part" }, part, " ") : null,
        button,
        repeated,
        node.functional ? null : el("code", { class: "arch-what" }, ` ${visible([kind(box), node.shape].filter(Boolean).join(" "))}`),
        node.tied_to ? el("span", { class: "arch-same" }, t(" the same matrix as ", " та же матрица, что "), el("code", {}, visible(node.tied_to)), t(", counted there", ", посчитана там")) : null,
        node.unseen ? el("span", { class: "quiet" }, t(" runs without being called", " работает без вызова")) : null,
        node.runs > 1 ? el("span", {}, t(` runs ${node.runs} times`, ` выполняется раз: ${node.runs}`)) : null,
        node.part === "mtp" ? el("span", { class: "quiet" }, t(" reads the hidden states; a plain pass does not run it", " читает скрытые состояния; обычный проход её не запускает")) : null,
        ...chips.map((name) => el("span", { class: "arch-chip" }, `≠ ${name}`)),
        node.parameters ? el("span", { class: "arch-numbers" }, bar(share), el("span", { class: "number" }, `${short(node.parameters)}${around > 1 ? ` × ${whole(around)}` : ""} · ${percent(share)}`)) : null,
      );
      const drawn = el("div", { class: classes.filter(Boolean).join(" "), "data-box": box.key }, head, ...filled(box.children, i));
      drawn.style.gridRow = `${box.row} / span ${box.rows}`;
      return drawn;
    }

    // What was pressed.

    function press(key) {
      memory.chosen = memory.chosen === key ? null : key;
      mark(memory.chosen);
      if (memory.chosen) page.announce([Roles.name(key), Roles.words(key)?.[1]].filter(Boolean).join(": "));
    }

    function mark(key) {
      root.querySelectorAll(".arch-name").forEach((button) => {
        const same = button.dataset.key === key;
        button.setAttribute("aria-pressed", String(same));
        button.closest(".arch-box").classList.toggle("arch-chosen", same);
      });
      about.classList.toggle("arch-open", Boolean(key));
      about.style.bottom = `${document.getElementById("at")?.offsetHeight ?? 0}px`; // above the bar of the steps
      about.replaceChildren(...(key ? told(key) : [el("p", { class: "quiet" }, t("Nothing is chosen: press a name above.", "Ничего не выбрано: нажмите на имя выше."))]));
    }

    /** What a component is, and its figures in every model that has it. */
    function told(key) {
      const found = sides.map((side) => Boxes.flat(Boxes.nested(side)).filter((box) => box.key === key));
      const row = (name, of) => [name, ...found.map((own) => (own.length ? own.map(of).filter((text, n, texts) => texts.indexOf(text) === n).join("; ") : t("not there", "нет")))];
      const total = (box) => box.node.parameters * (box.times / box.node.repeat);
      const rows = [row(t("module", "модуль"), (box) => (box.node.functional ? t("none: a step of the forward pass", "нет: шаг прямого прохода") : visible(box.path)))];
      if (!key.startsWith("fn ")) {
        rows.push(
          row(t("type", "тип"), (box) => visible(box.node.type)),
          row(t("shape", "форма"), (box) => visible(box.node.shape) || "–"),
          row(t("how many", "сколько"), (box) => whole(box.times)),
          row(t("parameters of one", "параметров в одном"), (box) => (box.node.tied_to ? t(`0: it is ${visible(box.node.tied_to)}`, `0: это ${visible(box.node.tied_to)}`) : whole(total(box) / box.times))),
          row(t("of all", "во всех"), (box) => whole(total(box))),
          row(t("share of the model", "доля модели"), (box) => percent(total(box) / Math.max(1, box.side.tree.parameters))),
          row(t("FLOPs per token", "FLOP на токен"), (box) => flops(box)),
          row(t("role", "роль"), (box) => visible(box.node.role ?? t("not known", "неизвестна"))),
        );
      }
      const words = Roles.words(key);
      const close = () => {
        press(key);
        root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
      };
      return [
        el("button", { type: "button", class: "arch-close", "aria-label": t("Close", "Закрыть"), on: { click: close } }, "×"),
        el("h3", {}, Roles.name(key)),
        words ? el("p", {}, words[1]) : null,
        grid(["", ...sides.map(modelName)], rows, t("The component in each model", "Компонент в каждой модели")),
      ].filter(Boolean);
    }

    function flops(box) {
      const own = box.node.flops * (box.times / box.node.repeat);
      if (!own) return "–";
      const at = box.side.costs?.context;
      return `${short(own)} (${percent(own / Math.max(1, box.side.tree.flops))})${at ? t(`, at ${tokensOf(at)}`, `, при контексте ${whole(at)}`) : ""}`;
    }

    // What it sums up to.

    function sums() {
      const names = {
        embedding: t("embedding", "эмбеддинг"),
        attention: t("attention", "внимание"),
        recurrence: t("recurrence", "рекуррентность"),
        feed_forward: "feed-forward",
        norms: t("norms", "нормы"),
        head: t("head", "голова"),
        further: "MTP",
        rest: t("rest", "прочее"),
      };
      const groups = Object.keys(names).filter((group) => sides.some((side) => side.sums[group]));
      const table = bars(
        groups.map((group) => {
          const own = sides.map((side) => side.sums[group] ?? 0);
          const shares = own.map((number, i) => number / Math.max(1, sides[i].tree.parameters));
          return { name: names[group], values: shares, texts: own.map((number, i) => (number ? `${short(number)} · ${percent(shares[i])}` : "–")) };
        }),
        ["", ...sides.map(modelName)],
        t("Parameters by what they are for", "Параметры по назначению"),
      );
      table.id = "arch-sums";
      return table;
    }

    function costs() {
      const own = sides.filter((side) => side.costs);
      if (!own.length) return null;
      const row = (name, of) => [name, ...own.map((side) => of(side.costs))];
      const table = grid(
        ["", ...own.map(modelName)],
        [
          row(t("parameters, a tied weight once", "параметры, общий вес один раз"), (costs) => whole(costs.parameters)),
          row(t("of these act on one token", "из них действуют на один токен"), (costs) => whole(costs.active_parameters)),
          row(t("memory, float32 and bfloat16", "память, float32 и bfloat16"), (costs) => `${bytes(costs.bytes.float32)}, ${bytes(costs.bytes.bfloat16)}`),
          row(t("KV-cache for each token, float32", "KV-cache на токен, float32"), (costs) => (costs.cache_bytes.float32 === undefined ? t("not known", "неизвестно") : bytes(costs.cache_bytes.float32))),
          row(t("FLOPs per token", "FLOP на токен"), (costs) => t(`${short(costs.flops)} at ${tokensOf(costs.context)}`, `${short(costs.flops)} при контексте ${whole(costs.context)}`)),
          row(t("of these scores and values (q·kᵀ, ·v)", "из них оценки и значения (q·kᵀ, ·v)"), (costs) => (costs.flops ? percent(costs.attention_flops / costs.flops) : "–")),
        ],
        t("What it costs", "Чего это стоит"),
      );
      table.id = "arch-costs";
      return table;
    }

    function bytes(size) {
      const [unit, name] = [[2 ** 30, t("GiB", "ГиБ")], [2 ** 20, t("MiB", "МиБ")], [2 ** 10, t("KiB", "КиБ")]].find(([least]) => size >= least) ?? [1, t("B", "Б")];
      return `${unit === 1 ? whole(size) : fixed(size / unit, 1)} ${name}`;
    }

    /** The whole trees as lists, made when they are opened. */
    function modules() {
      return sides.map((side, i) => {
        const details = el("details", { id: `arch-tree-${i}` }, el("summary", {}, t("The whole module tree: ", "Всё дерево модулей: "), modelName(side)));
        const item = (node) =>
          el(
            "li",
            {},
            node.functional ? el("i", {}, visible(node.type)) : el("code", {}, visible([node.name, node.repeat > 1 ? `${node.repeat} ×` : "", node.type, node.shape].filter(Boolean).join(" "))),
            node.tied_to ? t(` = ${visible(node.tied_to)}`, ` = ${visible(node.tied_to)}`) : null,
            node.parameters ? el("span", { class: "quiet" }, ` ${whole(node.parameters)}`) : null,
            node.role ? el("span", { class: "quiet" }, ` · ${visible(node.role)}`) : null,
            node.children.length ? el("ul", {}, ...node.children.map(item)) : null,
          );
        details.addEventListener("toggle", () => {
          if (details.open && !details.querySelector("ul")) details.append(el("ul", { class: "arch-list wide" }, item(side.tree)));
        });
        return details;
      });
    }
  },
});
