/**
 * Presentation: one panel a slide, in large letters; Page Up and Page Down or its buttons turn the slides, Escape ends it.
 *
 * A panel that is more than a slide tells its parts, each a slide (`part`, dom.js); what stands beside them is on all of these. What is
 * longer than a slide even so is scrolled under its heading.
 */
const Slides = (() => {
  "use strict";
  let slides = []; // of each its section, its part of it (null where it has none), and which and of how many that is
  let now = 0;
  let on = false;

  function controls() {
    const move = (id, by, text, label) => el("button", { id, type: "button", "aria-label": label, title: label, on: { click: () => turn(by) } }, text);
    return el(
      "div",
      { class: "tools" },
      el("button", { id: "present", type: "button", "aria-pressed": String(on), on: { click: () => present(!on) } }, t("Present", "Презентация")),
      el(
        "div",
        { class: "turning", role: "group", "aria-label": t("Slides", "Слайды") },
        move("slide-back", -1, "◀", t("Slide before (Page Up)", "Слайд назад (Page Up)")),
        el("span", { id: "slide-at" }),
        move("slide-next", 1, "▶", t("Next slide (Page Down)", "Следующий слайд (Page Down)")),
      ),
    );
  }

  /** Begins with the panel that is in sight, and comes back to the one that was shown. */
  function present(wanted) {
    if (wanted) now = Math.max(0, slides.findIndex(({ section }) => section.getBoundingClientRect().bottom > window.innerHeight / 3));
    on = wanted;
    document.documentElement.classList.toggle("presenting", on);
    document.getElementById("present").setAttribute("aria-pressed", String(on));
    turn(0);
    if (!on && now > 0) slides[now].section.scrollIntoView();
  }

  /** The panels were drawn anew: the slide that was shown is found again, or the first of its panel. */
  function drawn(sections) {
    const { section: { id } = {}, at: place } = slides[now] ?? {};
    slides = sections.flatMap((section) => {
      const parts = [...section.querySelectorAll(":scope > .part")];
      return (parts.length ? parts : [null]).map((part, at) => ({ section, part, at, of: Math.max(1, parts.length) }));
    });
    const own = (slide) => slide.section.id === id;
    const found = slides.findIndex((slide) => own(slide) && slide.at === place);
    now = Math.max(found, found < 0 ? slides.findIndex(own) : 0);
    document.documentElement.classList.toggle("presenting", on);
    turn(0);
  }

  function turn(by) {
    now = Math.max(0, Math.min(slides.length - 1, now + by));
    const shown = slides[now];
    for (const { section, part } of slides) {
      section.classList.toggle("current", section === shown?.section);
      part?.classList.toggle("current", part === shown?.part);
    }
    if (shown) {
      const heading = shown.section.querySelector("h2");
      heading.dataset.part = shown.of > 1 ? t(` (${shown.at + 1} of ${shown.of})`, ` (${shown.at + 1} из ${shown.of})`) : "";
      shown.section.classList.toggle("continued", shown.at > 0);
    }
    document.getElementById("slide-at").textContent = t(`slide ${now + 1} of ${slides.length}`, `слайд ${now + 1} из ${slides.length}`);
    document.getElementById("slide-back").disabled = now === 0;
    document.getElementById("slide-next").disabled = now === slides.length - 1;
    document.getElementById("main").scrollTop = 0;
  }

  /** Turns to the slide of a section; true where slides are shown. */
  function show(section) {
    turn(Math.max(0, slides.findIndex((slide) => slide.section === section)) - now);
    return on;
  }

  document.addEventListener("keydown", (event) => {
    if (!on || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { PageDown: 1, PageUp: -1 }[event.key];
    const down = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const main = document.getElementById("main");
    if (by) turn(by);
    else if (event.key === "Escape") present(false);
    else if (down && !main.contains(event.target)) main.scrollBy(0, down * 100); // inside of it the browser does so itself
    else return;
    event.preventDefault();
  });

  return { controls, drawn, show };
})();
