/** What a component is called, and what it does, by its role: the words that several panels use. */
const Roles = (() => {
  "use strict";
  // role without its layer → [name, what it does], in English and in Russian
  const WORDS = {
    backbone: [
      ["backbone", "Everything from token ids to hidden states: a row of numbers for every position."],
      ["backbone", "Всё от номеров токенов до скрытых состояний: строка чисел для каждой позиции."],
    ],
    embed: [
      ["embedding", "A table with a row of numbers for every token: the row of its id is what enters the model."],
      ["эмбеддинг", "Таблица, где у каждого токена своя строка чисел: строка его id и входит в модель."],
    ],
    positions: [
      ["positions", "Adds to each row numbers that depend on its place alone, so that order counts."],
      ["позиции", "Прибавляет к каждой строке числа, зависящие только от позиции, чтобы порядок имел значение."],
    ],
    embed_pos: [
      ["learned positions", "A table with a row for every place: the row is added to the embedding, so that order counts."],
      ["обучаемые позиции", "Таблица, где у каждой позиции своя строка: она прибавляется к эмбеддингу, и порядок имеет значение."],
    ],
    layers: [
      ["layer", "Attention and feed-forward, each added to what came in. Drawn once; the layers run one after another, each with weights of its own."],
      ["слой", "Внимание и feed-forward, каждое прибавляется к входу. Нарисован один раз; слои идут друг за другом, у каждого свои веса."],
    ],
    attn: [
      ["attention", "The only place where tokens read one another: each takes a weighted sum of the values of those before it and its own."],
      ["внимание", "Единственное место, где токены читают друг друга: каждый берёт взвешенную сумму значений предыдущих и своего."],
    ],
    "attn.q": [["query (q)", "What a token looks for."], ["запрос (q)", "Что токен ищет."]],
    "attn.k": [["key (k)", "What a token is found by: q·k is how well it fits."], ["ключ (k)", "По чему токен находят: q·k — насколько он подходит."]],
    "attn.v": [["value (v)", "What a token gives to those that look at it."], ["значение (v)", "Что токен отдаёт тем, кто на него смотрит."]],
    "attn.qkv": [["q, k, v in one", "Query, key and value from one matrix."], ["q, k, v вместе", "Запрос, ключ и значение из одной матрицы."]],
    "attn.o": [["output (o)", "Joins the heads and brings them back to the width of the model."], ["выход (o)", "Соединяет головы и возвращает ширину модели."]],
    "attn.kv_a": [
      ["latent (kv a)", "Presses keys and values into a short vector, the latent: it is what a cache keeps."],
      ["латент (kv a)", "Сжимает ключи и значения в короткий вектор, латент: его и хранит кэш."],
    ],
    "attn.kv_a_norm": [["norm of the latent", "Brings the latent to one size."], ["норма латента", "Приводит латент к одному размеру."]],
    "attn.kv_b": [["keys and values (kv b)", "Makes the heads' keys and values out of the latent."], ["ключи и значения (kv b)", "Делает из латента ключи и значения голов."]],
    "attn.q_a": [["latent of the query", "Presses the query into a short vector."], ["латент запроса", "Сжимает запрос в короткий вектор."]],
    "attn.q_b": [["query from its latent", "Makes the heads' queries out of the latent."], ["запрос из латента", "Делает из латента запросы голов."]],
    "attn.q_norm": [["norm of q", "Brings each head's query to one size."], ["норма q", "Приводит запрос каждой головы к одному размеру."]],
    "attn.k_norm": [["norm of k", "Brings each head's key to one size."], ["норма k", "Приводит ключ каждой головы к одному размеру."]],
    mlp: [
      ["feed-forward", "Works on each token by itself: wider, bent by an activation, back to the width of the model."],
      ["feed-forward", "Работает с каждым токеном отдельно: шире, изгиб активацией, обратно к ширине модели."],
    ],
    "mlp.gate": [["gate", "How far each number of up is let through, after the activation."], ["gate", "Насколько пропускается каждое число up, после активации."]],
    "mlp.up": [["up", "To the inner width, several times that of the model."], ["up", "Во внутреннюю ширину, в несколько раз больше ширины модели."]],
    "mlp.fc": [["up", "To the inner width, several times that of the model."], ["up", "Во внутреннюю ширину, в несколько раз больше ширины модели."]],
    "mlp.gate_up": [["gate and up in one", "Both from one matrix."], ["gate и up вместе", "Оба из одной матрицы."]],
    "mlp.act": [["activation", "Bends every number by itself: without it two matrices would be one."], ["активация", "Изгибает каждое число отдельно: без неё две матрицы были бы одной."]],
    "mlp.down": [["down", "Back to the width of the model."], ["down", "Обратно к ширине модели."]],
    "mlp.router": [["router", "Weighs the experts for each token and chooses the best few."], ["маршрутизатор", "Взвешивает экспертов для каждого токена и выбирает лучших."]],
    "mlp.experts": [
      ["expert", "A feed-forward of its own. All have parameters, and only the chosen ones compute for a token."],
      ["эксперт", "Отдельный feed-forward. Параметры есть у всех, а для токена считают только выбранные."],
    ],
    "mlp.shared": [["shared expert", "Computes for every token, beside the chosen ones."], ["общий эксперт", "Считает для каждого токена, рядом с выбранными."]],
    mixer: [["recurrence", "Reads the tokens in order and carries a state on."], ["рекуррентность", "Читает токены по порядку и несёт дальше состояние."]],
    norm_attn: [["norm of attention", "Brings each token's numbers to one size; its weights scale them."], ["норма внимания", "Приводит числа каждого токена к одному размеру; веса её масштабируют."]],
    norm_mlp: [["norm of feed-forward", "Brings each token's numbers to one size; its weights scale them."], ["норма feed-forward", "Приводит числа каждого токена к одному размеру; веса её масштабируют."]],
    norm_attn_post: [["norm behind attention", "On what attention gives, before it is added."], ["норма после внимания", "На выходе внимания, до сложения."]],
    norm_mlp_post: [["norm behind feed-forward", "On what the feed-forward gives, before it is added."], ["норма после feed-forward", "На выходе feed-forward, до сложения."]],
    final_norm: [["last norm", "Brings the hidden states to one size before the head reads them."], ["последняя норма", "Приводит состояния к одному размеру, прежде чем их прочтёт голова."]],
    head: [
      ["head", "One logit for every token of the vocabulary: how well it would follow. The last position alone is asked."],
      ["голова", "По логиту на каждый токен словаря: насколько он подходит следующим. Спрашивают только последнюю позицию."],
    ],
    mtp: [
      ["further prediction (MTP)", "Predicts a token further ahead, for drafts. A plain pass does not run it."],
      ["дальнее предсказание (MTP)", "Предсказывает токен ещё дальше, для набросков. Обычный проход его не запускает."],
    ],
    "mtp.join": [["join", "Joins the hidden state and the embedding of the next token."], ["соединение", "Соединяет состояние и эмбеддинг следующего токена."]],
    "mtp.norm_embed": [["norm of the embedding", "Of the next token's embedding."], ["норма эмбеддинга", "Эмбеддинга следующего токена."]],
    "mtp.norm_hidden": [["norm of the state", "Of the hidden state."], ["норма состояния", "Скрытого состояния."]],
    "mtp.block": [["layer", "A layer of its own, built as the others."], ["слой", "Собственный слой, устроен как остальные."]],
    rotary: [["angles for RoPE", "By how much each place turns its queries and keys. No weights."], ["углы для RoPE", "На сколько каждая позиция поворачивает запросы и ключи. Без весов."]],
    "fn rope": [
      ["RoPE: turn q and k", "Turns queries and keys by an angle that grows with the place: q·k then depends on the distance. No module, no weights."],
      ["RoPE: поворот q и k", "Поворачивает запросы и ключи на угол, растущий с позицией: тогда q·k зависит от расстояния. Не модуль, без весов."],
    ],
    "fn scores": [
      ["softmax(q·kᵀ/√K)·v", "Each query against all keys up to its own place, as shares that sum to 1, of the values. No module, no weights."],
      ["softmax(q·kᵀ/√K)·v", "Каждый запрос со всеми ключами до своей позиции, доли с суммой 1, и по ним значения. Не модуль, без весов."],
    ],
    "fn +": [
      ["+ residual", "What came in is added to what the part gives: the part only changes it."],
      ["+ вход (residual)", "Вход прибавляется к тому, что даёт часть: она его только меняет."],
    ],
    "fn gated": [["act(gate) × up", "The activation of gate, number by number times up."], ["act(gate) × up", "Активация gate, умноженная на up число за числом."]],
    "fn scale": [["× √D", "Embeddings are multiplied by the root of their width."], ["× √D", "Эмбеддинги умножаются на корень из их ширины."]],
    "fn sum": [["Σ weight × chosen expert", "What the chosen experts give, weighted by the router."], ["Σ вес × выбранный эксперт", "То, что дали выбранные эксперты, с весами маршрутизатора."]],
    "": [["everything else", "Sums, masks, tables, and what stands between the parts."], ["всё прочее", "Сложения, маски, таблицы и то, что между частями."]],
  };
  const FUNCTIONAL = [
    [/^RoPE/, "fn rope"],
    [/^softmax/, "fn scores"],
    [/residual/, "fn +"],
    [/^act\(gate\)/, "fn gated"],
    [/^×/, "fn scale"],
    [/^Σ/, "fn sum"],
  ];

  /** What a node of a tree is known by on both sides: its role, else what it does, else its name. */
  function keyOf(node) {
    if (node.functional) return FUNCTIONAL.find(([pattern]) => pattern.test(node.type))?.[1] ?? `fn ${node.type}`;
    if (node.part === "backbone") return "backbone";
    if (!node.role && /rotary/i.test(node.type)) return "rotary";
    if (!node.role && /position/i.test(node.type)) return "positions";
    return node.role ?? `name ${node.name}`;
  }

  /** Name and meaning, of a role such as "layers.*.attn.q" or of what `keyOf` gives; null where the page knows no words for it. */
  function words(key) {
    const short = key
      .replace(/^layers\d*\.\*$/, "layers")
      .replace(/^layers\d*\.\*\./, "")
      .replace(/^mtp\.\*$/, "mtp")
      .replace(/\.experts\.\*$/, ".experts")
      .replace(/\.(experts\.\*|shared)\.(?=\w)/, ".");
    const found = WORDS[short] ?? WORDS[short.replace(/^mtp\.\*\./, "mtp.")] ?? WORDS[short.replace(/^mtp\.\*\./, "")];
    return found ? t(...found) : null;
  }

  /** What a role is called; where the page knows no words for it, as it is written. */
  function name(key) {
    return words(key)?.[0] ?? visible(key.replace(/^(fn|name) |^layers\d*\.\*\./, ""));
  }

  return { keyOf, words, name };
})();
