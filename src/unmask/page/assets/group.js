"use strict";
// Completions of a group side by side: a canvas of each at a denoising step, tokens coloured by what is chosen.
(() => {
  const page = window.unmaskPage;
  const { element } = page;
  const LEVELS = 16;
  const MOST_TOKENS = 4096; // of a completion, until all are asked for
  const SVG = "http://www.w3.org/2000/svg";

  // What colours tokens: label, ends of the scale, words for them, and the numbers (0 to 1, or -1 to 1) of a group.
  page.COLOURS = {
    confidence: { label: "confidence", ends: ["low", "high"], words: ["0 %", "100 %"], of: (group) => group.confidence },
    revealed: { label: "reveal step", ends: ["early", "late"], words: ["first step", "last step"],
      of: (group) => Float32Array.from(group.revealed, (step) => (group.steps > 1 ? step / (group.steps - 1) : 0)) },
    logp: { label: "log-prob", ends: ["low", "high"], words: ["−5 and less", "0"], of: (group) => Float32Array.from(group.logp, (value) => 1 + Math.max(-5, value) / 5) },
    remasks: { label: "re-masks", ends: ["high", "minus"], words: ["never", "3 and more"], of: (group) => Float32Array.from(group.remasks(), (count) => Math.min(1, count / 3)) },
    credit: { label: "weight in the loss", ends: ["minus", "plus"], words: ["pushed down", "pulled up"], signed: true, of: (group) => scaled(group.credits()) },
  };

  function scaled(values) {
    let most = 0;
    for (const value of values) most = Math.max(most, Math.abs(value));
    return most ? values.map((value) => value / most) : values;
  }

  page.background = (colour, value) => {
    const { ends, signed } = page.COLOURS[colour];
    if (signed) return value === 0 ? "" : `color-mix(in oklab, var(--${ends[value > 0 ? 1 : 0]}) ${Math.round(100 * Math.sqrt(Math.abs(value)))}%, transparent)`;
    return `color-mix(in oklab, var(--${ends[0]}), var(--${ends[1]}) ${Math.round((100 * Math.round(value * LEVELS)) / LEVELS)}%)`;
  };

  page.legend = (host, colour, extra = []) => {
    const { ends, words, label, signed } = page.COLOURS[colour];
    const middle = signed ? ", transparent" : "";
    host.replaceChildren(
      element("span", {}, `${label}:`), element("span", {}, words[0]),
      element("span", { class: "bar", style: `background:linear-gradient(to right in oklab, var(--${ends[0]})${middle}, var(--${ends[1]}))` }),
      element("span", {}, words[1]), ...extra);
  };

  // One completion: its tokens as elements, changed only where a step changes them.
  class Completion {
    constructor(group, sample, { colour = "confidence", heading, limit = MOST_TOKENS, spark = true } = {}) {
      Object.assign(this, { group, sample, colour, limit });
      this.host = element("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": `Tokens of completion ${sample + 1}: arrow keys read one after another` });
      if (group.about.columns) this.host.style.gridTemplateColumns = `repeat(${group.about.columns}, auto)`;
      this.article = element("article", { class: group.about.columns ? "completion as-grid" : "completion" }, heading, this.host);
      this._build();
      if (spark && group.rewardsByStep(sample)) this.article.append((this.spark = sparkline(group, sample)));
    }

    _build() {
      const { group } = this, count = Math.min(this.limit, group.columns);
      this.spans = Array.from({ length: count }, (_, column) => element("span", { "data-column": column }));
      this.tokens = new Int32Array(count).fill(-1);
      this.states = new Array(count).fill("");
      this.host.replaceChildren(...this.spans);
      this.more?.remove();
      if (count < group.columns) {
        const rest = () => { this.limit = Infinity; this._build(); this.paint(); this.show(this.step, this.guesses); };
        this.more = element("button", { type: "button", class: "more", onclick: rest }, `Show all ${group.columns} tokens`);
        this.host.after(this.more);
      }
      this.paint();
    }

    // Colour the tokens by the numbers of the chosen scale.
    paint(colour = this.colour) {
      this.colour = colour;
      const values = page.COLOURS[colour].of(this.group), start = this.sample * this.group.columns;
      this.spans.forEach((span, column) => { span.style.backgroundColor = page.background(colour, values[start + column] || 0); });
    }

    show(step, guesses = false) {
      this.step = step;
      this.guesses = guesses;
      const { group, sample, spans, tokens, states } = this, { mask } = group.about, length = group.lengths[sample];
      for (let column = 0; column < spans.length; column++) {
        const now = group.token(sample, step, column), isMasked = now === mask;
        const before = step > 0 ? group.token(sample, step - 1, column) : mask;
        const guess = isMasked && guesses ? group.guess(sample, step, column) : undefined;
        const token = guess ? guess.token : isMasked ? group.tokens[sample * group.columns + column] : now;
        let state = isMasked ? (guess ? "g" : "m") : before === mask && step > 0 && step < group.steps ? "n" : "";
        if (isMasked && before !== mask) state += " a";
        if (!isMasked && column >= length) state += " o";
        if (tokens[column] !== token) spans[column].textContent = page.visible(group.text((tokens[column] = token)));
        if (states[column] !== state) spans[column].className = states[column] = state;
      }
      this.spark?.setStep(step);
    }

    words() {
      const { group, sample, step } = this;
      return Array.from(this.spans, (_, column) => (group.isMasked(sample, step, column) ? "▒" : group.text(group.token(sample, step, column)))).join("");
    }

    describe(column) {
      const { group, sample, step } = this, at = sample * group.columns + column;
      const guess = group.guess(sample, step, column), isMasked = group.isMasked(sample, step, column);
      const token = isMasked ? null : group.token(sample, step, column);
      const lines = [isMasked ? "masked" : `${JSON.stringify(group.text(token))}  (id ${group.arrays.token_id_V.values[token]})`];
      if (isMasked && guess) lines.push(`guess ${JSON.stringify(group.text(guess.token))}, ${page.percent(guess.confidence, 0)}`);
      if (!isMasked && group.steps) lines.push(`revealed at step ${group.revealed[at] + 1} of ${group.steps}`, `confidence ${page.percent(group.confidence[at], 0)}, log-prob ${page.figure(group.logp[at])}`);
      const credit = (this.credits ??= group.credits())[at];
      if (credit) lines.push(`weight in the loss ${page.signed(credit)}`);
      if (column >= group.lengths[sample]) lines.push("after the end: not counted");
      return lines.join("\n");
    }
  }
  page.Completion = Completion;

  // Rewards of the guesses, step by step, as a small curve with the end's; over-denoising marked.
  function sparkline(group, sample) {
    const rewards = group.rewardsByStep(sample), width = 300, height = 54, left = 4, right = 96;
    const low = Math.min(0, ...rewards), high = Math.max(1, ...rewards);
    const x = (step) => left + (step / (rewards.length - 1)) * (right - left) * (width / 100);
    const y = (reward) => 46 - ((reward - low) / (high - low)) * 38;
    const svg = document.createElementNS(SVG, "svg");
    const draw = (tag, attributes) => {
      const made = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      svg.append(made);
      return made;
    };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("class", "spark");
    svg.setAttribute("role", "img");
    const best = rewards.indexOf(Math.max(...rewards));
    const marked = group.about.over_denoised?.[sample];
    svg.setAttribute("aria-label", `Reward of the guess before each step: ${rewards.map((reward) => page.figure(reward)).join(", ")}` +
      (marked ? `; right before step ${best + 1}, wrong at the end` : ""));
    draw("line", { x1: x(0), x2: x(rewards.length - 1), y1: y(low), y2: y(low), stroke: "var(--line)" });
    const points = rewards.map((reward, step) => `${x(step)},${y(reward)}`).join(" ");
    draw("polyline", { points, fill: "none", stroke: marked ? "var(--bad)" : "var(--accent)", "stroke-width": 2, "stroke-linejoin": "round" });
    if (marked) draw("circle", { cx: x(best), cy: y(rewards[best]), r: 4.5, fill: "var(--panel)", stroke: "var(--good)", "stroke-width": 2 });
    if (marked) draw("circle", { cx: x(rewards.length - 1), cy: y(rewards.at(-1)), r: 4.5, fill: "var(--bad)" });
    const dot = draw("circle", { r: 3.5, fill: "var(--ink)" });
    svg.setStep = (step) => {
      const place = Math.min(step, rewards.length - 1);
      dot.setAttribute("cx", x(place));
      dot.setAttribute("cy", y(rewards[place]));
    };
    return svg;
  }

  // The heading of a completion: its reward, and its advantage in each term.
  page.heading = (group, sample) => {
    const parts = [element("strong", {}, `Completion ${sample + 1}`), element("span", { class: "figure-label" }, "reward ", element("b", {}, page.figure(group.rewards[sample])))];
    const terms = group.about.terms ?? [];
    terms.forEach((term, place) => {
      const found = group.advantage(sample, place);
      const words = found === null ? "none" : found[0] === found[1] ? page.signed(found[0]) : `${page.signed(found[0])} to ${page.signed(found[1])}`;
      const of = terms.length > 1 ? ` of the ${term.unit}` : "";
      parts.push(element("span", { class: "figure-label" }, `advantage${of} `, element("b", {}, words)));
    });
    if (group.about.over_denoised?.[sample]) parts.push(element("span", { class: "badge" }, "over-denoised"));
    return element("header", {}, ...parts);
  };

  page.promptText = (host, text, columns) => {
    const asGrid = columns && text.length === columns * columns;
    host.classList.toggle("as-grid", Boolean(asGrid));
    if (asGrid) {
      host.style.gridTemplateColumns = `repeat(${columns}, auto)`;
      host.replaceChildren(...Array.from(text, (sign) => element("span", {}, page.visible(sign === "0" ? "·" : sign))));
    } else host.replaceChildren(page.visible(text));
  };
})();
