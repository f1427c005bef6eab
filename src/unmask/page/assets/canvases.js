"use strict";
// A recorded group: its canvases step by step, and the numbers of its tokens. N completions of C columns.
(() => {
  const page = window.unmaskPage;
  const EMPTY = { shape: [0], values: new Float32Array(0) };

  class Group {
    constructor({ about, arrays }) {
      this.about = about;
      this.arrays = arrays;
      const array = (name) => arrays[name] ?? EMPTY;
      [this.samples, this.columns] = array("token_NC").shape;
      this.tokens = array("token_NC").values;
      this.revealed = array("revealed_at_NC").values;
      this.confidence = array("confidence_NC").values;
      this.logp = array("logp_NC").values;
      this.lengths = array("length_N").values;
      this.rewards = array("reward_N").values;
      this.guesses = array("guess_SZNC");
      this.guessConfidence = array("guess_confidence_SZNC").values;
      this.guessRewards = array("guess_reward_NE");
      this.canvases = array("canvas_SNC").values;
      this.snapshots = this._snapshots(array("step_SN"));
      this.steps = this._steps();
      this.rows = this._rows(array);
    }

    // For each completion, the number of the snapshot before each step that has one.
    _snapshots({ shape, values }) {
      const found = Array.from({ length: this.samples }, () => new Map());
      const count = values.length ? shape[0] : 0;
      for (let place = 0; place < count; place++)
        for (let sample = 0; sample < this.samples; sample++) found[sample].set(values[place * this.samples + sample], place);
      return found;
    }

    // Denoising steps that can be gone through; 0 where the record does not tell.
    _steps() {
      let last = -1;
      for (const step of this.revealed) if (step > last) last = step;
      if (last < 0) return 0;
      const whole = this.snapshots.every((each) => each.size >= this.about.steps);
      return this.about.remasking && !whole ? 0 : Math.max(this.about.steps, last + 1);
    }

    text(token) {
      return this.about.vocabulary[token];
    }

    // The token in a column before a step (`steps`: of the finished completion); the mask is `about.mask`.
    token(sample, step, column) {
      const at = sample * this.columns + column;
      if (step >= this.steps) return this.tokens[at];
      if (!this.about.remasking) return this.revealed[at] >= step ? this.about.mask : this.tokens[at];
      const place = this.snapshots[sample].get(step);
      return place === undefined ? this.tokens[at] : this.canvases[(place * this.samples + sample) * this.columns + column];
    }

    isMasked(sample, step, column) {
      return this.token(sample, step, column) === this.about.mask;
    }

    // What the model guessed in a column at a step: its first guess there, or undefined.
    guess(sample, step, column) {
      const place = this.snapshots[sample].get(step);
      if (place === undefined || !this.guesses.values.length) return undefined;
      const at = (place * this.guesses.shape[1] * this.samples + sample) * this.columns + column;
      return { token: this.guesses.values[at], confidence: this.guessConfidence[at] / 255 };
    }

    get hasGuesses() {
      return this.steps > 0 && this.guesses.values.length > 0 && this.snapshots.every((each) => each.size >= this.steps);
    }

    // Rewards of what was guessed before each step, with that of the end; null where no step was guessed at.
    rewardsByStep(sample) {
      if (!this.hasGuesses) return null;
      const each = this.guesses.shape[1];
      const found = [];
      for (let step = 0; step < this.steps; step++)
        found.push(this.guessRewards.values[sample * this.guessRewards.shape[1] + this.snapshots[sample].get(step) * each]);
      return [...found, this.rewards[sample]];
    }

    remasks() {
      const counts = new Uint8Array(this.samples * this.columns);
      if (!this.about.remasking) return counts;
      for (let sample = 0; sample < this.samples; sample++)
        for (let column = 0; column < this.columns; column++)
          for (let step = 1; step < this.steps; step++)
            counts[sample * this.columns + column] +=
              this.isMasked(sample, step, column) && !this.isMasked(sample, step - 1, column);
      return counts;
    }

    _rows(array) {
      const { values: samples } = array("row_sample_R");
      const masked = array("row_masked_RB"), scored = array("row_scored_RB");
      const weights = array("row_weight_W").values, targets = array("row_target_W").values;
      let place = 0;
      return Array.from(samples, (sample, number) => {
        const has = (bits, column) => (bits.values[number * bits.shape[1] + (column >> 3)] >> (column & 7)) & 1;
        const term = array("row_term_R").values[number], advantage = array("row_advantage_R").values[number];
        const credit = new Map();
        const target = new Map();
        for (let column = 0; column < this.columns; column++)
          if (has(scored, column)) {
            credit.set(column, advantage * weights[place] * (this.about.terms?.[term]?.coefficient ?? 1));
            target.set(column, targets[place++]);
          }
        const isMasked = (column) => has(masked, column) === 1;
        return { sample, term, advantage, promptMasks: array("row_prompt_masks_R").values[number], isMasked, credit, target };
      });
    }

    // Weight in the loss of each token, summed over the rows of the first update.
    credits() {
      const sums = new Float32Array(this.samples * this.columns);
      for (const row of this.rows) for (const [column, credit] of row.credit) sums[row.sample * this.columns + column] += credit;
      return sums;
    }

    // The advantage of a completion in a term: [lowest, highest] of its rows; null where it has none.
    advantage(sample, term) {
      const found = this.rows.filter((row) => row.sample === sample && row.term === term).map((row) => row.advantage);
      return found.length ? [Math.min(...found), Math.max(...found)] : null;
    }
  }
  page.Group = Group;
})();
