/**
 * Tables of tinted cells, gone through with the arrow keys: one stop for Tab, the cell that was last there.
 * Tints are ten levels of one hue, from the page's own colour on; what a cell says is in letters, too.
 */
const Cells = (() => {
  "use strict";
  const LEVELS = 10;

  /** The level of a share of the largest: 0 to 9; nothing of it is 0. */
  function level(share) {
    return Math.max(0, Math.min(LEVELS - 1, Math.round(share * (LEVELS - 1))));
  }

  /** A token's text so short that it fits into a cell; spaces and what else hides are shown. */
  function brief(text, letters = 6) {
    return el("bdi", { class: "token" }, cut(visible(text).replaceAll(" ", "␣"), letters));
  }

  /** A token as everywhere, but on one line: of a long one the beginning. */
  function name(token) {
    return el("bdi", { class: token.special ? "token special" : "token", title: `id ${token.id} ${visible(token.text)}` }, called(token));
  }

  /** The same as a text. */
  function called(token) {
    return `«${cut(visible(token.text), 16)}»`;
  }

  function cut(text, letters) {
    const all = [...text];
    return all.length > letters ? `${all.slice(0, letters - 1).join("")}…` : text;
  }

  /** Heads of columns or rows that are positions: number and token. */
  function places(tokens, begin) {
    return tokens.map((token, i) => ({ name: [el("span", { class: "place" }, String(begin + i)), " ", brief(token.text)] }));
  }

  /** What the levels stand for, from the least to the largest. */
  function legend(name, least, largest) {
    return el(
      "p",
      { class: "legend" },
      `${name}: ${least} `,
      el("span", { class: "swatches", "aria-hidden": "true" }, ...Array.from({ length: LEVELS }, (_, i) => el("span", { class: `swatch h${i}` }))),
      ` ${largest}`,
    );
  }

  /**
   * @param {object} spec
   * @param {string} spec.caption
   * @param {string} spec.corner the head of the column of row names.
   * @param {Array<{name: (Node|string)[]}>} spec.columns
   * @param {Array<{name: (Node|string)[]}>} spec.rows
   * @param {(row: number, column: number) => ({text: (Node|string|null), level: (number|null), class?: string}|null)} spec.cell null: there is none.
   * @param {(row: number, column: number) => string} spec.label what a screen reader says of a cell.
   * @param {(row: number, column: number) => void} spec.show called when a cell is pointed at or focused.
   * @param {(row: number, column: number) => void} [spec.press] when it is clicked, or Enter or space is pressed.
   * @param {string} [spec.class]
   * @returns {{element: Node, markColumn: (column: number) => void, markRow: (row: number) => void, stop: (row: number, column: number) => void}}
   *   ``mark…`` say which belongs to the step that is shown, -1 for none; ``stop`` where Tab comes to.
   */
  function table(spec) {
    const cells = spec.rows.map((_, r) =>
      spec.columns.map((_, c) => {
        const made = spec.cell(r, c);
        if (!made) return el("td", { class: "none" });
        return el("td", { tabindex: "-1", class: [made.level === null ? "" : `h${made.level}`, made.class ?? ""].join(" ") }, made.text);
      }),
    );
    const heads = spec.columns.map((column) => el("th", { scope: "col" }, ...column.name));
    const names = spec.rows.map((row) => el("th", { scope: "row" }, ...row.name));
    const lines = cells.map((row, r) => el("tr", {}, names[r], ...row));
    const body = el(
      "table",
      { role: "grid", class: `cells ${spec.class ?? ""}`, "aria-label": spec.caption, "aria-readonly": "true" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "corner" }, spec.corner), ...heads)),
      el("tbody", {}, ...lines),
    );
    const element = el("div", { class: "wide around" }, body);
    let home = null;

    const there = (r, c) => cells[r]?.[c]?.hasAttribute("tabindex");

    function stop(r, c) {
      if (!there(r, c)) return;
      home?.setAttribute("tabindex", "-1");
      home = cells[r][c];
      home.setAttribute("tabindex", "0");
    }

    function placeOf(target) {
      const cell = target.closest?.("td");
      if (!cell || !body.contains(cell)) return null;
      const [r, c] = [cell.parentNode.sectionRowIndex, cell.cellIndex - 1];
      return there(r, c) ? [r, c] : null;
    }

    function go(r, c) {
      stop(r, c);
      cells[r][c].setAttribute("aria-label", spec.label(r, c));
      cells[r][c].focus();
    }

    /** The next cell in a direction that is one; none where the table ends. */
    function next(r, c, down, right) {
      do {
        r += down;
        c += right;
      } while (cells[r]?.[c] && !there(r, c));
      return there(r, c) ? [r, c] : null;
    }

    /** The last cell in a direction. */
    function farthest(r, c, down, right) {
      let found = [r, c];
      for (let further = found; further; further = next(...further, down, right)) found = further;
      return found;
    }

    body.addEventListener("mouseover", (event) => {
      const place = placeOf(event.target);
      if (place) spec.show(...place);
    });
    body.addEventListener("focusin", (event) => {
      const place = placeOf(event.target);
      if (!place) return;
      stop(...place);
      event.target.closest("td").setAttribute("aria-label", spec.label(...place));
      spec.show(...place);
    });
    body.addEventListener("click", (event) => {
      const place = placeOf(event.target);
      if (place) spec.press?.(...place);
    });
    body.addEventListener("keydown", (event) => {
      const place = placeOf(event.target);
      if (!place || event.altKey || event.metaKey) return;
      const way = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      const end = { Home: [0, -1], End: [0, 1] }[event.key];
      if (way && !event.ctrlKey) go(...(next(...place, ...way) ?? place));
      else if (end) go(...farthest(...place, ...(event.ctrlKey ? [end[1], 0] : end)));
      else if (spec.press && (event.key === "Enter" || event.key === " ")) spec.press(...place);
      else return;
      event.preventDefault();
    });

    const first = cells.flatMap((row, r) => row.map((_, c) => [r, c])).find((place) => there(...place));
    if (first) stop(...first);

    let [column, row] = [-1, -1];
    return {
      element,
      stop,
      markColumn(now) {
        for (const [at, on] of [[column, false], [now, true]]) {
          if (!heads[at]) continue;
          heads[at].classList.toggle("now", on);
          markCurrent(heads[at], on);
          cells.forEach((line) => line[at].classList.toggle("now", on));
        }
        column = now;
        if (heads[now]) seen(element, heads[now], names[0]);
      },
      markRow(now) {
        for (const [at, on] of [[row, false], [now, true]]) {
          if (!names[at]) continue;
          markCurrent(names[at], on);
          lines[at].classList.toggle("now", on);
        }
        row = now;
        if (lines[now]) {
          const [top, low] = [lines[now].offsetTop - heads[0].offsetHeight, lines[now].offsetTop + lines[now].offsetHeight];
          if (top < element.scrollTop) element.scrollTop = top;
          else if (low > element.scrollTop + element.clientHeight) element.scrollTop = low - element.clientHeight;
        }
      },
    };
  }

  /** Scrolls a box sideways, and nothing else, to a column that is not seen beside the names of the rows. */
  function seen(box, head, name) {
    const [left, right, room] = [head.offsetLeft - name.offsetWidth, head.offsetLeft + head.offsetWidth, box.clientWidth];
    if (left < box.scrollLeft || right > box.scrollLeft + room) box.scrollLeft = (left + right - room) / 2;
  }

  return { table, level, brief, name, called, places, legend };
})();

