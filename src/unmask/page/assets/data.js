"use strict";
// What the page knows: the values of its runs, and packed records that are decoded when they are shown.
window.unmaskPage = (() => {
  const page = { data: JSON.parse(document.getElementById("page-data").textContent), live: false };
  const KINDS = {
    uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int16: Int16Array, int32: Int32Array,
    float16: Uint16Array, float32: Float32Array,
  };
  const KEPT = 24; // decoded records in memory
  const decoded = new Map();

  let halves = null; // all numbers of 16 bits, by their bits

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }

  async function inflated(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  function unpacked(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const heads = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    return heads.map(({ about, arrays }) => {
      const found = {};
      for (const [name, [kind, shape, place]] of Object.entries(arrays)) {
        const size = shape.reduce((product, each) => product * each, 1);
        let values = new KINDS[kind](buffer, 4 + length + place, size);
        if (kind === "float16") {
          halves ??= Float32Array.from({ length: 65536 }, (_, bits) => half(bits));
          values = Float32Array.from(values, (bits) => halves[bits]);
        }
        found[name] = { shape, values };
      }
      return { about, arrays: found };
    });
  }

  async function bytesOf(name) {
    const element = document.getElementById(`blob-${name}`);
    if (element) return Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    const answer = await fetch(`record/${name}`);
    if (!answer.ok) throw new Error(`record ${name}: ${answer.status}`);
    return new Uint8Array(await answer.arrayBuffer());
  }

  // The groups of a record, "step_5" or "evaluation_50".
  page.load = (name) => {
    if (!decoded.has(name)) {
      decoded.set(name, bytesOf(name).then(inflated).then(unpacked));
      if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(name);
  };

  page.element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };

  page.figure = (value, digits = 3) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1);
    return Number(value.toPrecision(digits)).toString();
  };
  page.counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  page.signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + page.figure(Math.abs(value));
  page.percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);

  // Text that a model wrote, as it is shown: what would act on the page's own text is made visible.
  const ACTS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
  page.visible = (text) =>
    text
      .replace(ACTS, (sign) => {
        const code = sign.codePointAt(0);
        return code < 32 ? String.fromCodePoint(0x2400 + code) : `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
      })
      .replace(/\n/g, "⏎\n")
      .replace(/\t/g, "⇥\t");
  return page;
})();
