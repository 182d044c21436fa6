// The pace view: tokens over their positions, where the last answer's time went, and what the engine does now.

import { $, count, h, ms } from './dom.js';
import { bar, Plot } from './plot.js';

const REFRESH_MS = 1000;
const DRAW_MS = 200;

/** Milliseconds that memory alone takes for a step over `context` tokens; null when the server did not measure. */
export function wallOf(known) {
  if (!known || !(known.read_gb_s > 0)) return null;
  const bytesPerMs = known.read_gb_s * 1e6;
  const weights = known.weight_bytes / bytesPerMs;
  const kv = (context) => (known.kv_bytes_per_token * context) / bytesPerMs;
  return Object.assign((context) => weights + kv(context), { weights, kv });
}

/** Where an answer's time went, in ms: [queue, prefill, weights, keys and values, the rest]. */
export function splitOf({ timings, pace }, wall) {
  const { queue_ms: queue = 0, prefill_ms: prefill = 0, decode_ms: decode = 0 } = timings;
  if (!wall) return { queue, prefill, weights: 0, kv: 0, rest: decode };
  let weights = wall.weights * pace.at.length;
  let kv = pace.at.reduce((sum, at) => sum + wall.kv(at), 0);
  const over = (weights + kv) / decode;
  if (over > 1) {
    weights /= over;
    kv /= over;
  }
  return { queue, prefill, weights, kv, rest: Math.max(0, decode - weights - kv) };
}

export class Pace {
  /** api: the server; trouble: told of a problem that keeps the figures away. */
  constructor(api, trouble) {
    this.api = api;
    this.trouble = trouble;
    this.stats = null;
    this.wall = null;
    this.messages = [];
    this.plot = new Plot($('plot'), (point, wall, aloud) => this.#read(point, wall, aloud));
    this.due = 0;
    this.#legend();
    this.#tick();
  }

  /** The answers whose tokens are shown; the last one stands out. */
  show(messages) {
    this.messages = messages.filter((m) => m.role === 'assistant' && m.pace?.ms.length);
    this.#soon();
    const last = messages.findLast((m) => m.role === 'assistant' && m.timings);
    if (last !== this.last) {
      this.last = last;
      this.#showLast();
    }
  }

  get visible() {
    return !document.hidden && $('pace').offsetParent !== null;
  }

  #soon() {
    if (this.due) return;
    this.due = setTimeout(() => {
      this.due = 0;
      this.draw();
    }, DRAW_MS);
  }

  draw() {
    if (!this.visible) return;
    const newest = this.messages.at(-1);
    const points = [];
    for (const message of this.messages) {
      message.pace.at.forEach((at, i) => points.push({ at, ms: message.pace.ms[i], last: message === newest }));
    }
    points.sort((a, b) => a.at - b.at);
    this.plot.show(points, this.wall);
    const recent = newest ? newest.pace.ms.slice(-24) : [];
    const mean = recent.reduce((sum, x) => sum + x, 0) / recent.length;
    $('pace-note').textContent = recent.length ? `${ms(mean)} of late` : '';
  }

  #legend() {
    const wall = this.wall !== null;
    const item = (kind, text) => h('li', {}, h('i', { class: `key ${kind}`, 'aria-hidden': 'true' }), text);
    $('legend').replaceChildren(
      item('dot', 'this answer'),
      item('dot old', 'earlier answers'),
      ...(wall ? [item('line', 'the wall: reading weights and cache once')] : []),
    );
  }

  #read(point, wall, aloud) {
    const reading = $('reading');
    reading.setAttribute('aria-live', aloud ? 'polite' : 'off');
    if (!point) {
      reading.textContent = '';
      return;
    }
    const beside = wall ? `, ${(point.ms / wall).toFixed(1)} times the wall (${ms(wall)})` : '';
    reading.textContent = `Position ${count(point.at)}: ${ms(point.ms)}${beside}`;
  }

  #showLast() {
    const { last, wall } = this;
    if (!last) {
      $('split').replaceChildren(h('p', { class: 'fine' }, 'Nothing was answered yet.'));
      $('last').replaceChildren();
      return;
    }
    const split = splitOf(last, wall);
    const parts = [
      ['Queue', split.queue, 'queue'],
      ['Prefill', split.prefill, 'prefill'],
      ['Weights', split.weights, 'weights'],
      ['Keys and values', split.kv, 'kv'],
      [wall ? 'Host and other' : 'Decode', split.rest, 'rest'],
    ].filter(([, value], i) => wall || i < 2 || i > 3).map(([name, value, kind]) => ({ name, value, kind, text: ms(value) }));
    const label = `Time of the last answer: ${parts.map((p) => `${p.name} ${p.text}`).join(', ')}`;
    $('split').replaceChildren(...bar(parts, label));
    const { timings, usage } = last;
    figures('last', [
      ['Tokens a second', timings.decode_tok_s ? timings.decode_tok_s.toFixed(1) : 'one token only'],
      ['First token after', ms(timings.ttft_ms)],
      ['Prompt', `${count(usage?.prompt_tokens ?? 0)} tokens`],
      ['of them cached', count(timings.cached_tokens)],
      ['Prompt tokens a second', timings.prompt_tok_s ? count(timings.prompt_tok_s) : 'all cached'],
      ['Answer', `${count(usage?.completion_tokens ?? 0)} tokens`],
    ]);
  }

  async #tick() {
    if (this.visible) await this.refresh();
    setTimeout(() => this.#tick(), REFRESH_MS);
  }

  /** Fetches the engine's figures once. */
  async refresh() {
    try {
      this.stats = await this.api.get('v1/engine/stats');
    } catch (error) {
      this.stats = null;
      this.trouble(error);
      figures('now', [['State', error.title ?? 'unknown']]);
      return;
    }
    this.trouble(null);
    const had = this.wall !== null;
    this.wall = wallOf(this.stats.wall);
    if (had !== (this.wall !== null)) {
      this.#soon();
      this.#legend();
      this.#showLast();
    }
    this.#showNow();
  }

  #showNow() {
    const { stats } = this;
    const rows = [
      ['Running', count(stats.running ?? 0)],
      ['Waiting', count(stats.waiting ?? 0)],
      ['Tokens a second', stats.running ? stats.tok_s.toFixed(1) : 'idle'],
      ['Answers given way', stats.preemptions],
      ['Failed steps', stats.faults],
    ];
    figures('now', rows.filter(([name, value], i) => i < 3 || value > 0).map(([name, value]) => [name, String(value)]));
    const pages = stats.kv_pages;
    if (pages) {
      const part = (name, value, kind) => ({ name, value, kind, text: count(value) });
      const parts = [part('Pages in use', pages.in_use, 'weights'), part('Cached', pages.cached, 'kv'), part('Free', pages.free, 'free')];
      $('cache').replaceChildren(...bar(parts, `Cache: ${pages.in_use} pages in use, ${pages.cached} cached, ${pages.free} free`));
    }
    const { model, wall } = stats;
    const memory = wall ? ` Memory is read at ${wall.read_gb_s.toFixed(1)} GB/s; a step reads ${(wall.weight_bytes / 1e6).toFixed(0)} MB of weights and ${(wall.kv_bytes_per_token / 1e3).toFixed(1)} kB a token of context.` : '';
    $('machine').textContent = `${model.isa}, ${model.threads} threads, cache in ${model.kv}, context ${count(model.context_length)}.${memory}`;
  }
}

function figures(id, rows) {
  $(id).replaceChildren(...rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}