/** What the panels share that show one pass over the prompt and everything generated (record Inside). */
const Within = (() => {
  "use strict";

  /** The tokens fed. */
  function tokens(page) {
    return [...page.run.prompt, ...page.run.steps.map((step) => step.token)].slice(0, page.side.inside.length);
  }

  /** The position whose hidden state chose the token of a step. */
  function position(page, at = page.at) {
    return page.run.prompt.length - 1 + at;
  }

  /** Whether a panel has something to show of a side: the view, or why it is refused. */
  function has(side, name) {
    return Boolean(side.inside) && (name in side.inside.missing || Object.keys(side.inside[name] ?? {}).length > 0);
  }

  /** Says why a view is refused; false where it is not. */
  function refused(root, page, name) {
    const words = page.side.inside.missing[name];
    if (!words) return false;
    root.append(el("p", { class: "remark" }, t(`Not shown of ${visible(page.run.model)}: `, `Для ${visible(page.run.model)} не показано: `), `${visible(t(...words))}.`));
    return true;
  }

  /** Where only the end of the text is shown, says so. */
  function part(page) {
    const { length, begin } = page.side.inside;
    if (!begin) return null;
    return el(
      "p",
      { class: "quiet" },
      t(`Shown are the last ${length - begin} of ${length} positions.`, `Показаны последние ${length - begin} из ${length} позиций.`),
    );
  }

  /** "layers.3.attn" as people say it. */
  function layerOf(role) {
    const found = /^layers\d*\.(\d+)(?:\.(?:attn|mlp))?(#\d+)?$/.exec(role);
    return found ? `${found[1]}${found[2] ?? ""}` : role;
  }

  /** By how much numbers that should be equal are not. */
  function apart(value) {
    return number(value) === 0
      ? t("are equal bit for bit", "равны бит в бит")
      : t(`differ by at most ${exponent(value)}`, `отличаются не больше чем на ${exponent(value)}`);
  }

  return { tokens, position, has, refused, part, layerOf, apart };
})();
