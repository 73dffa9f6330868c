/** Multi-token prediction: what the main head and every further depth said of each token. */
Page.panel({
  id: "further",
  title: () => t("What does it predict further ahead?", "Что она предсказывает дальше вперёд?"),
  intro: () =>
    t(
      "The main head predicts the next token, each further depth a token more ahead. A column is the token that is predicted: ✓ the guess is that token, ✗ it is not.",
      "Основная голова предсказывает следующий токен, каждая глубина — ещё на токен дальше. Столбец — предсказанный токен: ✓ угадан, ✗ нет.",
    ),
  needs: (side) => Within.has(side, "further"),
  build(root, page) {
    if (Within.refused(root, page, "further")) return {};
    const { depths } = page.side.inside.further;
    const tokens = Within.tokens(page);
    const first = Math.max(1, page.side.inside.begin);
    const columns = [...tokens.slice(first), { text: "?" }];
    const detail = el("p", { class: "detail" });
    const found = (r, c) => depths[r].foretold.find((one) => one.position === first + c);
    const name = (r) => (r === 0 ? t("next (main head)", "следующий (основная)") : t(`${r} further`, `на ${r} дальше`));

    function said(r, c) {
      const one = found(r, c);
      const truth =
        one.truth === null
          ? t("what comes there is not known.", "что там стоит, неизвестно.")
          : t(
              `there stands ${quoted(columns[c].text)}, which it gave ${percent(one.truth)}: ${one.right ? "right" : "wrong"}.`,
              `там стоит ${quoted(columns[c].text)}, ему дано ${percent(one.truth)}: ${one.right ? "верно" : "неверно"}.`,
            );
      const guess = `${quoted(one.guess.token.text)}, ${percent(one.guess.probability)}`;
      return t(`Position ${first + c}, ${name(r)}: ${guess}; ${truth}`, `Позиция ${first + c}, ${name(r)}: ${guess}; ${truth}`);
    }

    const table = Cells.table({
      caption: t("Predictions by positions", "Предсказания по позициям"),
      corner: t("depth", "глубина"),
      columns: Cells.places(columns, first),
      rows: depths.map((_, r) => ({ name: [name(r)] })),
      cell(r, c) {
        const one = found(r, c);
        const mark = one && (one.right === null ? "" : one.right ? "✓" : "✗");
        return one ? { text: el("span", {}, Cells.brief(one.guess.token.text), mark), level: Cells.level(one.guess.probability) } : null;
      },
      label: said,
      show: (r, c) => detail.replaceChildren(said(r, c)),
    });
    root.append(
      Cells.legend(t("probability", "вероятность"), "0", "1"),
      table.element,
      detail,
      grid(
        [t("depth", "глубина"), t("right", "верно"), t("same guess as the main head", "то же, что у основной головы")],
        depths.map((depth, r) => {
          const judged = depth.foretold.filter((one) => one.right !== null);
          return [name(r), `${judged.filter((one) => one.right).length} / ${judged.length}`, `${depth.agrees} / ${depth.foretold.length}`];
        }),
        t("How often the guesses are right", "Как часто догадки верны"),
        [1, 2],
      ),
    );
    return {
      step() {
        const c = page.run.prompt.length + page.at - first;
        table.markColumn(c >= 0 && c < columns.length ? c : -1);
        if (c >= 0 && c < columns.length && found(0, c)) {
          table.stop(0, c);
          detail.replaceChildren(said(0, c));
        }
      },
    };
  },
});
