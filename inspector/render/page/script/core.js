/**
 * The page itself: its data, what is chosen in it (model, step, language), and the panels that draw it.
 *
 * A panel registers itself:
 *
 *   Page.panel({
 *     id: "steps",                                     // also the id of its section
 *     title: () => t("Step by step", "Шаг за шагом"),
 *     intro: (side) => t("One sentence.", "Одно предложение."),   // optional; none where it gives nothing
 *     needs: (side, report) => side.run.steps.length > 0,     // the panel is left out where this is false
 *     build(root, page) {                              // fills its section; called anew when model or language changes; a `part` is a slide
 *       …
 *       return { step() { … } };                       // called once after build, and whenever the step changes (optional)
 *     },
 *   });
 *
 * What lasts while a panel is built anew stands in page.memory(id), an object of the panel's own, one for each model.
 */
const Page = (() => {
  "use strict";
  const panels = [];
  const memories = new Map();
  const page = {
    report: null, // the record Report, as JSON
    index: 0, // of the side that is shown
    at: 0, // index of the step
    lang: document.documentElement.lang === "ru" ? "ru" : "en",
    get side() {
      return page.report.sides[page.index];
    },
    get run() {
      return page.side.run;
    },
    get step() {
      return page.run.steps[page.at];
    },
    memory: (id) => {
      const key = `${id} ${page.index}`;
      if (!memories.has(key)) memories.set(key, {});
      return memories.get(key);
    },
    /** A token of the shown side by its id. */
    token: (id) => tokens().get(id) ?? { id, text: String(id), special: false },
    goTo,
    choose,
    announce,
  };
  let live = []; // of the panels that are shown: the section, and what build returned
  let timer = null;
  let theme = "auto";
  const known = new Map();

  function tokens() {
    if (!known.has(page.index)) {
      const { side } = page;
      const found = new Map();
      const add = (token) => token && found.set(token.id, token);
      side.run.prompt.forEach(add);
      for (const step of side.run.steps) {
        add(step.token);
        step.candidates.forEach((candidate) => add(candidate.token));
        add(step.runner_up?.token);
      }
      side.tokens.forEach(add);
      known.set(page.index, found);
    }
    return known.get(page.index);
  }

  /** Shows another step; indexes outside the run are drawn to its ends. */
  function goTo(index) {
    const last = page.run.steps.length - 1;
    page.at = Math.max(0, Math.min(last, index));
    stepped();
    keep();
  }

  /** Shows the other model; the step stays where both have it. */
  function choose(index) {
    page.index = index;
    page.at = Math.max(0, Math.min(page.at, page.run.steps.length - 1));
    draw();
  }

  /** Says something to a screen reader. */
  function announce(text) {
    const region = document.getElementById("said");
    if (region && region.textContent !== text) region.textContent = text;
  }

  function speak(lang) {
    page.lang = lang;
    document.documentElement.lang = lang;
    draw();
  }

  /** Light, dark, or as the system has it. */
  function paint(scheme) {
    theme = scheme;
    document.documentElement.style.colorScheme = scheme === "auto" ? "" : scheme;
    draw();
  }

  /** The address keeps what is shown, so that a reload and a copied address come back to it. */
  function keep() {
    const hash = `#${page.lang}.${page.index + 1}.${page.at + 1}`;
    try {
      history.replaceState(null, "", hash);
    } catch {
      // A frame without an address of its own has no history.
    }
  }

  function recall() {
    const [, lang, index, at] = /^#(en|ru)\.(\d+)\.(\d+)$/.exec(location.hash) ?? [];
    if (!lang) return;
    page.lang = lang;
    page.index = Math.max(0, Math.min(page.report.sides.length - 1, Number(index) - 1));
    page.at = Math.max(0, Math.min(page.run.steps.length - 1, Number(at) - 1));
    document.documentElement.lang = lang;
  }

  function playing() {
    return timer !== null;
  }

  /** Goes on by itself, a step every 1.2 seconds, until the end. */
  function play(on) {
    clearInterval(timer);
    timer = null;
    if (on) {
      if (page.at === page.run.steps.length - 1) goTo(0);
      timer = setInterval(() => {
        if (page.at === page.run.steps.length - 1) return play(false);
        goTo(page.at + 1);
      }, 1200);
    }
    stepped();
  }

  /**
   * What a panel does, of which an error stays in its section: said there and on the console, in place of what else stands in it. The
   * page's data may be a file of anybody's, and the other panels do not hang on it.
   */
  function guarded(section, act) {
    try {
      const made = act();
      section.classList.remove("failed");
      section.querySelector(":scope > .failure")?.remove();
      return made;
    } catch (error) {
      console.error(error);
      section.classList.add("failed");
      section.querySelector(":scope > .failure")?.remove();
      section.append(
        el("p", { class: "remark failure" }, t(`This panel cannot show what the page holds (${error}).`, `Эта панель не может показать то, что есть в странице (${error}).`)),
      );
      return null;
    }
  }

  /** Tells all panels that another step is shown. */
  function stepped() {
    live.forEach(({ section, part }) => part?.step && guarded(section, () => part.step()));
    showStep();
  }

  /** Whether a panel has what it shows; one that cannot tell is shown, and says so. */
  function needed(panel) {
    try {
      return !panel.needs || panel.needs(page.side, page.report);
    } catch {
      return true;
    }
  }

  function draw() {
    const focused = document.activeElement?.id;
    const shown = panels.filter(needed);
    const root = document.getElementById("page");
    const sections = shown.map((panel) => {
      const heading = el("h2", { id: `${panel.id}-title` }, panel.title());
      const section = el("section", { id: panel.id, class: "panel", "aria-labelledby": `${panel.id}-title`, tabindex: "-1" }, heading);
      const intro = panel.intro?.(page.side);
      if (intro) section.append(el("p", { class: "intro" }, intro));
      return section;
    });
    root.replaceChildren(
      el("a", { class: "skip", href: "#main", on: { click: skip } }, t("To the panels", "К панелям")),
      header(shown),
      el("main", { id: "main", tabindex: "-1" }, ...sections),
      el("p", { id: "said", class: "said", "aria-live": "polite" }),
      ...(page.run.steps.length > 0 ? [el("footer", { id: "at", "aria-label": t("Step", "Шаг") })] : []),
    );
    live = shown.map((panel, i) => ({ section: sections[i], part: guarded(sections[i], () => panel.build(sections[i], page)) }));
    stepped();
    Slides.drawn(sections);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    keep();
  }

  /** The bar at the lower edge: where the steps are, and the way to the others, from every panel. */
  function showStep() {
    const bar = document.getElementById("at");
    if (!bar) return;
    const last = page.run.steps.length - 1;
    const move = (id, text, label, off, act) =>
      el("button", { id, type: "button", "aria-label": label, title: label, disabled: off ? "" : null, on: { click: act } }, text);
    const focused = document.activeElement?.id;
    bar.replaceChildren(
      move("at-back", "◀", t("One step back (left arrow)", "На шаг назад (стрелка влево)"), page.at === 0, () => goTo(page.at - 1)),
      move("at-play", playing() ? "❚❚" : "▶▶", playing() ? t("Stop (space)", "Стоп (пробел)") : t("Play (space)", "Проиграть (пробел)"), false, () => play(!playing())),
      move("at-next", "▶", t("One step on (right arrow)", "На шаг вперёд (стрелка вправо)"), page.at === last, () => goTo(page.at + 1)),
      el("span", {}, t(`step ${page.at + 1} of ${last + 1}`, `шаг ${page.at + 1} из ${last + 1}`), " ", tokenName(page.step.token)),
    );
    if (bar.querySelector(`#${CSS.escape(focused || "none")}`)) document.getElementById(focused).focus();
  }

  function skip(event) {
    event.preventDefault();
    document.getElementById("main").focus();
  }

  function header(shown) {
    const { report } = page;
    const pick = (...how) => choice("pick", ...how);
    return el(
      "header",
      {},
      el("h1", {}, report.sides.map((side) => side.run.model).join(" · ")),
      el(
        "div",
        { class: "tools" },
        report.sides.length > 1 &&
          pick(t("Model", "Модель"), report.sides.map((side, i) => [i, side.run.model]), page.index, choose),
        pick(t("Language", "Язык"), [["en", "English"], ["ru", "Русский"]], page.lang, speak),
        pick(t("Colours", "Цвета"), [["auto", t("Auto", "Авто")], ["light", t("Light", "Светлые")], ["dark", t("Dark", "Тёмные")]], theme, paint),
        Slides.controls(),
      ),
      ...page.run.notices.concat(page.side.notices ?? []).map(remark),
      // A model, or a view, that a notebook shows alone was never asked to generate.
      page.run.steps.length === 0 && page.run.max_new_tokens > 0 && el("p", { class: "remark", id: "no-steps" }, t("This run has no step: nothing was generated.", "В этом прогоне нет шагов: ничего не сгенерировано.")),
      el(
        "nav",
        { "aria-label": t("Panels", "Панели") },
        ...shown.map((panel) => el("a", { href: `#${panel.id}`, on: { click: (event) => jump(event, panel.id) } }, panel.title())),
      ),
    );
  }

  function jump(event, id) {
    event.preventDefault();
    const section = document.getElementById(id);
    if (!Slides.show(section)) section.scrollIntoView();
    section.focus({ preventScroll: true });
  }

  /** Arrow keys go through the steps and space plays, unless something that uses these keys itself is focused. */
  function pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    const at = event.target instanceof Element ? event.target : document.body; // with nothing focused it may be the document
    const own = at.closest("input, select, textarea, [contenteditable], [role=grid], [role=slider]");
    const scrolled = at.classList.contains("wide") && at.scrollWidth > at.clientWidth && /^Arrow/.test(event.key);
    if (own || scrolled) return;
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) {
      play(false);
      goTo(page.at + move);
    } else if (event.key === "Home") goTo(0);
    else if (event.key === "End") goTo(page.run.steps.length - 1);
    else if (event.key === " " && !at.closest("button, a, summary")) play(!playing());
    else return;
    event.preventDefault();
  }

  async function begin() {
    const root = document.getElementById("page");
    try {
      page.report = JSON.parse(await unpacked(document.getElementById("report").textContent));
    } catch (error) {
      root.textContent = `This page cannot be read (${error}): the file may be cut off, or the browser too old for DecompressionStream.`;
      return;
    }
    try {
      recall();
      draw();
    } catch (error) {
      console.error(error);
      root.textContent = `This page cannot be shown (${error}): its data is not what inspector writes.`;
      return;
    }
    document.addEventListener("keydown", pressed);
    if (window.parent !== window) new ResizeObserver(tellHeight).observe(document.body);
    document.body.dataset.ready = "yes"; // for tests and for pictures
  }

  /** In a frame, as in a notebook: what is around it may give it this height. */
  function tellHeight() {
    window.parent.postMessage({ inspectorHeight: document.body.offsetHeight }, "*");
  }

  /** What gzip and base64 hide, as text. */
  async function unpacked(text) {
    const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  /** The bytes that base64 stands for. */
  function bytesOf(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  return { page, panel: (spec) => panels.push(spec), begin, play, playing, jump, bytesOf };
})();

/** A text in the language of the page. */
function t(english, russian) {
  return Page.page.lang === "ru" ? russian : english;
}
