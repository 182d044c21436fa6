// The plot of milliseconds a token over the token's position, with the machine's wall beneath. SVG, no styles of its own.

import { count, h, ms, s } from './dom.js';

const LEFT = 40;
const RIGHT = 10;
const TOP = 22;
const BOTTOM = 34;

/** A round step that cuts `span` into about `parts`. */
function stepOf(span, parts) {
  const rough = span / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((m) => m * power >= rough);
}

export class Plot {
  /** `reading` is told what lies under the pointer. */
  constructor(root, reading) {
    this.root = root;
    this.reading = reading;
    this.points = [];
    this.wall = null;
    this.svg = s('svg', { role: 'img', tabindex: '0', 'aria-label': 'No tokens yet' });
    this.layer = s('g');
    this.cursor = s('g', { class: 'cursor', visibility: 'hidden' }, s('line', {}), s('circle', { r: 4 }));
    this.svg.append(this.layer, this.cursor);
    root.append(this.svg);
    this.chosen = null;
    this.svg.addEventListener('pointermove', (e) => this.#point(e.offsetX));
    this.svg.addEventListener('pointerleave', () => this.#choose(null));
    this.svg.addEventListener('blur', () => this.#choose(null));
    this.svg.addEventListener('keydown', (e) => this.#key(e));
    new ResizeObserver(() => this.draw()).observe(root);
  }

  /** points: [{at, ms, last}] in order of position; wall: position to ms, or null; limit: the context's length. */
  show(points, wall, limit) {
    this.points = points;
    this.wall = wall;
    this.limit = limit;
    this.draw();
  }

  draw() {
    const width = this.root.clientWidth;
    const height = this.root.clientHeight;
    if (!width || !height) return;
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.size = { width, height };
    this.#scales();
    this.layer.replaceChildren(...this.#axes(), ...this.#marks());
    this.#describe();
    if (this.chosen !== null) this.#choose(Math.min(this.chosen, this.points.length - 1));
  }

  #scales() {
    const { width, height } = this.size;
    const { points, wall } = this;
    const first = points.length ? points[0].at : 0;
    const last = points.length ? points.at(-1).at : 0;
    const span = Math.max(64, last - first);
    const step = stepOf(span, 4);
    const x0 = Math.max(0, Math.floor(first / step) * step);
    const x1 = Math.max(x0 + step, Math.ceil(Math.max(last, first + 48) / step) * step);
    const sorted = points.map((p) => p.ms).sort((a, b) => a - b);
    const high = sorted.length ? Math.min(sorted.at(-1), 1.6 * sorted[Math.floor(0.95 * (sorted.length - 1))]) : 50;
    const top = Math.max(high, wall ? 1.25 * wall(x1) : 0, 1e-3);
    const rise = stepOf(top * 1.08, 4);
    this.x = { from: x0, to: x1, step, px: (v) => LEFT + ((v - x0) / (x1 - x0)) * (width - LEFT - RIGHT) };
    const y1 = Math.ceil((top * 1.04) / rise) * rise;
    this.y = { to: y1, step: rise, px: (v) => height - BOTTOM - (Math.min(v, y1) / y1) * (height - TOP - BOTTOM) };
  }

  #axes() {
    const { width, height } = this.size;
    const out = [];
    for (let v = 0; v <= this.y.to * 1.001; v += this.y.step) {
      const y = this.y.px(v);
      out.push(s('line', { class: v === 0 ? 'axis' : 'grid', x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      out.push(s('text', { x: LEFT - 6, y: y + 3.5, class: 'tick end' }, `${Number(v.toPrecision(3))}`));
    }
    for (let v = this.x.from; v <= this.x.to * 1.001; v += this.x.step) {
      const x = this.x.px(v);
      const edge = v === this.x.from ? '' : v >= this.x.to ? ' end' : ' middle';
      out.push(s('line', { class: 'axis', x1: x, x2: x, y1: height - BOTTOM, y2: height - BOTTOM + 4 }));
      out.push(s('text', { x, y: height - BOTTOM + 16, class: `tick${edge}` }, count(v)));
    }
    out.push(s('text', { x: width - RIGHT, y: height - 3, class: 'unit end' }, 'position in the context, tokens'));
    out.push(s('text', { x: 8, y: 9, class: 'unit' }, 'milliseconds a token'));
    return out;
  }

  #marks() {
    const old = [];
    const now = [];
    const over = [];
    const many = Math.max(1, Math.floor(this.points.length / 4000));
    this.points.forEach((p, i) => {
      if (many > 1 && i % many && p.ms <= this.y.to) return;
      const place = `M${this.x.px(p.at).toFixed(1)} ${this.y.px(p.ms).toFixed(1)}`;
      if (p.ms > this.y.to) over.push(`${place}l-3.5 6h7z`);
      else (p.last ? now : old).push(`${place}h0`);
    });
    const out = [];
    if (this.wall) {
      const n = 48;
      const at = Array.from({ length: n + 1 }, (_, i) => this.x.from + (i / n) * (this.x.to - this.x.from));
      const line = at.map((v) => `${this.x.px(v).toFixed(1)} ${this.y.px(this.wall(v)).toFixed(1)}`).join('L');
      const ground = this.y.px(0);
      out.push(s('path', { class: 'below', d: `M${this.x.px(this.x.from)} ${ground}L${line}L${this.x.px(this.x.to)} ${ground}Z` }));
      out.push(s('path', { class: 'wall', d: `M${line}` }));
    }
    if (old.length) out.push(s('path', { class: 'dots old', d: old.join('') }));
    if (now.length) out.push(s('path', { class: 'dots', d: now.join('') }));
    if (over.length) out.push(s('path', { class: 'over', d: over.join('') }, s('title', {}, 'off the scale')));
    if (!this.points.length) {
      const { width, height } = this.size;
      out.push(s('text', { class: 'empty middle', x: (LEFT + width - RIGHT) / 2, y: (height - BOTTOM) / 2 }, 'every token of an answer becomes a dot'));
    }
    return out;
  }

  #describe() {
    const { points, wall } = this;
    if (!points.length) {
      this.svg.setAttribute('aria-label', 'Milliseconds a token by position: no tokens yet');
      return;
    }
    const sorted = points.map((p) => p.ms).sort((a, b) => a - b);
    const middle = sorted[Math.floor(sorted.length / 2)];
    const at = points.at(-1).at;
    const beside = wall ? `; the wall at position ${count(at)} is ${ms(wall(at))}` : '';
    const text = `Milliseconds a token by position: ${count(points.length)} tokens, positions ${count(points[0].at)} to ${count(at)}, median ${ms(middle)}${beside}. Arrow keys read single tokens.`;
    this.svg.setAttribute('aria-label', text);
  }

  #point(offset) {
    if (!this.points.length) return;
    const { width } = this.size;
    const at = this.x.from + ((offset - LEFT) / (width - LEFT - RIGHT)) * (this.x.to - this.x.from);
    let low = 0;
    let high = this.points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.points[middle].at < at) low = middle + 1;
      else high = middle;
    }
    if (low > 0 && at - this.points[low - 1].at < this.points[low].at - at) low -= 1;
    this.#choose(low);
  }

  #key(event) {
    const last = this.points.length - 1;
    if (last < 0) return;
    const from = this.chosen ?? last;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last, PageUp: from - 10, PageDown: from + 10 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#choose(Math.max(0, Math.min(last, this.chosen === null ? last : to)), true);
  }

