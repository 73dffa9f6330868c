/** Numbers and texts as they are written everywhere on the page. */

const NAMES = { "\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣" };

/** A token's text between «», with control characters and marks of direction made visible. */
function quoted(text) {
  return `«${visible(text)}»`;
}

/** A text in which nothing hides: control characters, marks of direction and other invisible ones by their numbers. */
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu, (letter) =>
    NAMES[letter] ?? `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`,
  );
}

/** A record's number: those that JSON lacks are texts in it. */
function number(value) {
  return typeof value === "string" ? { inf: Infinity, "-inf": -Infinity, nan: NaN }[value] : value;
}

/** A number with so many decimals, a real minus, and the comma of the language. */
function fixed(value, decimals = 2) {
  value = number(value);
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  const text = Math.abs(value).toLocaleString(Page.page.lang, { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return (value < 0 && Number(Math.abs(value).toFixed(decimals)) !== 0 ? "−" : "") + text;
}

/** A number that may be as small as it likes, with so many digits that count. */
function digits(value, count = 3) {
  if (!Number.isFinite(value) || value === 0) return fixed(value, 0);
  if (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6) {
    return value.toLocaleString(Page.page.lang, { minimumSignificantDigits: count, maximumSignificantDigits: count });
  }
  const [mantissa, power] = value.toExponential(count - 1).split("e");
  return `${fixed(Number(mantissa), count - 1)}e${Number(power) < 0 ? "−" : ""}${Math.abs(Number(power))}`;
}

/** An error or a difference: 0, or in powers of ten. */
function exponent(value) {
  value = number(value);
  if (!value) return "0";
  if (!Number.isFinite(value)) return fixed(value);
  const [mantissa, power] = value.toExponential(1).split("e");
  return `${fixed(Number(mantissa), 1)}·10^${power.replace("+", "").replace("-", "−")}`;
}

/** A share in percent: "0.3 %", "<0.01 %" where it is more than nothing. */
function percent(share) {
  share = number(share);
  if (share === null || share === undefined) return "–";
  const value = 100 * share;
  if (value > 0 && value < 0.01) return `<${fixed(0.01, 2)} %`;
  if (value < 100 && value > 99.99) return `>${fixed(99.99, 2)} %`;
  return `${fixed(value, value >= 10 ? 1 : 2)} %`;
}

/** A text of a number that is not exact; "<0.01 %" says so itself. */
function roughly(text) {
  return /^[<>]/.test(text) ? text : `≈ ${text}`;
}

/** A whole number with its thousands apart. */
function whole(value) {
  return value.toLocaleString(Page.page.lang);
}

/** Parameters, bytes, FLOPs: "730.9k", "1.2M". */
function short(value) {
  const [factor, letter] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([factor]) => value >= factor) ?? [1, ""];
  return letter ? `${fixed(value / factor, 1)}${letter}` : whole(value);
}

/** Seconds in the unit that suits them. */
function seconds(value) {
  if (value >= 1) return `${fixed(value, 2)} ${t("s", "с")}`;
  if (value >= 1e-3) return `${fixed(value * 1e3, 1)} ${t("ms", "мс")}`;
  return `${fixed(value * 1e6, 0)} ${t("µs", "мкс")}`;
}

/** "1 token", "5 tokens" in both languages: Russian has a form for 1, for 2 to 4, and for the rest. */
function counted(n, one, many, ru1, ru2, ru5) {
  if (Page.page.lang === "en") return `${whole(n)} ${n === 1 ? one : many}`;
  const [last, two] = [n % 10, n % 100];
  return `${whole(n)} ${last === 1 && two !== 11 ? ru1 : last >= 2 && last <= 4 && (two < 12 || two > 14) ? ru2 : ru5}`;
}

/** "5 tokens". */
function tokensOf(n) {
  return counted(n, "token", "tokens", "токен", "токена", "токенов");
}
