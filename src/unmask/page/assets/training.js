"use strict";
// The charts of a run, and the comparison of several.
(() => {
  const page = window.unmaskPage;
  const COLOURS = ["s1", "s2", "s3", "s4", "s5", "s6"];
  const MEAN_STEPS = 10;

  page.runningMean = (values) =>
    values.map((_, end) => {
      const part = values.slice(Math.max(0, end + 1 - MEAN_STEPS), end + 1).filter((value) => value !== null && value !== undefined);
      return part.length ? part.reduce((sum, value) => sum + value, 0) / part.length : null;
    });

  // Held-out rates of a run: name and label of each.
  page.rates = (run) =>
    Object.keys(run.evaluations)
      .filter((name) => /^eval\/.*\/(solved|preferred)$/.test(name))
      .map((name) => ({ name, label: page.rateLabel(name) }));

  page.rateLabel = (name) => {
    const inner = name.replace(/^eval\//, "").replace(/\/(solved|preferred)$/, "");
    const [, kind, steps] = inner.match(/^(sampled|greedy)_(\d+)$/) ?? [];
    return kind ? `${kind}, ${steps} steps` : inner.replaceAll("_", " ");
  };

  // [title, format, names and labels of metrics, [low, high]]
  const SMALL = [
    ["Entropy of the sampled tokens", "number", [["entropy", ""]], [0]],
    ["Distance to the old and the reference policy", "number", [["approx_kl", "to old"], ["kl", "to reference"], ["sampling/kl", "sampled to scored"]]],
    ["Clipped ratios", "percent", [["clip_ratio/region_mean", ""]], [0]],
    ["Groups without signal", "percent", [["frac_reward_zero_std", ""]], [0, 1]],
    ["Without an end, well formed", "percent", [["completions/clipped_ratio", "no end"], ["completions/valid_fraction", "well formed"]], [0, 1]],
    ["Norm of the gradient", "number", [["grad_norm", ""]], [0]],
    ["Seconds of a step", "number", [["step_seconds/rollout", "rollout"], ["step_seconds/scoring", "scoring"], ["step_seconds/update", "update"]], [0]],
    ["Margin of the preferred completion", "number", [["rewards/margins", ""]]],
    ["Loss", "number", [["loss", ""]]],
  ];

  page.chartsOf = (run) => [rewardChart(run), ...SMALL.map((each) => smallChart(run, ...each)), ...functionCharts(run)].filter(Boolean);

  function rewardChart(run) {
    const { training, evaluations } = run;
    const series = [];
    if (training.reward) {
      series.push({ label: "", colour: "muted", x: training.step, y: training.reward, faint: true, quiet: true });
      series.push({ label: `reward, mean of ${MEAN_STEPS}`, colour: "muted", x: training.step, y: page.runningMean(training.reward) });
    }
    page.rates(run).forEach(({ name, label }, place) =>
      series.push({ label, colour: COLOURS[place % COLOURS.length], x: evaluations.step, y: evaluations[name], points: true,
        lower: evaluations[`${name}_low`], upper: evaluations[`${name}_high`] }));
    if (!series.length) return null;
    const rates = series.every((each) => each.y.every((value) => value === null || (value >= 0 && value <= 1)));
    return { key: "reward", title: "Reward in training, and held-out rates with 95 % intervals", format: rates ? "percent" : "number",
      large: true, series, flags: run.warnings.map((warning) => warning.step) };
  }

  function smallChart(run, title, format, names, [low, high] = []) {
    const found = names.filter(([name]) => run.training[name]);
    if (!found.length) return null;
    const series = found.map(([name, label], place) => ({ label: names.length > 1 ? label : "", colour: COLOURS[place], x: run.training.step, y: run.training[name] }));
    return { key: title, title, format, low, high, series };
  }

  // Of each reward function, where there are several.
  function functionCharts(run) {
    const names = Object.keys(run.training).filter((name) => /^rewards\/.*\/mean$/.test(name));
    if (!names.length) return [];
    return [smallChart(run, "Each reward function", "number", names.map((name) => [name, name.split("/")[1]]))];
  }

  // ---- several runs ----

  page.comparedCharts = ({ runs, comparison }) => {
    const charts = [comparedChart("Reward in training", comparison.groups, (run) => [run.training.step ?? [], page.runningMean(run.training.reward ?? [])], runs, false)];
    for (const name of new Set(runs.flatMap((run) => page.rates(run).map((rate) => rate.name))))
      charts.push(comparedChart(`Held-out: ${page.rateLabel(name)}`, comparison.groups, (run) => [run.evaluations.step ?? [], run.evaluations[name] ?? []], runs, true));
    charts.push(comparedChart("Entropy of the sampled tokens", comparison.groups, (run) => [run.training.step ?? [], run.training.entropy ?? []], runs, false));
    return charts.filter((chart) => chart.series.length);
  };

  function comparedChart(title, groups, read, runs, points) {
    const series = groups.map((group, place) => band(group, place, read, runs, points)).filter((each) => each.x.length);
    const values = series.flatMap((each) => each.y).filter((value) => value !== null);
    return { key: title, title, series, format: values.length && values.every((value) => value >= 0 && value <= 1) && !/Entropy/.test(title) ? "percent" : "number" };
  }

  function band(group, place, read, runs, points) {
    const at = new Map();
    for (const number of group.runs) {
      const [steps, values] = read(runs[number]);
      steps.forEach((step, index) => {
        if (values[index] !== null && values[index] !== undefined) at.set(step, [...(at.get(step) ?? []), values[index]]);
      });
    }
    const x = [...at.keys()].sort((one, other) => one - other);
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const several = group.runs.length > 1;
    return { label: group.name, colour: COLOURS[place % COLOURS.length], x, y: x.map((step) => mean(at.get(step))), points: points && !several,
      dots: points, lower: several ? x.map((step) => Math.min(...at.get(step))) : undefined, upper: several ? x.map((step) => Math.max(...at.get(step))) : undefined };
  }
})();
