/** What the model was fed: every token of the prompt, with the part that it is from, its id, and how much the chat template added. */
Page.panel({
  id: "prompt",
  title: () => t("The prompt in tokens", "Запрос по токенам"),
  intro: () =>
    t(
      "The model reads numbers: the tokenizer cuts the prompt into tokens, and each has an id.",
      "Модель читает числа: токенизатор режет запрос на токены, и у каждого есть номер (id).",
    ),
  needs: (side) => side.run.prompt.length > 0,
  build(root, page) {
    const { run } = page;
    const memory = page.memory("prompt");
    const [HEAD, TAIL] = [80, 30];
    const parts = run.prompt.map((token, i) => run.parts?.[i] ?? null);
    const known = run.parts?.some((part) => part) ?? false;
    const names = {
      template: t("template", "шаблон"),
      system: t("system", "системное сообщение"),
      default: t("system, the template's own", "системное из шаблона"),
      prompt: t("user", "пользователь"),
      special: t("special", "служебные"),
    };
    const partName = (part) => names[part] ?? t("not told", "не определено");

    root.append(el("p", {}, summary()));
    const unknown = page.side.unknown ?? [];
    if (unknown.length) {
      const listed = unknown.slice(0, 20).map(quoted).join(", ") + (unknown.length > 20 ? " …" : "");
      root.append(
        el("p", { class: "remark" }, t("Not in the vocabulary, fed as the unknown token: ", "Нет в словаре, поданы как неизвестный токен: "), el("bdi", {}, listed)),
      );
    }

    const line = el("div", { class: "prompt-line", role: "toolbar", "aria-label": t("Tokens of the prompt", "Токены запроса"), on: { keydown: moved } });
    const about = el("p", { class: "prompt-about", id: "prompt-about" });
    root.append(...[line, about, legend(), list()].filter(Boolean));
    fill();
    tell(memory.chosen ?? null);

    function summary() {
      const n = run.prompt.length;
      const whole = t(`${tokensOf(n)} fed`, `На входе ${tokensOf(n)}`);
      if (!known) return `${whole}. ${t("Which part each is from is not recorded.", "Из какой части каждый, не записано.")}`;
      const count = (part) => parts.filter((own) => own === part).length;
      const said = [];
      const added = count("template") + count("default") + count("special");
      const chat = count("template") + count("default") > 0;
      said.push(t(`${count("prompt")} of what the user wrote`, `${count("prompt")} — слова пользователя`));
      if (count("system")) said.push(t(`${count("system")} of the system text`, `${count("system")} — системное сообщение`));
      if (chat) {
        const specials = run.prompt.filter((token, i) => token.special && parts[i] !== "prompt").length;
        const own = count("default") ? t(`, ${count("default")} of them a system text of its own`, `, из них ${count("default")} — его собственное системное сообщение`) : "";
        const marks = specials ? t(`; ${specials} of the added are special tokens`, `; служебных среди добавленных: ${specials}`) : "";
        said.push(t(`${added} added by the chat template${own}${marks}`, `${added} добавил шаблон чата${own}${marks}`));
      } else if (added) said.push(t(`${added} added by the tokenizer, no chat template`, `${added} добавил токенизатор, шаблона чата нет`));
      else said.push(t("none added, no chat template", "ничего не добавлено, шаблона чата нет"));
      const open = parts.filter((part) => !part).length;
      if (open) said.push(t(`${open} with characters of two parts, or of a part that cannot be told`, `${open} — из двух частей или не определено`));
      return `${whole}: ${said.join(t("; ", "; "))}.`;
    }

    /** Runs of tokens of one part stand together under its name; of a long prompt the middle is folded. */
    function fill() {
      const n = run.prompt.length;
      const folded = n > HEAD + TAIL + 20 && !memory.open;
      const groups = [];
      const add = (from, to) => {
        for (let i = from; i < to; i += 1) {
          const last = groups[groups.length - 1];
          if (last && last.end === i && last.part === parts[i]) last.end = i + 1;
          else groups.push({ part: parts[i], start: i, end: i + 1 });
        }
      };
      if (folded) {
        add(0, HEAD);
        groups.push({ fold: n - HEAD - TAIL });
        add(n - TAIL, n);
      } else add(0, n);
      line.replaceChildren(
        ...groups.map((group) => {
          if (group.fold) {
            const open = () => {
              memory.open = true;
              fill();
              line.querySelector(`[data-i="${HEAD}"]`).focus();
            };
            return el("button", { type: "button", class: "prompt-fold", on: { click: open } }, t(`… show ${tokensOf(group.fold)} more …`, `… показать ещё ${tokensOf(group.fold)} …`));
          }
          const tokens = [];
          for (let i = group.start; i < group.end; i += 1) tokens.push(button(i));
          const name = known ? el("span", { class: "prompt-name" }, partName(group.part)) : null;
          return el("span", { class: `prompt-part prompt-${group.part ?? "none"}` }, name, ...tokens);
        }),
      );
      reach(memory.chosen ?? 0);
    }

    function button(i) {
      const token = run.prompt[i];
      const what = `id ${token.id} · ${partName(parts[i])}`;
      return el(
        "button",
        {
          type: "button",
          class: token.special ? "prompt-token special" : "prompt-token",
          "data-i": i,
          tabindex: "-1",
          title: what,
          "aria-label": `${quoted(token.text)}, ${what}`,
          "aria-pressed": String(memory.chosen === i),
          on: { click: () => press(i), focus: () => tell(i), mouseenter: () => tell(i), mouseleave: () => tell(memory.chosen ?? null) },
        },
        el("bdi", {}, visible(token.text) || "␀"),
      );
    }

    /** One token is reached by Tab, the others from it by the arrow keys. */
    function reach(i) {
      line.querySelectorAll("[tabindex='0']").forEach((other) => other.setAttribute("tabindex", "-1"));
      (line.querySelector(`[data-i="${i}"]`) ?? line.querySelector("[data-i]"))?.setAttribute("tabindex", "0");
    }

    function moved(event) {
      const all = [...line.querySelectorAll("[data-i]")];
      const now = all.indexOf(event.target);
      const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: all.length - 1 }[event.key];
      if (now < 0 || to === undefined) return;
      event.preventDefault();
      const next = all[Math.max(0, Math.min(all.length - 1, to))];
      reach(next.dataset.i);
      next.focus();
    }

    function press(i) {
      memory.chosen = memory.chosen === i ? undefined : i;
      line.querySelectorAll("[data-i]").forEach((other) => other.setAttribute("aria-pressed", String(Number(other.dataset.i) === memory.chosen)));
      reach(i);
      tell(i);
      page.announce(about.textContent);
    }

    function tell(i) {
      if (i === null) {
        about.textContent = t("Point at a token, or reach it with Tab and the arrow keys: its id stands here.", "Наведите на токен или дойдите до него клавишами Tab и стрелками: здесь будет его id.");
        return;
      }
      const token = run.prompt[i];
      const special = token.special ? t(", a special token", ", служебный токен") : "";
      about.replaceChildren(
        tokenName(token),
        t(`: id ${token.id}, position ${i + 1} of ${run.prompt.length}, `, `: id ${token.id}, позиция ${i + 1} из ${run.prompt.length}, `),
        known ? t(`part: ${partName(parts[i])}${special}`, `часть: ${partName(parts[i])}${special}`) : t(`part not told${special}`, `часть не определена${special}`),
      );
    }

    function legend() {
      if (!known) return null;
      const there = [...new Set(parts)];
      return el(
        "p",
        { class: "quiet prompt-legend" },
        ...there.map((part) => el("span", {}, el("span", { class: `prompt-part prompt-${part ?? "none"}` }, el("span", { class: "prompt-name" }, partName(part))), ` × ${parts.filter((own) => own === part).length}`)),
        run.prompt.some((token) => token.special) ? el("span", {}, el("span", { class: "prompt-token special" }, "…"), t(" a special token: framed, slanted", " служебный токен: рамка, наклон")) : null,
      );
    }

    /** All ids as a table, made when it is opened: a long prompt has thousands. */
    function list() {
      const details = el("details", { id: "prompt-ids" }, el("summary", {}, t("All tokens with their ids", "Все токены с их id")));
      details.addEventListener("toggle", () => {
        if (!details.open || details.querySelector("table")) return;
        details.append(
          grid(
            ["#", t("token", "токен"), "id", t("part", "часть")],
            run.prompt.map((token, i) => [String(i + 1), tokenName(token), String(token.id), known ? partName(parts[i]) : "–"]),
            t("Tokens of the prompt", "Токены запроса"),
            [0, 2],
          ),
        );
      });
      return details;
    }
  },
});