  #choose(index, aloud = false) {
    this.chosen = index;
    const p = index === null ? null : this.points[index];
    this.cursor.setAttribute('visibility', p ? 'visible' : 'hidden');
    if (p) {
      const x = this.x.px(p.at);
      const [line, dot] = this.cursor.children;
      for (const [name, value] of Object.entries({ x1: x, x2: x, y1: TOP, y2: this.size.height - BOTTOM })) line.setAttribute(name, value);
      dot.setAttribute('cx', x);
      dot.setAttribute('cy', this.y.px(p.ms));
    }
    this.reading(p, p && this.wall ? this.wall(p.at) : null, aloud);
  }
}

/** A bar cut into parts: [{name, value, kind, text}]; parts without value are left out. */
export function bar(parts, label) {
  const total = parts.reduce((sum, part) => sum + part.value, 0);
  const shown = parts.filter((part) => part.value > 0);
  const pieces = shown.map((part) => {
    const piece = h('span', { class: `piece ${part.kind}`, title: `${part.name}: ${part.text}` });
    piece.style.flexGrow = String(part.value / total);
    return piece;
  });
  const keys = parts.map((part) => h('li', {}, h('i', { class: `key ${part.kind}`, 'aria-hidden': 'true' }), h('span', {}, part.name), h('b', {}, part.text)));
  return [h('div', { class: 'parts', role: 'img', 'aria-label': label }, ...pieces), h('ul', { class: 'keys' }, ...keys)];
}
