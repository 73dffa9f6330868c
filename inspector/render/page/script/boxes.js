/** A module tree as boxes: what stands in which row, and beside what of another tree. */
const Boxes = (() => {
  "use strict";

  /** A node and what stands below it as boxes; modules that only hold others give these in their place. */
  function boxes(node, side, path, times, inner = false) {
    const own = [path, node.name].filter(Boolean).join(".");
    const all = times * node.repeat;
    const below = node.children.flatMap((child) => boxes(child, side, node.repeat > 1 && !/\d$/.test(own) ? `${own}.*` : own, all, true));
    const known = (node.role && node.role !== "layers") || node.part || node.functional || !node.children.length; // layers that differ stand by themselves
    if (inner && !known) return below;
    return [{ key: Roles.keyOf(node), node, path: own, times: all, children: below, side }];
  }

  /** The tree of a side as boxes in boxes: one for the whole model. */
  function nested(side) {
    return boxes(side.tree, side, "", 1);
  }

  /** Boxes and all that is in them. */
  const flat = (list) => list.flatMap((box) => [box, ...flat(box.children)]);

  /** The boxes of a side one below the other: the ids above, what backbone and head give behind them. */
  function column(side) {
    const [whole] = nested(side);
    const [ids, hidden, logits] = (side.parts?.shapes ?? []).map((shape) => `[${shape.join(", ")}]`);
    const data = (key, name, shape) => (shape ? [{ key, data: name, shape, children: [], side }] : []);
    const list = whole.children;
    const head = list.findIndex((box) => box.node.part === "head");
    const further = list.findIndex((box) => box.node.part === "mtp");
    const end = further < 0 ? list.length : further;
    return [
      ...data("data ids", t("token ids", "номера токенов"), ids),
      ...list.slice(0, head < 0 ? end : head),
      ...(head < 0 ? [] : data("data hidden", t("hidden states", "скрытые состояния"), hidden)),
      ...(head < 0 ? [] : list.slice(head, end)),
      ...data("data logits", t("logits", "логиты"), logits),
      ...list.slice(end),
    ];
  }

  /** Rows [a, b] of two lists of boxes in their orders: the longest row of pairs that have the same key, the others alone. */
  function aligned(a, b) {
    const longest = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        longest[i][j] = a[i].key === b[j].key ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
      }
    }
    const rows = [];
    let [i, j] = [0, 0];
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i].key === b[j].key) rows.push([a[i++], b[j++]]);
      else if (j === b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) rows.push([a[i++], null]);
      else rows.push([null, b[j++]]);
    }
    return rows;
  }

  /**
   * Gives the boxes their rows, each box one for itself and those of what is in it; returns how many rows there are.
   * Of `two` columns a box also knows what stands beside it.
   */
  function placed(rows, two, first = 1) {
    let at = first;
    for (const row of rows) {
      const inside = placed(aligned(row[0]?.children ?? [], row[1]?.children ?? []), two, 2);
      row.forEach((box, i) => {
        if (!box) return;
        box.row = at; // in the box around it, whose own head has the first
        box.rows = 1 + inside;
        box.beside = two ? row[1 - i] : undefined; // null: it stands alone
      });
      at += 1 + inside;
    }
    return at - first;
  }

  /** By how many rows a box stands below the first row of one around it. */
  function offset(outer, box) {
    const child = outer.children.find((other) => other === box || holds(other, box));
    return child.row - 1 + (child === box ? 0 : offset(child, box));
  }

  function holds(outer, box) {
    return outer.children.some((child) => child === box || holds(child, box));
  }

  return { nested, flat, column, aligned, placed, offset };
})();
