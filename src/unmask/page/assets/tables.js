"use strict";
// Results, warnings, recipe and comparison, as headings and tables.
(() => {
  const page = window.unmaskPage;
  const { element } = page;

  page.table = (heads, rows, codeColumns = [0]) =>
    element("table", {},
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows.map(({ cells, differs }) =>
        element("tr", { class: differs ? "differs" : "" }, ...cells.map((cell, place) => element("td", { class: codeColumns.includes(place) ? "code" : "" }, cell))))));

  const shown = (value) => (value === null || value === undefined ? "unset" : value === "" ? "empty" : page.visible(String(value)));

  page.showResults = (run) => {
    const host = document.getElementById("results");
    const boxes = Object.entries(run.summary).filter(([, value]) => value?.after).map(([name, { before, after, gain, gain_low: low, gain_high: high }]) =>
      element("div", {}, element("dt", {}, `Held-out: ${page.rateLabel(`eval/${name}/solved`)}`),
        element("dd", { class: "figure" }, element("small", {}, `${page.percent(before.solved)} → `), page.percent(after.solved)),
        element("dd", { class: "gain" }, element("span", { class: low > 0 ? "up" : high < 0 ? "down" : "" }, points(gain)), ` (95 %: ${points(low)} to ${points(high)})`)));
    if (!boxes.length) boxes.push(...soFar(run));
    host.replaceChildren(...boxes);
  };

  const points = (value) => `${value >= 0 ? "+" : "−"}${(100 * Math.abs(value)).toFixed(1)} points`;

  // What a run that still trains has reached.
  function soFar(run) {
    return page.rates(run).map(({ name, label }) => {
      const values = run.evaluations[name].filter((value) => value !== null);
      return element("div", {}, element("dt", {}, `Held-out so far: ${label}`),
        element("dd", { class: "figure" }, element("small", {}, values.length > 1 ? `${page.percent(values[0])} → ` : ""), page.percent(values.at(-1))));
    });
  }

  page.showWarnings = (run, choose) => {
    const list = document.getElementById("warnings");
    list.hidden = document.getElementById("warnings-title").hidden = !run.warnings.length;
    list.replaceChildren(...run.warnings.map(({ step, text }) =>
      element("li", {}, element("button", { type: "button", onclick: () => choose(step) }, `Step ${step}`), element("span", {}, page.visible(text)))));
  };

  page.showRecipe = (run) => {
    const only = document.getElementById("only-changed");
    const draw = () => {
      const rows = run.settings.filter((row) => row.differs || !only.checked);
      const cells = ({ path, value, default: usual, help }) => [path, shown(value), shown(usual), help];
      document.getElementById("settings").replaceChildren(rows.length
        ? page.table(["setting", "this run", path(run), "what it is"], rows.map((row) => ({ cells: cells(row), differs: row.differs })), [0, 1, 2])
        : element("p", { class: "muted" }, "Every setting is at its default."));
    };
    const path = (each) => (each.paper ? "default, the paper's" : "default");
    only.onchange = draw;
    draw();
    const paper = run.paper ? ` Defaults of ${run.method} are those of its paper, arXiv ${run.paper}.` : "";
    document.getElementById("recipe-lead").textContent = `${run.method} on ${run.task}, seed ${run.seed}, ${run.steps} training steps.${paper}`;
    document.getElementById("command").textContent = run.command;
    const rows = run.starts.flatMap(({ environment = {}, ...start }) => Object.entries({ ...start, ...environment }));
    document.getElementById("environment").replaceChildren(page.table(["", ""], rows.map(([name, value]) => ({ cells: [name.replaceAll("_", " "), shown(value)] })), [1]));
  };

  page.showComparison = ({ runs, comparison }) => {
    const names = runs.map((run) => run.name);
    const put = (id, heads, rows, empty) => document.getElementById(id).replaceChildren(
      rows.length ? page.table(heads, rows) : element("p", { class: "muted" }, empty));
    put("rates", ["figure", ...names], comparison.rates.map(({ name, runs: rates }) => ({
      cells: [page.rateLabel(`eval/${name}`), ...rates.map((rate) => (rate ? `${page.percent(rate.solved)} (${page.percent(rate.solved_low)} to ${page.percent(rate.solved_high)})` : "–"))],
    })), "No run has ended yet.");
    put("gains", ["figure", ...names.slice(1).map((name) => `${name} over ${names[0]}`)], comparison.gains.map(({ name, runs: gains }) => ({
      cells: [page.rateLabel(`eval/${name}`), ...gains.map((gain) => (gain ? element("span", {}, element("b", { class: gain.low > 0 ? "up" : gain.high < 0 ? "down" : "" }, points(gain.gain)), ` (${points(gain.low)} to ${points(gain.high)})`) : "not the same examples"))],
    })), "The runs have no held-out figure in common yet.");
    put("differences", ["setting", ...names], comparison.differences.map(({ path, values }) => ({ cells: [path, ...values.map(shown)] })), "The recipes are the same.");
  };
})();
