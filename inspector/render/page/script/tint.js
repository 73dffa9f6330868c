/** Tokens in running text, tinted by their probability: the less probable, the stronger the tint and the line below. */
const Tint = (() => {
  "use strict";

  const BOUNDS = [0.9, 0.5, 0.2, 0.05]; // the five tints begin below 1 and below each of these

  /** The class of a probability; "" where there is none. */
  function tint(p) {
    if (p === null || p === undefined) return "";
    const at = BOUNDS.findIndex((bound) => p >= bound);
    return `tint tint-${at < 0 ? BOUNDS.length : at}`;
  }

  /** A token's text as it stands in running text; an empty one can be seen too. */
  function written(token) {
    return visible(token.text) || "⟨⟩";
  }

  /** A token of running text, with its probability on hover. */
  function token(token, p, attributes = {}) {
    const classes = ["run", tint(p), token.special && "special", attributes.class].filter(Boolean).join(" ");
    const title = p === null || p === undefined ? quoted(token.text) : `${quoted(token.text)} ${percent(p)}`;
    return el("bdi", { title, ...attributes, class: classes }, written(token));
  }

  /** Tokens in a line; where those of the prompt are their numbers, as without a tokenizer, with spaces between. */
  function line(prompt, shown) {
    return prompt.every(({ id, text }) => text === String(id)) ? shown.flatMap((one) => [" ", one]) : shown;
  }

  /** The end of a text that is too long to be shown whole, in quiet colour. */
  function tail(tokens, count = 24) {
    const left = tokens.length - count;
    return el(
      "span",
      { class: "quiet tail" },
      left > 0 ? `… (${t(`${tokensOf(left)} before`, `до этого ${tokensOf(left)}`)}) ` : null,
      ...line(tokens, tokens.slice(-count).map((one) => token(one))),
    );
  }

  /** What the tints mean. */
  function legend() {
    const edge = (bound) => `${fixed(100 * bound, 0)} %`;
    const names = [`≥ ${edge(BOUNDS[0])}`, ...BOUNDS.slice(1).map((bound, i) => `${edge(bound)} – ${edge(BOUNDS[i])}`), `< ${edge(BOUNDS[3])}`];
    return el(
      "p",
      { class: "quiet legend" },
      t("raw probability: ", "исходная вероятность: "),
      ...names.flatMap((name, i) => [el("span", { class: `run tint tint-${i}` }, name), " "]),
    );
  }

  /** The raw probability of the token that a step chose; null where it was not recorded. */
  function chosen(step) {
    return step.candidates.find((candidate) => candidate.token.id === step.token.id)?.probability_before ?? null;
  }

  return { token, line, tail, legend, tint, written, chosen };
})();
