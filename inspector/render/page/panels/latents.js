/** Latent attention: what it keeps of a token, beside the keys and values that this stands for. */
Page.panel({
  id: "latents",
  title: () => t("What does latent attention keep?", "Что хранит латентное внимание?"),
  intro: () =>
    t(
      "Of every token one latent and one key that all heads share are kept; keys and values of all heads are made of them.",
      "О каждом токене хранятся один латент и один ключ, общий для всех голов; ключи и значения всех голов делаются из них.",
    ),
  needs: (side) => Within.has(side, "latents"),
  build(root, page) {
    if (Within.refused(root, page, "latents")) return;
    const { layers } = page.side.inside.latents;
    root.append(
      grid(
        [t("layer", "слой"), t("latent", "латент"), t("shared key", "общий ключ"), t("heads × (key + value)", "головы × (ключ + значение)"), t("kept, B/token", "хранится, Б/токен"), t("in full, B/token", "целиком, Б/токен"), t("share", "доля"), t("error", "ошибка")],
        layers.map((one) => [
          one.role,
          whole(one.latent),
          whole(one.shared_key),
          `${one.heads} × (${one.key} + ${one.value})`,
          whole(one.kept_bytes),
          whole(one.full_bytes),
          percent(one.kept_bytes / one.full_bytes),
          exponent(one.error),
        ]),
        t("What each layer keeps", "Что хранит каждый слой"),
        [1, 2, 3, 4, 5, 6, 7],
      ),
      el(
        "p",
        { class: "quiet" },
        t(
          "Error: the largest difference between what the heads give and what is computed from the latents alone, without keys and values.",
          "Ошибка: наибольшее отличие того, что дают головы, от посчитанного по одним латентам, без ключей и значений.",
        ),
      ),
    );
  },
});
