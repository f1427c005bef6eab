"use strict";
// The page: which step, group and denoising step are shown, and what follows from it.
(() => {
  const page = window.unmaskPage;
  const { element } = page;
  const at = (id) => document.getElementById(id);
  const SPEEDS = [1, 2, 4, 8, 15, 30, 60];
  const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
  const state = { run: null, step: 1, recorded: null, place: 0, denoise: 0, playing: false, charts: [], completions: [], colour: "confidence", across: 0 };
  page.state = state;

  // ---- themes ----

  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  const put = () => {
    document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
    at("theme").textContent = THEMES[theme];
    state.charts.forEach((chart) => chart.draw());
  };
  dark.addEventListener("change", put);
  at("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    put();
  });

  // ---- training steps ----

  const steps = () => state.run.training.step ?? [];
  const records = () => state.run.record.step;

  function choose(step) {
    if (step === null) return;
    const all = steps();
    state.step = Math.max(all[0] ?? 1, Math.min(all.at(-1) ?? 1, step));
    at("step").value = state.step;
    at("step").setAttribute("aria-valuetext", `training step ${state.step}`);
    at("step-now").textContent = `${state.step} of ${Math.max(state.run.steps, all.at(-1) ?? 0)}`;
    state.charts.forEach((chart) => chart.show(state.step, false));
    return showRecorded();
  }
  page.choose = choose;

  const hover = (step) => state.charts.forEach((chart) => chart.show(step ?? state.step, step !== null));

  const nearest = (step) => records().reduce((best, each) => (Math.abs(each - step) < Math.abs(best - step) ? each : best), records()[0]);

  function jump(direction) {
    const all = records(), place = all.indexOf(nearest(state.step));
    if (all.length) choose(all[Math.max(0, Math.min(all.length - 1, place + direction))]);
  }

  // ---- a recorded group ----

  async function showRecorded() {
    if (!records().length) return;
    const step = nearest(state.step);
    if (step === state.recorded) return;
    state.recorded = step;
    const groups = await page.load(`step_${step}`);
    if (state.recorded !== step) return; // another was chosen meanwhile
    state.groups = groups.map((each) => new page.Group(each));
    state.place = Math.min(state.place, groups.length - 1);
    showGroup();
  }

  function showGroup() {
    const group = (state.group = state.groups[state.place]), { about } = group;
    at("group").hidden = false;
    at("trained").hidden = !about.terms;
    at("group-lead").textContent = `${group.samples} completions of one prompt, sampled in training step ${state.recorded}` +
      (state.recorded === state.step ? "." : `: the recorded step nearest to ${state.step}.`);
    at("group-choice").hidden = state.groups.length < 2;
    at("group-choice").replaceChildren(...state.groups.map((_, place) => element("button", { type: "button", "aria-pressed": String(place === state.place),
      onclick: () => { state.place = place; showGroup(); } }, `Group ${place + 1}`)));
    page.promptText(at("prompt"), about.prompt, about.columns);
    const host = at("completions");
    host.classList.toggle("grid", Boolean(about.columns));
    state.completions = Array.from({ length: group.samples }, (_, sample) => new page.Completion(group, sample, { colour: state.colour, heading: page.heading(group, sample) }));
    state.completions.forEach((each, sample) => each.article.append(asText(about.texts[sample])));
    host.replaceChildren(...state.completions.map((each) => each.article));
    at("denoise").max = group.steps;
    for (const id of ["play", "denoise", "denoise-back", "denoise-next"]) at(id).disabled = !group.steps;
    at("guess-label").hidden = !group.hasGuesses;
    state.denoise = Math.min(state.denoise || group.steps, group.steps);
    showColours();
    showDenoise(state.playing ? state.denoise : group.steps);
    state.trained.show(group);
  }

  const asText = (text) => element("details", {}, element("summary", {}, "As text"), element("pre", { tabindex: "0" }, page.visible(text)));

  function showDenoise(step) {
    const { group } = state;
    state.denoise = Math.max(0, Math.min(group.steps, step));
    at("denoise").value = state.denoise;
    const words = !group.steps ? "no trajectory recorded" : state.denoise === group.steps ? `finished, ${page.counted(group.steps, "step")}` : `before step ${state.denoise + 1} of ${group.steps}`;
    at("denoise-now").textContent = words;
    at("denoise").setAttribute("aria-valuetext", words);
    const guesses = at("guesses").checked && group.hasGuesses;
    for (const completion of state.completions) completion.show(state.denoise, guesses);
  }
  page.showDenoise = showDenoise;

  function showColours() {
    const { group } = state, select = at("colour");
    const usable = Object.entries(page.COLOURS).filter(([name]) => (name === "remasks" ? group.about.remasking && group.steps : name === "credit" ? group.rows.length : group.steps));
    if (!usable.some(([name]) => name === state.colour)) state.colour = usable[0]?.[0] ?? "credit";
    select.replaceChildren(...usable.map(([name, { label }]) => element("option", { value: name, selected: name === state.colour }, label)));
    state.completions.forEach((each) => each.paint(state.colour));
    page.legend(at("legend"), state.colour, [sample("m", "masked", "masked"),
      ...(group.steps ? [sample("n", " new ", "in this step")] : []), ...(group.about.remasking ? [sample("m a", " again ", "masked again")] : [])]);
  }

  const sample = (kind, shown, words) => element("span", {}, element("span", { class: "tokens" }, element("span", { class: kind }, shown)), ` ${words}`);

  function play(on) {
    state.playing = on && Boolean(state.group?.steps);
    at("play").textContent = state.playing ? "Pause" : "Play";
    if (!state.playing) return at("spoken").replaceChildren(state.completions[0] ? page.visible(state.completions[0].words()) : "");
    if (state.denoise >= state.group.steps) showDenoise(0);
    let last = performance.now(), due = 0;
    const frame = (now) => {
      if (!state.playing) return;
      due += ((now - last) / 1000) * Number(at("speed").value);
      last = now;
      const whole = Math.floor(due);
      due -= whole;
      if (whole) showDenoise(state.denoise + whole);
      if (state.denoise >= state.group.steps) return play(false);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  // ---- the same prompt across training ----

  async function showAcross() {
    const found = state.run.record.evaluation;
    at("across").hidden = !found.length;
    if (!found.length) return;
    const records = await Promise.all(found.map((step) => page.load(`evaluation_${step}`)));
    const labels = records[0].map(({ about }) => about.label);
    state.across = Math.min(state.across, labels.length - 1);
    at("across-choice").replaceChildren(...labels.map((label, place) => element("button", { type: "button", "aria-pressed": String(place === state.across),
      onclick: () => { state.across = place; showAcross(); } }, label)));
    const groups = records.map((each) => new page.Group(each[state.across] ?? each[0]));
    page.promptText(at("across-prompt"), groups[0].about.prompt, groups[0].about.columns);
    at("evaluations").classList.toggle("grid", Boolean(groups[0].about.columns));
    at("evaluations").replaceChildren(...groups.map((group, place) => {
      const solved = group.rewards[0] === 1;
      const heading = element("header", {}, element("strong", {}, found[place] ? `Step ${found[place]}` : "Before"), element("span", { class: solved ? "up" : "down" }, solved ? "✓ solved" : "✗ not solved"));
      const completion = new page.Completion(group, 0, { colour: "confidence", heading, limit: 512, spark: false });
      completion.show(group.steps);
      completion.article.classList.remove("completion");
      return completion.article;
    }));
  }

  // ---- what is read of a token ----

  function tipped(target) {
    const host = target.closest?.("#completions .tokens");
    const completion = host && state.completions.find((each) => each.host === host);
    return completion && target.dataset.column !== undefined ? completion.describe(Number(target.dataset.column)) : null;
  }

  function tip(target) {
    const words = tipped(target), box = at("tip");
    box.hidden = words === null;
    if (words === null) return;
    box.textContent = page.visible(words).replaceAll("⏎\n", "\n");
    const place = target.getBoundingClientRect();
    box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - box.offsetWidth - 8))}px`;
    box.style.top = place.bottom + box.offsetHeight + 12 < innerHeight ? `${place.bottom + 6}px` : `${place.top - box.offsetHeight - 6}px`;
  }

  at("completions").addEventListener("pointerover", (event) => tip(event.target));
  at("completions").addEventListener("pointerleave", () => { at("tip").hidden = true; });
  at("completions").addEventListener("keydown", (event) => {
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key], host = event.target.closest(".tokens");
    if (!direction || !host) return;
    const spans = [...host.children], now = spans.findIndex((span) => span.classList.contains("at"));
    spans[now]?.classList.remove("at");
    const next = spans[Math.max(0, Math.min(spans.length - 1, now < 0 ? 0 : now + direction))];
    next.classList.add("at");
    next.scrollIntoView({ block: "nearest" });
    tip(next);
    at("spoken").textContent = at("tip").textContent;
    event.preventDefault();
  });
  at("completions").addEventListener("focusout", (event) => {
    for (const span of event.target.querySelectorAll?.(".at") ?? []) span.classList.remove("at");
    at("tip").hidden = true;
  });

  // ---- controls ----

  at("step").addEventListener("input", () => choose(Number(at("step").value)));
  at("step-back").addEventListener("click", () => jump(-1));
  at("step-next").addEventListener("click", () => jump(1));
  at("denoise").addEventListener("input", () => { play(false); showDenoise(Number(at("denoise").value)); });
  at("denoise-back").addEventListener("click", () => { play(false); showDenoise(state.denoise - 1); });
  at("denoise-next").addEventListener("click", () => { play(false); showDenoise(state.denoise + 1); });
  at("play").addEventListener("click", () => play(!state.playing));
  at("guesses").addEventListener("change", () => showDenoise(state.denoise));
  at("colour").addEventListener("change", () => { state.colour = at("colour").value; showColours(); });
  at("speed").append(...SPEEDS.map((speed) => element("option", { value: speed, selected: speed === 4 }, String(speed))));
  const KEYS = { p: () => play(!state.playing), "[": () => jump(-1), "]": () => jump(1), ",": () => at("denoise-back").click(), ".": () => at("denoise-next").click() };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (state.group) KEYS[event.key]?.();
  });
  addEventListener("resize", () => setTimeout(() => state.charts.forEach((chart) => chart.resized()), 120));

  // ---- the whole ----

  async function drawCharts(host, specs) {
    const same = specs.length === state.charts.length && specs.every((spec, place) => spec.key === state.charts[place].spec.key);
    if (same) return Promise.all(specs.map((spec, place) => state.charts[place].update(spec)));
    state.charts = specs.map((spec) => new page.Chart(spec, { hover, choose }));
    host.replaceChildren(...state.charts.map((chart) => chart.figure));
    return Promise.all(state.charts.map((chart) => chart.draw()));
  }

  async function showRun(run) {
    const follows = !state.run || state.step === (state.run.training.step ?? []).at(-1);
    state.run = run;
    at("title").textContent = page.visible(`${run.method} on ${run.task}`);
    at("subtitle").textContent = page.visible(`${run.model} · seed ${run.seed} · run ${run.name}`);
    page.showResults(run);
    page.showWarnings(run, choose);
    page.showRecipe(run);
    at("recipe").hidden = false;
    const all = steps();
    at("learning").hidden = !all.length && !page.rates(run).length;
    Object.assign(at("step"), { min: all[0] ?? 1, max: all.at(-1) ?? 1 });
    await drawCharts(at("charts"), page.chartsOf(run));
    if (all.length) await choose(follows ? all.at(-1) : state.step);
    await showAcross();
    showSections();
  }
  page.showRun = showRun;

  async function showRuns(data) {
    state.run = data.runs[0];
    at("title").textContent = `${data.runs.length} runs compared`;
    at("subtitle").textContent = page.visible(data.runs.map((run) => run.name).join(" · "));
    at("comparison").hidden = false;
    page.showComparison(data);
    state.step = Math.max(...data.runs.map((run) => (run.training.step ?? [1]).at(-1)));
    await drawCharts(at("compared-charts"), page.comparedCharts(data));
    state.charts.forEach((chart) => chart.show(state.step, false));
    showSections();
  }

  const showSections = () => at("sections").replaceChildren(...[...document.querySelectorAll("section[data-title]:not([hidden])")].map((section) =>
    element("a", { href: `#${section.id}` }, section.dataset.title)));

  // ---- while training goes on ----

  const POLL_SECONDS = 2;

  async function follow() {
    let seen = "";
    for (;;) {
      await new Promise((done) => setTimeout(done, 1000 * POLL_SECONDS));
      try {
        const answer = await fetch(`state?seen=${encodeURIComponent(seen)}`);
        if (answer.status === 200) {
          const { tag, page: now } = await answer.json();
          seen = tag;
          await showRun(now.runs[0]);
        }
        at("live").textContent = "This page follows the run.";
      } catch {
        at("live").textContent = "The server of this page does not answer any more.";
      }
    }
  }

  state.trained = new page.Trained(at("trained-lead"), at("trained-choice"), at("rows"));
  put();
  page.ready = page.data.comparison ? showRuns(page.data) : showRun(page.data.runs[0]);
  if (location.protocol === "http:") page.ready.then(follow);
})();
