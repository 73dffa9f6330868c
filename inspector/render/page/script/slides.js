/** Presentation: one panel a slide, in large letters; Page Up and Page Down or its buttons turn the slides, Escape ends it. */
const Slides = (() => {
  "use strict";
  let sections = [];
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
    if (wanted) now = Math.max(0, sections.findIndex((section) => section.getBoundingClientRect().bottom > window.innerHeight / 3));
    on = wanted;
    document.documentElement.classList.toggle("presenting", on);
    document.getElementById("present").setAttribute("aria-pressed", String(on));
    turn(0);
    if (!on && now > 0) sections[now].scrollIntoView();
  }

  /** The panels were drawn anew. */
  function drawn(shown) {
    sections = shown;
    document.documentElement.classList.toggle("presenting", on);
    turn(0);
  }

  function turn(by) {
    now = Math.max(0, Math.min(sections.length - 1, now + by));
    sections.forEach((section, i) => section.classList.toggle("current", i === now));
    document.getElementById("slide-at").textContent = t(`slide ${now + 1} of ${sections.length}`, `слайд ${now + 1} из ${sections.length}`);
    document.getElementById("slide-back").disabled = now === 0;
    document.getElementById("slide-next").disabled = now === sections.length - 1;
    if (on) window.scrollTo(0, 0);
  }

  /** Turns to the slide of a section; true where slides are shown. */
  function show(section) {
    turn(Math.max(0, sections.indexOf(section)) - now);
    return on;
  }

  document.addEventListener("keydown", (event) => {
    if (!on || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { PageDown: 1, PageUp: -1 }[event.key];
    if (by) turn(by);
    else if (event.key === "Escape") present(false);
    else return;
    event.preventDefault();
  });

  return { controls, drawn, show };
})();
