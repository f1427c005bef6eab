"use strict";
// What the method trains of a completion: each row's masked input, and how much each scored token weighs.
(() => {
  const page = window.unmaskPage;
  const { element } = page;
  const MOST_ROWS = 24; // until more are asked for
  const NOTHING = "No token of this completion carries gradient in this step's first update: nothing of it has an advantage that is not 0.";

  page.Trained = class {
    constructor(lead, choice, host) {
      Object.assign(this, { lead, choice, host, sample: 0, term: 0 });
    }

    show(group) {
      this.group = group;
      this.limit = MOST_ROWS;
      this.sample = Math.min(this.sample, group.samples - 1);
      const terms = group.about.terms ?? [];
      this.term = Math.min(this.term, terms.length - 1);
      const rows = (sample, term) => group.rows.filter((row) => row.sample === sample && row.term === term).length;
      const option = (value, text, chosen) => element("option", { value, selected: value === chosen }, text);
      const of = (name, size, chosen, text) => element("label", {}, `${name} `, element("select", { "data-choice": name, onchange: (event) => {
        this[name] = Number(event.target.value);
        this.show(this.group);
      } }, ...Array.from({ length: size }, (_, value) => option(value, text(value), chosen))));
      const completion = of("sample", group.samples, this.sample, (sample) => `${sample + 1} · reward ${page.figure(group.rewards[sample])} · ${page.counted(rows(sample, this.term), "row")}`);
      completion.firstChild.textContent = "Completion ";
      const term = terms.length > 1 ? of("term", terms.length, this.term, (each) => terms[each].rows) : null;
      if (term) term.firstChild.textContent = "Term of the loss ";
      this.choice.replaceChildren(...[completion, term].filter(Boolean));
      this._lead(terms[this.term]);
      this._draw();
    }

    _lead(term) {
      this.lead.textContent = term
        ? `Rows are ${term.rows}; a unit, which has one advantage, is a ${term.unit}` +
          (term.coefficient === 1 ? "." : `; this term counts ${page.figure(term.coefficient)} times.`) +
          " Each row is an input of the model: its masks are hatched, and its scored tokens are coloured by advantage × weight × coefficient."
        : "";
    }

    _draw() {
      const { group } = this;
      const rows = group.rows.filter((row) => row.sample === this.sample && row.term === this.term);
      if (!rows.length) return this.host.replaceChildren(element("p", { class: "muted" }, NOTHING));
      let most = 0;
      for (const row of group.rows) if (row.term === this.term) for (const credit of row.credit.values()) most = Math.max(most, Math.abs(credit));
      const rest = rows.length - this.limit;
      const more = rest > 0 ? element("button", { type: "button", onclick: () => { this.limit = Infinity; this._draw(); } }, `Show ${page.counted(rest, "more row")}`) : null;
      this.host.classList.toggle("grid", Boolean(group.about.columns));
      this.host.replaceChildren(...rows.slice(0, this.limit).map((row, number) => this._row(row, number, most)), ...(more ? [more] : []));
    }

    _row(row, number, most) {
      const { group } = this, start = row.sample * group.columns;
      let masks = 0;
      const tokens = element("div", { class: "tokens" });
      if (group.about.columns) tokens.style.gridTemplateColumns = `repeat(${group.about.columns}, auto)`;
      for (let column = 0; column < group.columns; column++) {
        const isMasked = row.isMasked(column), credit = row.credit.get(column);
        masks += isMasked;
        const token = row.target.get(column) ?? group.tokens[start + column];
        const span = element("span", { class: credit === undefined && isMasked ? "m" : credit === undefined ? "o" : "" }, page.visible(group.text(token)));
        if (credit !== undefined) {
          span.style.backgroundColor = page.background("credit", most ? credit / most : 0);
          span.title = `${page.visible(group.text(token))}: ${page.signed(credit)}`;
        }
        tokens.append(span);
      }
      const prompt = row.promptMasks ? `, ${row.promptMasks} of the prompt` : "";
      return element("article", { class: group.about.columns ? "row as-grid" : "row" },
        element("header", {}, element("span", {}, `row ${number + 1}`), element("span", {}, `${masks} masked${prompt}`),
          element("span", {}, `${row.credit.size} scored`), element("span", {}, "advantage ", element("b", { class: row.advantage > 0 ? "up" : "down" }, page.signed(row.advantage)))),
        tokens);
    }
  };
})();
