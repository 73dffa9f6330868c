/** What to try next, on this page and with a command, and what will be seen. */
Page.panel({
  id: "next",
  title: () => t("What to try next", "Что попробовать дальше"),
  needs: (side) => side.run.steps.length > 0,
  build(root, page) {
    const drawn = page.run.steps.some((_, at) => Draws.drew(page.run, at));
    const can = { live: drawn, draw: page.run.steps.some((step) => step.distribution), branches: true, carried: page.side.carried };
    const here = [
      ["live", t("Raise the temperature: the bars even out, and steps where the draw would have gone another way are marked.", "Поднимите температуру: столбики выровняются, а шаги, где розыгрыш пошёл бы иначе, будут отмечены.")],
      ["draw", t("Draw again with another seed: the probabilities stay, the noise q is new.", "Повторите розыгрыш с другим seed: вероятности те же, шум q новый.")],
      ["branches", t("Take another token at the first step and read what follows.", "Возьмите на первом шаге другой токен и прочтите продолжение.")],
      ["carried", t("Take out one attention layer: the next token's distribution changes at once.", "Уберите один слой внимания: распределение следующего токена сразу изменится.")],
    ].filter(([id]) => document.getElementById(id) && can[id]); // what is promised is seen: greedy steps stay as they are, for one
    const jump = (id) => el("a", { href: `#${id}`, on: { click: (event) => Page.jump(event, id) } }, document.getElementById(`${id}-title`).textContent);
    root.append(
      el("ul", {}, ...here.map(([id, words]) => el("li", {}, words, " ", jump(id)))),
      el("dl", {}, ...(page.side.ideas ?? []).flatMap((idea) => [el("dt", {}, t(...idea.words)), el("dd", {}, el("pre", {}, visible(idea.command)))])),
    );
  },
});
