/** What the run was held against: generate() with the same settings, what came out, and where every setting is from. */
Page.panel({
  id: "proof",
  title: () => t("Is this the model?", "Та ли это модель?"),
  intro: () =>
    t(
      "The loop by hand against the library's own model.generate(), with every setting said to both.",
      "Цикл вручную против model.generate() самой библиотеки; каждая настройка названа обоим.",
    ),
  needs: (side) => Boolean(side.verdict || side.verdict_words?.length || side.run.settings.length),
  build(root, page) {
    const { side, run } = page;
    const { verdict } = side;

    const first = part();
    root.append(first);
    if (verdict) first.append(box(), numbers(), why());
    else if (side.verdict_words?.length) first.append(el("p", { class: "remark" }, t("No verdict: ", "Вердикта нет: "), t(...side.verdict_words)));
    first.append(ended());
    const again = [
      ...(side.commands?.length ? code() : []),
      ...(side.command ? [el("h3", {}, t("Repeat it in a terminal", "Повторить в терминале")), copyable(side.command, "proof-command")] : []),
    ];
    if (again.length) root.append(part(...again));
    if (run.settings.length) root.append(part(...settings()));

    function levelName(level) {
      const russian = { bitwise: "побитово", rounding: "округление", tokens: "токены", "near-tie": "почти ничья", different: "различие" };
      return t(level, `${russian[level]} (${level})`);
    }

    function meaning(level) {
      const given = { logits: t("logits", "логиты") }[verdict.gives] ?? t("log-probabilities", "логарифмы вероятностей");
      return {
        bitwise: t(
          `Every token and all ${given} of every step are equal to the last bit: the parts, run by hand, are the model.`,
          `Все токены и все ${given} каждого шага равны до последнего бита: части, запущенные вручную, и есть модель.`,
        ),
        rounding: t(
          `The tokens are equal, and the ${given} differ by no more than the sides' own rounding, which runs in float64 have measured.`,
          `Токены равны, а ${given} расходятся не больше, чем собственное округление сторон, измеренное прогонами в float64.`,
        ),
        tokens: t(
          `The tokens are equal; the ${given} differ by more than could be shown to be rounding.`,
          `Токены равны; ${given} расходятся больше, чем удалось объяснить округлением.`,
        ),
        "near-tie": t(
          "A token differs where two were so close that rounding alone decides.",
          "Один токен различается там, где два были так близки, что решает одно округление.",
        ),
        different: t("The two sides are not the same computation.", "Две стороны — не одно и то же вычисление."),
      }[level];
    }

    function box() {
      const good = { bitwise: "good", rounding: "good", tokens: "fair", "near-tie": "fair", different: "bad" }[verdict.level];
      const mark = { good: "✓", fair: "≈", bad: "✗" }[good];
      return el(
        "div",
        { class: `proof-box proof-${good}` },
        el("p", { class: "proof-level" }, el("span", { "aria-hidden": "true" }, `${mark} `), el("b", { id: "proof-level" }, levelName(verdict.level))),
        el("p", {}, meaning(verdict.level)),
        el("p", { class: "quiet", id: "proof-words" }, el("bdi", {}, t(...side.verdict_words))),
      );
    }

    function numbers() {
      const [hand, theirs] = [verdict.tokens_hand, verdict.tokens_generate];
      const shown = run.steps.every((step, i) => step.token.id === hand[i]) && hand.length >= run.steps.length;
      const median = (value) => (value === null ? "–" : seconds(value));
      const draw = verdict.sampling.temperature === 0 ? ["argmax", "torch.argmax"] : [t("our own race p/q, the same q", "своя гонка p/q, те же q"), "torch.multinomial"];
      const rows = [
        [t("calls", "вызовы"), t(`${hand.length} × backbone, ${hand.length} × head`, `${hand.length} × backbone, ${hand.length} × голова`), t("1, the loop is inside", "1, цикл внутри")],
        [t("forward pass", "прямой проход"), side.parts?.backbone ? `model.${visible(side.parts.backbone)}(ids) → ${visible(side.parts.head).replace(", tied", t(", tied", ", общие веса"))}` : t("model(ids) up to the head → head", "model(ids) до головы → голова"), t("model(ids), a black box", "model(ids), чёрный ящик")],
        [t("filters and draw", "фильтры и розыгрыш"), ...draw],
        ["KV-cache", ...[verdict.kv_cache, verdict.kv_cache].map((on) => (on ? t("on", "включён") : t("off", "выключен")))],
        [t("tokens", "токенов"), whole(hand.length), whole(theirs.length)],
        [t("time of a step, median", "время шага, медиана"), median(verdict.step_seconds_hand), median(verdict.step_seconds_generate)],
      ];
      const compared = verdict.scores_compared ? t("tokens, raw logits, scores after the filters", "токены, исходные логиты, оценки после фильтров") : t("tokens, raw logits", "токены, исходные логиты");
      const error = (value) => (value === null ? "–" : exponent(value));
      const facts = [
        [t("compared", "сравнивалось"), t(`${compared}, of ${counted(verdict.steps, "step", "steps", "", "", "")}`, `${compared}; ${counted(verdict.steps, "", "", "шаг", "шага", "шагов")}`)],
        [t("largest difference of a logit", "наибольшее расхождение логита"), exponent(verdict.max_difference)],
        [t("first step that differs", "первый различающийся шаг"), verdict.first_difference === null ? t("none", "нет") : String(verdict.first_difference + 1)],
        ...(verdict.error_hand === null ? [] : [[t("own rounding by hand, of generate()", "своё округление: вручную, generate()"), `${error(verdict.error_hand)}, ${error(verdict.error_generate)}`]]),
        [t("the tokens of this page", "токены этой страницы"), shown ? t("are those compared", "те же, что сравнивались") : t("are not those compared", "не те, что сравнивались")],
      ];
      const table = grid([t("aspect", "аспект"), t("by hand", "вручную"), "model.generate()"], rows, t("The two sides", "Две стороны"));
      const results = grid([t("result", "итог"), ""], facts, t("What the comparison found", "Что нашло сравнение"));
      table.id = "proof-sides";
      results.id = "proof-facts";
      return el("div", { class: "proof-tables" }, results, table);
    }

    function why() {
      const greedy = verdict.sampling.temperature === 0;
      const said = greedy
        ? t("Nothing is drawn: both sides take the largest score.", "Случайности нет: обе стороны берут наибольшую оценку.")
        : t(
            `Why the draws coincide: both begin torch's generator with seed ${verdict.sampling.seed}, so each step draws the same noise q, and the largest p/q wins the same race.`,
            `Почему совпадает розыгрыш: обе начинают генератор torch с seed ${verdict.sampling.seed}, поэтому на каждом шаге тот же шум q, и в той же гонке побеждает наибольшее p/q.`,
          );
      return el("p", { id: "proof-why" }, said);
    }

    function ended() {
      const last = run.steps[run.steps.length - 1];
      const says = {
        eos: () => [t("Generation ended because the model chose a stop token, ", "Генерация закончилась: модель выбрала стоп-токен "), tokenName(last.token), ` (id ${last.token.id}).`],
        max_new_tokens: () => [t(`Generation ended at the limit that was asked for: ${tokensOf(run.max_new_tokens)}.`, `Генерация закончилась на заданном пределе: ${tokensOf(run.max_new_tokens)}.`)],
        context_full: () => [t(`Generation ended because the context is full: the model reads at most ${tokensOf(run.context_length ?? last?.context_length)}.`, `Генерация закончилась: контекст полон, модель читает не больше, чем ${tokensOf(run.context_length ?? last?.context_length)}.`)],
        interrupted: () => [t("Generation was interrupted.", "Генерация прервана.")],
      };
      return el("p", { id: "proof-end" }, ...(says[run.stop_reason] ?? (() => [visible(run.stop_reason)]))());
    }

    function code() {
      const [hand, generate, compare] = side.commands;
      return [
        el("h3", {}, t("The same in Python", "То же на Python")),
        el("p", { class: "quiet" }, t("m is what inspector.load gives, ids are those of the prompt.", "m — то, что даёт inspector.load, ids — номера токенов запроса.")),
        el("div", { class: "proof-code" }, labelled(t("by hand", "вручную"), hand), labelled("generate()", generate), labelled(t("both compared", "сравнение"), compare)),
      ];
    }

    function labelled(label, text) {
      return el("div", {}, el("span", { class: "quiet" }, label), copyable(text));
    }

    function copyable(text, id = null) {
      const said = el("span", { class: "quiet", role: "status" });
      const copy = async () => {
        try {
          await navigator.clipboard.writeText(text);
          said.textContent = t(" copied", " скопировано");
        } catch {
          getSelection().selectAllChildren(pre); // a page from disk may not write to the clipboard: Ctrl-C does
          said.textContent = t(" selected: press Ctrl-C", " выделено: нажмите Ctrl-C");
        }
      };
      const pre = el("pre", { id }, ofCode(text));
      return el("div", { class: "proof-copy" }, pre, el("button", { type: "button", on: { click: copy } }, t("Copy", "Копировать")), said);
    }

    /** Code with its line ends as they are. */
    function ofCode(text) {
      return text.split("\n").map(visible).join("\n");
    }

    function settings() {
      const origins = {
        flag: t("given", "задано"),
        checkpoint: t("checkpoint", "чекпойнт"),
        library: t("library", "библиотека"),
        default: t("default", "умолчание"),
        lesson: t("lesson default", "умолчание урока"),
      };
      const told = side.told ?? {};
      const toldText = (row) => (row.name in told ? value(told[row.name]) : row.name === "seed" && verdict && verdict.sampling.temperature !== 0 ? `${row.here} (torch.manual_seed)` : "–");
      const cells = (row) => [
        row.name,
        row.applied === "no" ? t("not applied", "не применяется") : value(row.here),
        row.origin && row.applied !== "no" ? origins[row.origin] ?? row.origin : "",
        toldText(row),
        row.idle && row.alone !== null ? `(${value(row.alone)})` : value(row.alone),
        row.alone_origin ? origins[row.alone_origin] : "",
      ];
      const heads = [t("setting", "настройка"), t("by hand", "вручную"), t("from", "откуда"), t("generate() was told", "сказано generate()"), t("generate() alone", "generate() без аргументов"), t("from", "откуда")];
      const matters = (row) => row.applied === "yes" || row.notes.length > 0 || (row.applied !== "no" && !["default", null].includes(row.origin));
      const table = (rows, caption, id) => {
        const made = grid(heads, rows.map(cells), caption);
        made.id = id;
        made.querySelectorAll("tbody tr").forEach((tr, i) => rows[i].applied === "yes" && tr.classList.add("proof-on"));
        return made;
      };
      const first = run.settings.filter(matters);
      const rest = run.settings.filter((row) => !matters(row));
      return [
        el("h3", {}, t("The settings, and where each is from", "Настройки и откуда каждая")),
        table(first, t("Settings that act", "Настройки, которые действуют"), "proof-settings"),
        ...(side.setting_words ?? []).map((words) => el("p", { class: "remark" }, t(...words))),
        el("p", { class: "quiet" }, t("(…) generate() has this value and does not use it. – there is none.", "(…) у generate() есть это значение, но он его не применяет. – значения нет.")),
        el("details", { id: "proof-others" }, el("summary", {}, t(`The other ${rest.length}, which are off`, `Остальные, они выключены: ${rest.length}`)), table(rest, t("Settings that are off", "Выключенные настройки"), "proof-off")),
      ];
    }

    /** A setting's value, short. */
    function value(given) {
      if (given === null || given === undefined) return "–";
      if (typeof given === "boolean") return given ? t("yes", "да") : t("no", "нет");
      if (Array.isArray(given)) {
        const parts = given.map((one) => (Array.isArray(one) ? `[${one.join(" ")}]` : String(one)));
        return visible(parts.slice(0, 4).join(" ") + (parts.length > 4 ? ` … (${parts.length})` : ""));
      }
      return typeof given === "number" ? String(given).replace("-", "−") : visible(String(given));
    }
  },
});
