"use strict";
// Charts over training steps, drawn by Bokeh; the cursor, the chosen step and the values in the heading are the page's.
(() => {
  const page = window.unmaskPage;
  const { element } = page;
  const FRAME = { min_border_left: 46, min_border_right: 10, min_border_top: 6, min_border_bottom: 24 };

  page.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const clean = (values) => Array.from(values, (value) => value ?? NaN);

  // The value of a series at a step: there, or at its last point before.
  function valueAt(series, step) {
    let found = null;
    for (let place = 0; place < series.x.length && series.x[place] <= step; place++)
      if (series.y[place] !== null && series.y[place] !== undefined) found = place;
    if (found === null || (series.points !== true && series.x[found] !== step)) return null;
    return found;
  }

  // spec: { title, format, low, high, large, series: [{ label, colour, x, y, lower, upper, faint, points, quiet }], flags }
  class Chart {
    constructor(spec, on) {
      this.on = on;
      this.plot = element("div", { class: "plot" });
      this.now = element("span", { class: "now" });
      this.figure = element(
        "figure",
        { class: spec.large ? "card large" : "card" },
        element("figcaption", {}, element("span", { class: "title" }, spec.title), this.now),
        this.plot,
      );
      this.cursor = element("div", { class: "cursor", hidden: true });
      this.spec = spec;
      this.plot.addEventListener("pointermove", (event) => on.hover(this._stepAt(event)));
      this.plot.addEventListener("pointerleave", () => on.hover(null));
      this.plot.addEventListener("click", (event) => on.choose(this._stepAt(event)));
    }

    async draw() {
      const { spec } = this, { Plotting } = Bokeh;
      const [first, last] = this._range();
      const plot = Plotting.figure({
        ...FRAME, sizing_mode: "stretch_both", toolbar_location: null, tools: [], outline_line_color: null,
        background_fill_color: null, border_fill_color: null, x_range: new Bokeh.Range1d({ start: first, end: last }),
        y_range: this._heights(), output_backend: "canvas",
      });
      this._axes(plot);
      this.sources = spec.series.map((series) => this._series(plot, series));
      this.plot.replaceChildren(this.cursor);
      this.plot.setAttribute("role", "img");
      this.plot.setAttribute("aria-label", this._words());
      const host = element("div", { style: "position:absolute;inset:0", "aria-hidden": "true" });
      // Above what Bokeh draws, so that it need not look after the pointer.
      this.plot.append(host, element("div", { class: "shield" }));
      this.view = await Plotting.show(plot, host);
      this.model = plot;
      this._flags();
      this.show(this.step ?? last, false);
    }

    _range() {
      const all = this.spec.series.flatMap((series) => [series.x[0], series.x[series.x.length - 1]]).filter((x) => x !== undefined);
      const first = Math.min(...all), last = Math.max(...all);
      return first === last ? [first - 1, last + 1] : [first, last];
    }

    _heights() {
      const { spec } = this;
      const values = spec.series.flatMap((series) => [...series.y, ...(series.lower ?? []), ...(series.upper ?? [])]).filter(Number.isFinite);
      let low = spec.low ?? Math.min(...values), high = spec.high ?? Math.max(...values);
      if (!(high > low)) [low, high] = [spec.low ?? low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
      const room = 0.06 * (high - low);
      return new Bokeh.Range1d({ start: spec.low === undefined ? low - room : low, end: high + room });
    }

    _axes(plot) {
      const muted = page.colour("muted"), line = page.colour("line");
      const text = { axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null, major_label_text_color: muted,
        major_label_text_font: "system-ui, sans-serif", major_label_text_font_size: "11px" };
      for (const axis of [...plot.below, ...plot.left]) axis.setv(text);
      for (const axis of plot.below) axis.ticker = new Bokeh.BasicTicker({ desired_num_ticks: 5, min_interval: 1 });
      for (const axis of plot.left) {
        axis.ticker = new Bokeh.BasicTicker({ desired_num_ticks: this.spec.large ? 6 : 4 });
        if (this.spec.format === "percent") axis.formatter = new Bokeh.NumeralTickFormatter({ format: "0 %" });
      }
      for (const grid of plot.center) grid.setv({ grid_line_color: grid.dimension === 1 ? line : null });
    }

    _data(series) {
      const empty = series.x.map(() => NaN);
      return { x: series.x, y: clean(series.y), lower: series.lower ? clean(series.lower) : empty, upper: series.upper ? clean(series.upper) : empty };
    }

    _series(plot, series) {
      const colour = page.colour(series.colour), source = new Bokeh.ColumnDataSource({ data: this._data(series) });
      const at = { x: { field: "x" }, y: { field: "y" } };
      if (series.upper && series.points)
        plot.segment({ field: "x" }, { field: "lower" }, { field: "x" }, { field: "upper" }, { source, line_color: colour, line_width: 1.5, line_alpha: 0.55 });
      else if (series.upper)
        plot.varea({ field: "x" }, { field: "lower" }, { field: "upper" }, { source, fill_color: colour, fill_alpha: 0.16 });
      plot.line(at.x, at.y, { source, line_color: colour, line_width: series.faint ? 1 : 2, line_alpha: series.faint ? 0.3 : 1, line_join: "round" });
      if (series.points || series.x.length === 1)
        plot.scatter(at.x, at.y, { source, size: this.spec.large ? 7 : 5, fill_color: colour, line_color: page.colour("panel") });
      return source;
    }

    // New points of the same series, while training goes on.
    update(spec) {
      this.spec = spec;
      if (!this.model || this.sources.length !== spec.series.length) return this.draw();
      spec.series.forEach((series, place) => { this.sources[place].data = this._data(series); });
      const [start, end] = this._range(), heights = this._heights();
      this.model.x_range.setv({ start, end });
      this.model.y_range.setv({ start: heights.start, end: heights.end });
      this._flags();
      return this.show(this.step, false);
    }

    _box() {
      const box = this.view?.frame?.bbox;
      return box ? { left: box.left, right: box.right, top: box.top, height: box.height } : null;
    }

    _stepAt(event) {
      const box = this._box();
      if (!box) return null;
      const [first, last] = this._range();
      const share = (event.clientX - this.plot.getBoundingClientRect().left - box.left) / (box.right - box.left);
      return Math.round(first + Math.min(1, Math.max(0, share)) * (last - first));
    }

    _place(mark, step) {
      const box = this._box();
      if (!box) return;
      const [first, last] = this._range();
      mark.style.left = `${box.left + ((step - first) / (last - first)) * (box.right - box.left)}px`;
      mark.style.top = `${box.top}px`;
      mark.style.height = `${box.height}px`;
      mark.hidden = step < first || step > last;
    }

    _flags() {
      for (const old of this.plot.querySelectorAll(".flag")) old.remove();
      for (const step of this.spec.flags ?? []) {
        const flag = element("div", { class: "flag" });
        this.plot.append(flag);
        this._place(flag, step);
      }
    }

    resized() {
      this._flags();
      this._place(this.cursor, this.step);
    }

    // Put the cursor at a step, and its values in the heading.
    show(step, hovered) {
      this.step = step;
      this._place(this.cursor, step);
      this.cursor.classList.toggle("hover", hovered);
      this.now.replaceChildren(...this.spec.series.filter((series) => !series.quiet).map((series) => this._value(series, step)));
    }

    _shown(value) {
      return this.spec.format === "percent" ? page.percent(value) : page.figure(value);
    }

    _value(series, step) {
      const place = valueAt(series, step);
      const interval = place !== null && series.upper?.[place] !== undefined && series.points
        ? ` (${this._shown(series.lower[place])} to ${this._shown(series.upper[place])})` : "";
      return element("span", {}, element("i", { class: "dot", style: `background:var(--${series.colour})` }),
        series.label ? `${series.label} ` : "", element("b", {}, place === null ? "–" : this._shown(series.y[place])), interval);
    }

    _words() {
      return this.spec.series.filter((series) => !series.quiet && series.y.length).map((series) => {
        const known = series.y.filter((value) => value !== null && value !== undefined);
        return `${this.spec.title}${series.label ? `, ${series.label}` : ""}: ${this._shown(known[0])} at first, ${this._shown(known[known.length - 1])} at last`;
      }).join("; ");
    }
  }
  page.Chart = Chart;
})();
