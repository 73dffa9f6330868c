/** Elements, and the few forms that all panels share. Texts of models and prompts become text nodes, never markup. */

/**
 * An element. Attributes with `on` are listeners; null, undefined and false children and attributes are left out.
 * @param {string} tag
 * @param {object} attributes
 * @param {...(Node|string|number|null|false)} children
 */
function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A token as it is written everywhere: «text», isolated from the direction of the writing around it, control characters made visible. */
function tokenName(token, attributes = {}) {
  return el("bdi", { class: token.special ? "token special" : "token", title: `id ${token.id}`, ...attributes }, quoted(token.text));
}

/**
 * Bars with their numbers, as a table: readable without colours and by a screen reader.
 * @param {Array<{name: (Node|string), values: (number|null)[], texts?: string[], class?: string, press?: Function, pressed?: boolean}>} rows
 *   a row for each candidate; of `values` the largest bar is 1; with `press` the name is a button.
 * @param {string[]} heads of the columns: the name, and one for each value.
 * @param {string} caption what the table is, for a screen reader.
 */
function bars(rows, heads, caption) {
  return el(
    "table",
    { class: "bars" },
    el("caption", { class: "said" }, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => headOf(head)))),
    el(
      "tbody",
      {},
      ...rows.map((row) =>
        el(
          "tr",
          { class: row.class },
          el(
            "th",
            { scope: "row" },
            row.press
              ? el("button", { type: "button", class: "plain", "aria-pressed": row.pressed === undefined ? null : String(row.pressed), on: { click: row.press } }, row.name)
              : row.name,
          ),
          ...row.values.map((value, i) => el("td", {}, bar(value), el("span", { class: "number" }, row.texts?.[i] ?? percent(value)))),
        ),
      ),
    ),
  );
}

/** One bar from 0 to 1; none where there is no value. */
function bar(value) {
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    Number.isFinite(value) ? svg("rect", { width: Math.max(0, Math.min(1, value)) * 100, height: 10 }) : null,
  );
}

/** The head of a column; without words it is an empty cell, which a screen reader does not announce. */
function headOf(head, kind = null) {
  return el(head === "" ? "td" : "th", { scope: head === "" ? null : "col", class: kind }, head);
}

/** A table of texts and nodes. `numbers`: the columns that hold numbers, which stand right. */
function grid(heads, rows, caption, numbers = []) {
  const kind = (i) => (numbers.includes(i) ? "number" : null);
  return el(
    "div",
    { class: "wide", role: "group", "aria-label": caption, tabindex: "0" }, // what scrolls must be reached by keys
    el(
      "table",
      { class: "grid" },
      el("caption", { class: "said" }, caption),
      el("thead", {}, el("tr", {}, ...heads.map((head, i) => headOf(head, kind(i))))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell, i) => el(i ? "td" : "th", { scope: i ? null : "row", class: kind(i) }, cell))))),
    ),
  );
}

/** A remark of Python's (record Notice), in the language of the page. */
function remark(notice) {
  return el("p", { class: "remark" }, t(notice.english, notice.russian));
}

/** A part of a panel that is a slide of its own where the page is presented. */
function part(...children) {
  return el("div", { class: "part" }, ...children);
}

/** A labelled control. */
function field(label, control, after = null) {
  return el("label", { class: "field" }, el("span", {}, label), control, after);
}

/** Buttons of which one is pressed. `options`: [value, text]; a button's id is that of all and its value. */
function choice(id, label, options, now, act) {
  return el(
    "div",
    { class: "pick", role: "group", "aria-label": label },
    ...options.map(([value, text]) =>
      el("button", { id: `${id}-${value}`, type: "button", "aria-pressed": String(value === now), on: { click: () => act(value) } }, text),
    ),
  );
}

/** A labelled list of which one is chosen, by its index; it keeps the focus where it is drawn anew. */
function select(id, label, texts, now, act) {
  const made = el(
    "select",
    { id, on: { change: () => (act(Number(made.value)), document.getElementById(id).focus()) } },
    ...texts.map((text, i) => el("option", { value: i, selected: i === now ? "" : null }, text)),
  );
  return field(label, made);
}

/** Marks what belongs to the step that is shown, or takes the mark away. */
function markCurrent(element, on) {
  if (on) element.setAttribute("aria-current", "step");
  else element.removeAttribute("aria-current");
}
