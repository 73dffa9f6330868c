/** The model in the page: another prompt, a forced token, parts taken out, and what becomes of the next token, at once. */
Page.panel(
  (() => {
    "use strict";
    const SHOWN = 10; // tokens of a distribution, before all are asked for
    const UNDECIDED = 0.002; // a lead of a gate's choice that rounding to float16 can turn around

    const WAYS = {
      zero: { says: () => t("zeros", "нулями"), change: (role) => ({ kind: "ablate", role, value: "zero" }) },
      mean: { says: () => t("their mean over the positions", "средним по позициям"), change: (role) => ({ kind: "ablate", role, value: "mean" }) },
      half: { says: () => t("half of what they give", "половиной того, что дают"), change: (role) => ({ kind: "scale", role, value: 0.5 }) },
      twice: { says: () => t("twice what they give", "удвоенным тем, что дают"), change: (role) => ({ kind: "scale", role, value: 2 }) },
      patch: { says: () => t("what they give for another prompt", "тем, что дают для другого запроса"), change: (role, ids) => ({ kind: "patch", role, value: ids }) },
    };

    /** The model of the shown side, opened once; null where its weights are not in the page. */
    function opened(page, memory) {
      if (memory.model === undefined) {
        const weights = document.getElementById(`weights-${page.index}`)?.textContent;
        memory.model = weights ? Carried.open(page.side.carried, weights) : null;
      }
      return memory.model;
    }

    /** The shared beginning of what is fed and of the run's own tokens: the step whose context it is, or null. */
    function stepOf(page, ids) {
      const own = Draws.context(page.run, page.run.steps.length);
      const step = ids.length - page.run.prompt.length;
      return step >= 0 && step < page.run.steps.length && ids.every((id, i) => id === own[i]) ? page.run.steps[step] : null;
    }

    function build(root, page) {
      if (page.side.not_carried) root.append(remark(page.side.not_carried));
      if (!page.side.carried) return {};
      const memory = page.memory("carried");
      const model = opened(page, memory);
      if (model === null) {
        root.append(el("p", { class: "remark" }, t("The weights of this model were not put into this page.", "Веса этой модели не положены в страницу.")));
        return {};
      }
      const start = Draws.context(page.run, 0).slice(0, model.record.context);
      const state = (memory.state ??= { ids: start.length ? start : [model.record.begin[0] ?? 0], at: -1, past: [], out: new Set(), way: "zero", other: start, layer: 0, head: 0, all: false, text: null });
      state.text ??= model.text(state.ids);

      // ---- controls, built once: what is typed in and pressed keeps its place ----
      const input = el("input", {
        id: "carried-prompt", type: "text", value: state.text, autocomplete: "off", spellcheck: "false", dir: "auto",
        "aria-describedby": "carried-said", on: { input: () => type(input.value) },
      });
      const said = el("p", { id: "carried-said", class: "quiet", role: "status" });
      const back = button("carried-back", t("Back", "Назад"), () => go(state.past.pop(), false));
      const take = button("carried-take", "", () => go({ ids: Draws.context(page.run, page.at).slice(-model.record.context), at: -1 }));
      const fed = el("div", { class: "carried-fed", role: "group", "aria-label": t("Tokens fed: one of them is looked at", "Поданные токены: на один из них смотрим") });
      const way = el("select", { id: "carried-way", on: { change: () => ((state.way = way.value), show()) } },
        ...Object.entries(WAYS).map(([value, { says }]) => el("option", { value, selected: value === state.way && "" }, says())));
      const other = el("input", { id: "carried-other", type: "text", value: model.text(state.other), autocomplete: "off", spellcheck: "false", dir: "auto", on: { input: () => another(other.value) } });
      const otherField = field(t("Another prompt", "Другой запрос"), other);
      const patching = el("p", { class: "quiet", role: "status" });
      const clear = button("carried-clear", t("Put everything back", "Вернуть всё"), () => (state.out.clear(), show()));
      const [next, proven, lens, attention, routing, further] = ["next", "proven", "lens", "attention", "routing", "further"].map((name) => el("div", { id: `carried-${name}`, class: "carried-view" }));
      root.append(
        el("div", { class: "carried-ask" }, field(t("Prompt", "Запрос"), input), back, take),
        el("div", { class: "carried-given" }, said, fed),
        part(el("div", { class: "carried-both" },
          el("div", {},
            el("h3", {}, t("Take parts out, or change them", "Уберите или измените части")),
            el("p", { class: "quiet" }, field(t("What is pressed is replaced by", "Нажатое заменяется"), way), clear),
            otherField,
            patching,
            picture(),
            el("p", { class: "quiet" }, model.postNorm
              ? t("Without a block means without its attention and its feed-forward: what came in goes on, through the block's norms.", "Без блока — значит без его внимания и feed-forward: вошедшее идёт дальше, через нормы блока.")
              : t("Without a block means without its attention and its feed-forward: what came in goes on.", "Без блока — значит без его внимания и feed-forward: вошедшее идёт дальше.")),
          ),
          next), proven),
        part(lens),
        part(attention),
        ...(model.blocks.some((block) => block.experts.length) ? [part(routing)] : []),
        ...(model.depths ? [part(further)] : []),
      );

      function button(id, text, press) {
        return el("button", { id, type: "button", on: { click: press } }, text);
      }

      /** The blocks as buttons, from the tokens to the logits. */
      function picture() {
        const part = (roles, text, name) => el("button", {
          type: "button", class: "carried-part", "aria-pressed": "false", "aria-label": name, title: roles.join(", "), "data-roles": roles.join(" "),
          on: { click: () => press(roles) },
        }, text);
        const row = (label, ...parts) => el("div", { class: "carried-row" }, label && el("span", { class: "quiet" }, label), ...parts);
        return el("div", { class: "carried-picture", role: "group", "aria-label": t("The model's parts, from tokens to logits", "Части модели, от токенов к логитам") },
          el("p", { class: "carried-end" }, t("tokens → embedding", "токены → эмбеддинги")),
          ...model.blocks.map((block, i) => el("div", { class: "carried-block" },
            part([block.attn, block.mlp], t(`block ${i}`, `блок ${i}`), t(`block ${i}`, `блок ${i}`)),
            el("div", {},
              row(null, part([block.attn], t("attention", "внимание"), t(`attention of block ${i}`, `внимание блока ${i}`)),
                el("span", { class: "quiet" }, t("heads", "головы")),
                ...block.heads.map((role, h) => part([role], String(h), t(`head ${h} of block ${i}`, `голова ${h} блока ${i}`)))),
              row(null, part([block.mlp], "feed-forward", t(`feed-forward of block ${i}`, `feed-forward блока ${i}`)),
                block.experts.length > 0 && el("span", { class: "quiet" }, t("experts", "эксперты")),
                ...block.experts.map((role, e) => part([role], String(e), t(`expert ${e} of block ${i}`, `эксперт ${e} блока ${i}`)))),
            ))),
          el("p", { class: "carried-end" }, t("final norm → head → logits", "последняя норма → голова → логиты")),
        );
      }

      function press(roles) {
        const out = roles.every((role) => state.out.has(role));
        roles.forEach((role) => (out ? state.out.delete(role) : state.out.add(role)));
        show();
      }

      // ---- what changes the prompt ----

      function type(text) {
        const { ids, unknown } = model.encode(text);
        state.text = text;
        state.unknown = unknown;
        state.wrong = ids.length === 0 || ids.length > model.record.context ? ids.length : null;
        if (state.wrong === null) [state.ids, state.at, state.past] = [ids, -1, []];
        show();
      }

      /** The other prompt was typed: one that cannot be read changes nothing. */
      function another(text) {
        const { ids } = model.encode(text);
        if (ids.length && ids.length <= model.record.context) state.other = ids;
        show();
      }

      /** Goes on with other ids; what was there can be gone back to. */
      function go({ ids, at }, keep = true) {
        if (keep) state.past.push({ ids: state.ids, at: state.at });
        Object.assign(state, { ids, at, wrong: null, unknown: [], text: model.text(ids) });
        input.value = state.text;
        show();
      }

      /** Puts a token behind the one that is looked at. */
      function force(id) {
        const ids = [...state.ids.slice(0, position() + 1), id];
        if (ids.length > model.record.context) return;
        go({ ids, at: -1 });
        next.querySelector(".bars button")?.focus();
      }

      const position = () => (state.at < 0 ? state.ids.length - 1 : state.at);
      const changes = () => [...state.out].map((role) => WAYS[state.way].change(role, state.other));

      // ---- what is shown ----

      function show() {
        const focused = document.activeElement?.id;
        const before = model.run(state.ids);
        const changed = state.out.size > 0;
        const after = changed ? model.run(state.ids, changes()) : before;
        const p = [before, after].map((pass) => Carried.softmax(model.logitsAt(pass, position())));
        for (const one of root.querySelectorAll(".carried-part")) {
          one.setAttribute("aria-pressed", String(one.dataset.roles.split(" ").every((role) => state.out.has(role))));
        }
        clear.disabled = !changed;
        otherField.hidden = patching.hidden = state.way !== "patch";
        patching.textContent = state.other.length === state.ids.length
          ? t(`Both prompts have ${tokensOf(state.ids.length)}: each position gets that of the other.`, `В обоих запросах ${tokensOf(state.ids.length)}: каждая позиция получает своё от другого.`)
          : t(`The prompts have ${state.ids.length} and ${tokensOf(state.other.length)}: only the last position is replaced.`, `В запросах ${state.ids.length} и ${tokensOf(state.other.length)}: заменяется только последняя позиция.`);
        back.disabled = state.past.length === 0;
        said.replaceChildren(...remarks());
        fed.replaceChildren(...state.ids.map((id, i) => el("button", {
          id: `carried-token-${i}`, type: "button", class: "plain", "aria-pressed": String(i === position()), title: t(`position ${i}, id ${id}`, `позиция ${i}, id ${id}`),
          on: { click: () => ((state.at = i), show()) },
        }, tokenName(model.token(id)))));
        showNext(before, after, p, changed);
        showLens(after);
        showAttention(after);
        showRouting(after);
        showFurther(after, p[1]);
        if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
      }

      function remarks() {
        const { context } = model.record;
        return [
          state.wrong === 0 && t("Nothing to read: below is the prompt before.", "Читать нечего: ниже прежний запрос."),
          state.wrong > context && t(`${state.wrong} tokens: the model reads ${context} at most; below is the prompt before.`, `Токенов ${state.wrong}: модель читает не больше ${context}; ниже прежний запрос.`),
          state.unknown?.length > 0 && t("The model has no token for ", "У модели нет токена для "),
          state.unknown?.length > 0 && `${state.unknown.map(quoted).join(", ")}. `,
          !model.record.alphabet && t("A prompt is token ids here, such as 1 5 7. ", "Запрос здесь — номера токенов, например 1 5 7. "),
          `${tokensOf(state.ids.length)} ${t("of", "из")} ${context}.`,
        ].filter(Boolean).flatMap((one) => [one, " "]);
      }

      function showNext(before, after, [old, now], changed) {
        const order = now.reduce((ids, _, id) => (ids.push(id), ids), []);
        const by = (row) => [...order].sort((a, b) => row[b] - row[a]);
        const best = by(now);
        const listed = state.all ? best : [...new Set([...best.slice(0, SHOWN), ...by(old).slice(0, changed ? 3 : 0)])];
        const full = position() + 1 >= model.record.context;
        const rows = listed.map((id) => ({
          name: tokenName(model.token(id)), values: changed ? [old[id], now[id]] : [now[id]], press: full ? null : () => force(id),
        }));
        const kl = old.reduce((sum, one, id) => sum + (one > 0 ? one * Math.log(one / now[id]) : 0), 0);
        const [was, is] = [by(old)[0], best[0]].map((id) => quoted(model.token(id).text));
        const sentence = !changed
          ? t(`Most probable next: ${is}, ${percent(now[best[0]])}.`, `Вероятнее всего дальше: ${is}, ${percent(now[best[0]])}.`)
          : was === is
            ? t(`Still most probable: ${is}, ${percent(old[best[0]])} → ${percent(now[best[0]])}.`, `Вероятнее всего по-прежнему ${is}: ${percent(old[best[0]])} → ${percent(now[best[0]])}.`)
            : t(`Most probable: ${was} → ${is}.`, `Вероятнее всего: ${was} → ${is}.`);
        const moved = changed ? ` KL(${t("before‖after", "до‖после")}) = ${fixed(kl, kl > 0 ? Math.max(3, Math.min(8, 2 - Math.floor(Math.log10(kl)))) : 3)} ${t("nats", "нат")}.` : "";
        next.replaceChildren(
          el("h3", {}, t("The next token", "Следующий токен"), position() < state.ids.length - 1 ? [t(" behind ", " после "), tokenName(model.token(state.ids[position()]))] : null),
          el("p", {}, sentence, moved, " ", el("span", { class: "quiet" }, full ? t("The context is full.", "Контекст заполнен.") : t("Press a token to go on with it.", "Нажмите токен, чтобы продолжить им."))),
          bars(rows, [t("token", "токен"), ...(changed ? [t("as it is", "как есть"), t("with the change", "с изменением")] : [t("probability", "вероятность")])],
            t("The next token's probabilities", "Вероятности следующего токена")),
          el("p", {}, el("button", { id: "carried-all", type: "button", "aria-pressed": String(state.all), on: { click: () => ((state.all = !state.all), show()) } }, t(`All ${now.length} tokens`, `Все токены (${now.length})`))),
        );
        proven.replaceChildren(proof(before));
        page.announce(sentence + moved);
      }

      /** How far this page is from what Python recorded for the very same context. */
      function proof(before) {
        const recorded = position() === state.ids.length - 1 ? stepOf(page, state.ids)?.distribution : null;
        const rounding = t("Weights are rounded to float16, and everything is computed in float64.", "Веса округлены до float16, всё считается в float64.");
        if (!recorded) return el("p", { class: "quiet" }, rounding);
        const own = model.logitsAt(before);
        const off = recorded.ids.reduce((most, id, i) => Math.max(most, Math.abs(own[id] - number(recorded.logits[i]))), 0);
        return el("p", { class: "quiet", id: "carried-proof" }, rounding, " ", t(
          `For this very context the run recorded Python's logits (${page.run.dtype}): the page's differ by at most ${fixed(off, 4)}.`,
          `Для этого же контекста в прогоне записаны логиты из Python (${page.run.dtype}): здесь они отличаются не больше чем на ${fixed(off, 4)}.`));
      }

      /** A token with its share, tinted by it. */
      function tinted(id, share) {
        const cell = el("span", { class: "carried-cell" }, tokenName(model.token(id)), el("span", { class: "number" }, percent(share)));
        cell.style.background = `color-mix(in srgb, var(--blue-back) ${Math.round(100 * share)}%, transparent)`;
        return cell;
      }

      function heading(english, russian, englishIntro, russianIntro) {
        return [el("h3", {}, t(english, russian)), el("p", { class: "quiet" }, t(englishIntro, russianIntro))];
      }

      const spot = (i) => (i === position() ? "carried-here" : null);

      function showLens(pass) {
        const read = state.ids.map((_, i) => model.lens(pass, i));
        const rows = pass.hidden.map((_, layer) => read.map((layers) => Carried.softmax(layers[layer].logits)));
        const largest = (p) => p.reduce((best, one, id) => (one > p[best] ? id : best), 0);
        lens.replaceChildren(
          ...heading("Logit lens", "Логит-линза",
            "What the head would say after each block, at every position; the last row is the model's own prediction.",
            "Что голова сказала бы после каждого блока, на каждой позиции; последняя строка — предсказание самой модели."),
          el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": t("Logit lens", "Логит-линза") }, el("table", { class: "grid carried-lens" },
            el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("after", "после")), ...state.ids.map((id, i) => el("th", { scope: "col", class: spot(i) }, tokenName(model.token(id)))))),
            el("tbody", {}, ...rows.map((row, layer) => el("tr", {}, el("th", { scope: "row" }, t(`block ${layer}`, `блока ${layer}`)),
              ...row.map((p, i) => el("td", { class: spot(i) }, tinted(largest(p), p[largest(p)])))))))),
        );
      }

      function showAttention(pass) {
        const T = pass.length, at = position();
        const rowOf = (layer, head) => layer.weights.subarray((head * T + at) * T, (head * T + at) * T + at + 1);
        const strongest = (row) => row.reduce((best, one, i) => (one > row[best] ? i : best), 0);
        const layer = pass.attention[state.layer], row = rowOf(layer, state.head);
        const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, SHOWN);
        attention.replaceChildren(
          ...heading("Attention", "Внимание",
            "Where each head looks from the chosen position: the token that gets most. Press a head to see the whole of it.",
            "Куда смотрит каждая голова с выбранной позиции: токен, которому досталось больше всех. Нажмите голову, чтобы увидеть её целиком."),
          el("div", { class: "carried-both" },
            el("div", {},
              grid(["", ...Array.from({ length: Math.max(...pass.attention.map((one) => one.heads)) }, (_, h) => t(`head ${h}`, `голова ${h}`))],
                pass.attention.map((one, i) => [t(`block ${i}`, `блок ${i}`), ...Array.from({ length: one.heads }, (_, h) => {
                  const own = rowOf(one, h), key = strongest(own);
                  return el("button", {
                    id: `carried-head-${i}-${h}`, type: "button", class: "plain", "aria-pressed": String(i === state.layer && h === state.head),
                    "aria-label": t(`block ${i}, head ${h}: ${quoted(model.token(pass.ids[key]).text)}, ${percent(own[key])}`, `блок ${i}, голова ${h}: ${quoted(model.token(pass.ids[key]).text)}, ${percent(own[key])}`),
                    on: { click: () => ((state.layer = i), (state.head = h), show()) },
                  }, tinted(pass.ids[key], own[key]));
                })]), t("The strongest key of every head", "Сильнейший ключ каждой головы")),
              el("h4", {}, t(`Block ${state.layer}, head ${state.head}, from `, `Блок ${state.layer}, голова ${state.head}, с `), tokenName(model.token(state.ids[at]))),
              bars(order.map((key) => ({ name: el("span", {}, `${key} `, tokenName(model.token(pass.ids[key]))), values: [row[key]] })),
                [t("looks at", "смотрит на"), t("weight", "вес")], t("Weights of this head from the chosen position", "Веса этой головы с выбранной позиции"))),
            el("div", {},
              map(layer, state.head, T),
              el("p", { class: "quiet" }, t("The whole of this head: each row looks at the columns up to itself; the chosen one is framed.", "Эта голова целиком: каждая строка смотрит на столбцы до себя; выбранная — в рамке.")))),
        );
      }

      /** One head's whole map; the row of the chosen position is framed. */
      function map({ weights }, head, T) {
        const squares = [];
        for (let query = 0; query < T; query++) {
          for (let key = 0; key <= query; key++) {
            const weight = weights[(head * T + query) * T + key];
            squares.push(svg("rect", { x: key, y: query, width: 1, height: 1, "fill-opacity": weight.toFixed(3) },
              svg("title", {}, `${quoted(model.token(state.ids[query]).text)} → ${quoted(model.token(state.ids[key]).text)}: ${percent(weight)}`)));
          }
        }
        return svg("svg", { class: "carried-map", viewBox: `-0.1 -0.1 ${T + 0.2} ${T + 0.2}`, role: "img", "aria-label": t("Attention map; the numbers of the chosen row stand in the table before it", "Карта внимания; числа выбранной строки — в таблице перед ней") },
          svg("rect", { class: "carried-frame", width: T, height: T }), ...squares, svg("rect", { class: "carried-row-frame", x: 0, y: position(), width: position() + 1, height: 1 }));
      }

      function showRouting(pass) {
        routing.replaceChildren();
        if (!pass.routing.length) return;
        const cell = (one, i) => el("span", { class: "carried-cell" },
          el("span", {}, one.experts[i].join(" + "), one.leads[i] < UNDECIDED ? " ≈" : ""),
          el("span", { class: "number" }, one.weights[i].map((weight) => fixed(weight, 2)).join(" + ")));
        routing.append(
          ...heading("Experts", "Эксперты",
            "Which experts each token went to in every block, and what their outputs were multiplied with. ≈: the choice was so close that rounding the weights to float16 can turn it around; everything after it may then differ from Python.",
            "К каким экспертам ушёл каждый токен в каждом блоке и на что умножены их выходы. ≈: выбор так близок, что округление весов до float16 может его перевернуть; тогда всё дальнейшее может отличаться от Python."),
          el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": t("Experts", "Эксперты") }, el("table", { class: "grid carried-lens" },
            el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("in", "в")), ...state.ids.map((id, i) => el("th", { scope: "col", class: spot(i) }, tokenName(model.token(id)))))),
            el("tbody", {}, ...pass.routing.map((one, layer) => el("tr", {}, el("th", { scope: "row" }, t(`block ${layer}`, `блок ${layer}`)),
              ...state.ids.map((_, i) => el("td", { class: spot(i) }, cell(one, i)))))))),
        );
      }

      /** What the depths of multi-token prediction say of the same token, each from a hidden state further back. */
      function showFurther(pass, now) {
        further.replaceChildren();
        if (!model.depths) return;
        const best = (p) => [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 3).map((id) => tinted(id, p[id]));
        const V = model.record.texts.length;
        const rows = [[t("main head", "основная голова"), ...best(now)]];
        for (let k = 1; k <= model.depths; k++) {
          const place = position() - k;
          const logits = place >= 0 && pass.further[k - 1]?.subarray(place * V, (place + 1) * V);
          rows.push([t(`depth ${k}`, `глубина ${k}`), ...(logits ? best(Carried.softmax(logits)) : [t("needs a longer prompt", "нужен запрос длиннее"), "", ""])]);
        }
        further.append(
          ...heading("Further predictions", "Предсказания дальше",
            "The same next token as foretold by the modules that look further ahead: depth k has the hidden state of k positions before, and the tokens since.",
            "Тот же следующий токен глазами модулей, которые смотрят дальше: у глубины k есть скрытое состояние на k позиций раньше и токены после него."),
          grid([t("predicted by", "кто предсказал"), "1", "2", "3"], rows, t("Further predictions", "Предсказания дальше")),
        );
      }

      show();
      return {
        step() {
          take.textContent = t(`Take the text before step ${page.at + 1}`, `Взять текст до шага ${page.at + 1}`);
        },
      };
    }

    return {
      id: "carried",
      title: () => t("The model in this page", "Модель в этой странице"),
      intro: (side) => side.carried && t("Type another prompt, go on with a token, take a part out: the page computes it itself.", "Введите другой запрос, продолжите токеном, уберите часть: страница считает сама."),
      needs: (side) => Boolean(side.carried || side.not_carried),
      build,
    };
  })(),
);
