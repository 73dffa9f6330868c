/** What steps cost: time against context with and without a cache, time by operation, and the run as a whole. */
Page.panel({
  id: "cost",
  title: () => t("What a step costs", "Чего стоит шаг"),
  intro: () =>
    t(
      "Measured when this page was made: without a KV-cache every step reads the whole context again, with one it reads its new token alone.",
      "Измерено при создании страницы: без KV-cache каждый шаг заново читает весь контекст, с ним — только новый токен.",
    ),
  needs: (side) => Boolean(side.measured),
  build(root, page) {
    const { side, run } = page;
    const { measured } = side;
    const points = (record) =>
      Object.entries(record)
        .map(([length, value]) => [Number(length), value])
        .sort((a, b) => a[0] - b[0]);
    const uncached = points(measured.uncached);
    const cached = points(measured.cached);
    const lines = [
      { name: t("without a cache", "без кэша"), points: uncached, kind: "without" },
      ...(cached.length ? [{ name: t("with a cache", "с кэшем"), points: cached, kind: "with" }] : []),
    ];

    root.append(
      part(
        together(),
        el("h3", {}, t("Time of a step against the length of the context", "Время шага и длина контекста")),
        chart(),
      ),
      part(
        times(),
        rises() ? null : el("p", { class: "remark", id: "cost-busy" }, t("The machine was too busy to tell: more tokens seemed to take less time.", "Машина была слишком занята, чтобы судить: больше токенов будто бы заняли меньше времени.")),
        cached.length ? null : el("p", { class: "remark" }, t("This model reads with no cache.", "С кэшем эта модель не читает.")),
        el("p", { class: "quiet", id: "cost-how" }, how()),
        ...operations(),
      ),
    );

    function how() {
      const threads = counted(measured.threads, "thread", "threads", "поток", "потока", "потоков");
      return t(
        `${run.device}, ${run.dtype}, ${threads}; medians of a few steps: another machine, or a busy one, gives other times. FLOPs are told from shapes and hold anywhere.`,
        `${run.device}, ${run.dtype}, ${threads}; медианы нескольких шагов: на другой или занятой машине время другое. FLOP посчитаны по формам и верны везде.`,
      );
    }

    /** What the steps of this run cost together, without a cache and with one. */
    function together() {
      const lengths = run.steps.map((step) => step.context_length);
      if (!lengths.length) return null;
      const first = lengths[0];
      const read = lengths.reduce((sum, length) => sum + length, 0);
      const once = lengths[lengths.length - 1];
      const flops = total(lengths, measured.flops);
      const flopsCached = measured.flops_cached[first] === undefined ? null : measured.flops[first] + total(lengths.slice(1), measured.flops_cached);
      const time = lengths.reduce((sum, length) => sum + between(uncached, length), 0);
      const timeCached = cached.length ? between(uncached, first) + lengths.slice(1).reduce((sum, length) => sum + between(cached, length), 0) : null;
      const ratio = (a, b) => (a && b ? `${fixed(a / b, a / b < 10 ? 1 : 0)} ×` : "–");
      const actual = run.steps.reduce((sum, step) => sum + step.seconds, 0);
      const rows = [
        [t("tokens read", "прочитано токенов"), whole(read), whole(once), ratio(read, once)],
        ["FLOPs", flops === null ? "–" : short(flops), flopsCached === null ? "–" : short(flopsCached), ratio(flops, flopsCached)],
        [t("time, estimated from the measured lengths", "время, оценка по измеренным длинам"), seconds(time), timeCached === null ? "–" : seconds(timeCached), ratio(time, timeCached)],
      ];
      const table = grid(["", t("without a cache", "без кэша"), t("with a cache", "с кэшем"), t("ratio", "отношение")], rows, t("This run as a whole", "Весь этот прогон"), [1, 2, 3]);
      table.id = "cost-run";
      const steps = counted(lengths.length, "step", "steps", "шаг", "шага", "шагов");
      const sum = lengths.length > 1 ? `${lengths.length > 2 ? `${lengths[0]} + … + ${once}` : lengths.join(" + ")} = ` : "";
      const this_ = run.kv_cache ? t("with a KV-cache", "с KV-cache") : t("without a KV-cache", "без KV-cache");
      return el(
        "div",
        {},
        el("p", { id: "cost-sentence" }, t(
          `This run: ${steps}, ${this_}, ${seconds(actual)} for its steps. Without a cache they read ${sum}${tokensOf(read)}, with one each token once: ${tokensOf(once)}.`,
          `Этот прогон: ${steps}, ${this_}, шаги заняли ${seconds(actual)}. Без кэша они читают ${sum}${tokensOf(read)}, с ним каждый токен один раз: ${tokensOf(once)}.`,
        )),
        table,
      );
    }

    /** Whether a longer context takes no less time, as far as tenths of a millisecond show it. */
    function rises() {
      return uncached.every(([, value], i) => !i || Math.round(value * 1e4) >= Math.round(uncached[i - 1][1] * 1e4));
    }

    function total(lengths, record) {
      return lengths.every((length) => record[length] !== undefined) ? lengths.reduce((sum, length) => sum + record[length], 0) : null;
    }

    /** A measured line at any length: straight between two lengths, as the nearest one beyond them. */
    function between(line, length) {
      const after = line.findIndex(([at]) => at >= length);
      if (after < 0) return line[line.length - 1][1];
      if (after === 0 || line[after][0] === length) return line[after][1];
      const [[a, x], [b, y]] = [line[after - 1], line[after]];
      return x + ((y - x) * (length - a)) / (b - a);
    }

    /** The lines in per cent of the drawing, so that it is as wide as its place and its letters stay as large as the page's. */
    function chart() {
      const xs = uncached.map(([length]) => length);
      const most = Math.max(...lines.flatMap((line) => line.points.map(([, value]) => value)));
      const right = Math.max(...xs);
      const x = (length) => `${6 + (88 * length) / right}%`;
      const y = (value) => `${88 - (78 * value) / most}%`;
      const drawn = [svg("line", { class: "cost-axis", x1: "6%", x2: "98%", y1: "88%", y2: "88%" }), svg("line", { class: "cost-axis", x1: "6%", x2: "6%", y1: "4%", y2: "88%" })];
      for (const share of [0.5, 1]) {
        drawn.push(svg("line", { class: "cost-grid", x1: "6%", x2: "98%", y1: y(share * most), y2: y(share * most) }), svg("text", { x: "6%", dx: "0.4em", dy: "-0.3em", y: y(share * most) }, seconds(share * most)));
      }
      let last = -Infinity;
      for (const length of xs) {
        if ((length - last) / right < 0.09) continue; // no room for its number: the table has it
        last = length;
        drawn.push(svg("text", { x: x(length), y: "95%", "text-anchor": "middle", "dominant-baseline": "middle" }, whole(length)));
      }
      for (const line of lines) {
        line.points.forEach(([length, value], i) => {
          const before = line.points[i - 1];
          if (before) drawn.push(svg("line", { class: `cost-line cost-${line.kind}`, x1: x(before[0]), y1: y(before[1]), x2: x(length), y2: y(value) }));
          drawn.push(line.kind === "with" ? svg("circle", { class: `cost-point cost-${line.kind}`, cx: x(length), cy: y(value), r: 5 }) : svg("rect", { class: `cost-point cost-${line.kind}`, x: x(length), y: y(value), width: 10, height: 10, transform: "translate(-5 -5)" }));
        });
      }
      const key = lines.map((line) => el("span", {}, svg("svg", { class: "cost-key", viewBox: "0 0 30 12", "aria-hidden": "true" }, svg("line", { class: `cost-line cost-${line.kind}`, x1: 0, x2: 30, y1: 6, y2: 6 }), line.kind === "with" ? svg("circle", { class: `cost-point cost-${line.kind}`, cx: 15, cy: 6, r: 5 }) : svg("rect", { class: `cost-point cost-${line.kind}`, x: 10, y: 1, width: 10, height: 10 })), ` ${line.name}`));
      return el(
        "figure",
        { class: "cost-figure" },
        el("figcaption", { class: "cost-keys" }, ...key, el("span", { class: "quiet" }, t("across: tokens of context; up: time of a step", "вправо: токены контекста; вверх: время шага"))),
        svg("svg", { class: "cost-chart", role: "img", "aria-label": t("Time of a step against the context; the table below has its numbers", "Время шага и контекст; числа в таблице ниже") }, ...drawn),
      );
    }

    function times() {
      const flops = (record, length) => (record[length] === undefined ? "–" : short(record[length]));
      const at = Object.fromEntries(cached);
      const table = grid(
        [t("tokens of context", "токенов контекста"), t("without a cache", "без кэша"), "FLOPs", t("with a cache", "с кэшем"), "FLOPs"],
        uncached.map(([length, value]) => [whole(length), seconds(value), flops(measured.flops, length), at[length] === undefined ? "–" : seconds(at[length]), flops(measured.flops_cached, length)]),
        t("Time and operations of a step", "Время и операции шага"),
        [0, 1, 2, 3, 4],
      );
      table.id = "cost-times";
      return table;
    }

    function operations() {
      const found = Object.entries(measured.operations).sort((a, b) => b[1] - a[1]);
      if (!found.length) return [];
      const all = found.reduce((sum, [, value]) => sum + value, 0);
      const table = bars(
        found.map(([role, value]) => ({ name: Roles.name(role), values: [value / Math.max(all, 1e-12)], texts: [`${seconds(value)} · ${percent(value / Math.max(all, 1e-12))}`] })),
        [t("operation, of all layers", "операция, всех слоёв"), t("time", "время")],
        t("Time by operation", "Время по операциям"),
      );
      table.id = "cost-operations";
      return [
        el("h3", {}, t(`Where one pass over ${tokensOf(measured.length)} takes its time`, `На что уходит время одного прохода, ${tokensOf(measured.length)}`)),
        table,
      ];
    }
  },
});
