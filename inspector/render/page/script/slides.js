/** Presentation: one panel a slide, in large letters; Page Up and Page Down turn the slides, Escape ends it. */
const Slides = (() => {
  "use strict";
  let sections = [];
  let now = 0;
  let on = false;

  function button() {
    return el("button", { id: "present", type: "button", "aria-pressed": String(on), on: { click: () => present(!on) } }, t("Present", "Презентация"));
  }

  function present(wanted) {
    on = wanted;
    document.documentElement.classList.toggle("presenting", on);
    document.getElementById("present").setAttribute("aria-pressed", String(on));
    turn(0);
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
    if (on) window.scrollTo(0, 0);
  }

  /** Turns to the slide of a section. */
  function show(section) {
    turn(Math.max(0, sections.indexOf(section)) - now);
  }

  document.addEventListener("keydown", (event) => {
    if (!on || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { PageDown: 1, PageUp: -1 }[event.key];
    if (by) turn(by);
    else if (event.key === "Escape") present(false);
    else return;
    event.preventDefault();
  });

  return { button, drawn, show };
})();
