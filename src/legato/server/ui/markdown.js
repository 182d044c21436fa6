// Markdown to a tree, and the tree to elements. HTML in it stays text; nothing here parses HTML.
//
// Blocks: paragraphs, headings, fenced code, quotes, lists (nested, with tasks), tables, rules.
// Spans: code, strong, emphasis, struck, links, bare addresses; images are shown as links, since nothing is fetched.
// The end of a line is one, as in all chats: verses stay verses.

import { copyButton, h } from './dom.js';

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])(?:( {1,4})(.*)|)$/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MAX_DEPTH = 8;

/** The blocks of a text: [{type, raw, ...}]. `raw` is the same as long as the block is. */
export function parse(text, depth = 0) {
  const lines = text.replace(/\r\n?/g, '\n').replace(/\t/g, '    ').split('\n');
  const out = [];
  let at = 0;
  const take = (end, block) => {
    out.push({ ...block, raw: lines.slice(at, end).join('\n') });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at += 1;
      continue;
    }
    const reader = [fenced, heading, rule, quote, list, table].find((read) => read(lines, at, depth, take));
    if (!reader) paragraph(lines, at, take);
  }
  return out;
}

function fenced(lines, at, depth, take) {
  const open = FENCE.exec(lines[at]);
  if (!open) return false;
  const [, fence, info] = open;
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], '').length;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const body = lines.slice(at + 1, end).join('\n');
  take(Math.min(end + 1, lines.length), { type: 'code', text: body, language: info.trim().split(/\s/)[0] });
  return true;
}

function heading(lines, at, depth, take) {
  const found = HEADING.exec(lines[at]);
  if (!found) return false;
  take(at + 1, { type: 'heading', level: found[1].length, text: (found[2] ?? '').replace(/\s+#+\s*$/, '') });
  return true;
}

function rule(lines, at, depth, take) {
  if (!RULE.test(lines[at])) return false;
  take(at + 1, { type: 'rule' });
  return true;
}

function quote(lines, at, depth, take) {
  if (!QUOTE.test(lines[at]) || depth >= MAX_DEPTH) return false;
  let end = at;
  while (end < lines.length && (QUOTE.test(lines[end]) || (lines[end].trim() && !starts(lines, end)))) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, '')).join('\n');
  take(end, { type: 'quote', children: parse(inner, depth + 1) });
  return true;
}

function list(lines, at, depth, take) {
  const first = ITEM.exec(lines[at]);
  if (!first || depth >= MAX_DEPTH) return false;
  const ordered = /\d/.test(first[2]);
  const kind = first[2].at(-1);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || found[2].at(-1) !== kind || RULE.test(lines[end])) break;
    const indent = found[1].length + found[2].length + (found[3]?.length ?? 1);
    const own = [found[4] ?? ''];
    end += 1;
    while (end < lines.length) {
      const line = lines[end];
      const blank = !line.trim();
      if (blank) {
        const next = lines.slice(end + 1, end + 3).find((l) => l.trim());
        if (next === undefined || next.search(/\S/) < Math.min(indent, 2)) break;
        own.push('');
      } else if (line.search(/\S/) >= Math.min(indent, 2) && !(ITEM.test(line) && line.search(/\S/) < 2)) {
        own.push(line.slice(Math.min(indent, line.search(/\S/))));
      } else if (!starts(lines, end) && !ITEM.test(line) && own.at(-1)) {
        own.push(line.trim());
      } else {
        break;
      }
      end += 1;
    }
    const gap = end;
    while (end < lines.length && !lines[end].trim()) end += 1;
    const goes = end < lines.length && ITEM.exec(lines[end])?.[2].at(-1) === kind && !RULE.test(lines[end]);
    loose ||= own.some((line, i) => !line && i < own.length - 1) || (goes && end > gap);
    items.push(own.join('\n'));
    if (!goes) {
      end = gap;
      break;
    }
  }
  const parts = items.map((item) => {
    const task = /^\[([ xX])\] /.exec(item);
    return { done: task ? task[1] !== ' ' : null, children: parse(task ? item.slice(4) : item, depth + 1) };
  });
  take(end, { type: 'list', ordered, start: ordered ? parseInt(first[2], 10) : 1, loose, items: parts });
  return true;
}

const cells = (line) => {
  const inner = line.trim().replace(/^\|/, '').replace(/(^|[^\\])\|$/, '$1');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
};

function table(lines, at, depth, take) {
  const next = lines[at + 1];
  if (!lines[at].includes('|') || next === undefined || !next.includes('-') || !DIVIDER.test(next)) return false;
  const head = cells(lines[at]);
  const align = cells(next).map((c) => (c.endsWith(':') ? (c.startsWith(':') ? 'center' : 'end') : ''));
  if (align.length !== head.length) return false;
  let end = at + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes('|')) end += 1;
  const rows = lines.slice(at + 2, end).map((line) => cells(line).slice(0, head.length));
  take(end, { type: 'table', head, align, rows });
  return true;
}

/** Whether a line begins a block that may interrupt a paragraph. */
function starts(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return item !== null && Boolean(item[4]) && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1);
}

function paragraph(lines, at, take) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !starts(lines, end)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trimStart()).join('\n');
  take(end, { type: 'paragraph', text });
}

// -- spans ------------------------------------------------------------------------------------------------------------

const ADDRESS = /https?:\/\/[^\s<>"'`]+/y;
const SAFE = new Set(['http:', 'https:', 'mailto:']);

/** An address that may be followed, or null. Only whole addresses of harmless kinds are. */
export function safeLink(address) {
  try {
    const url = new URL(address.trim());
    return SAFE.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** The spans of a line: strings and {type, children | text, href}. Each mark is looked for once, so time is linear. */
export function spans(text, depth = 0) {
  const out = [];
  let plain = '';
  let i = 0;
  const missing = new Set(); // marks known not to come again
  const push = (span) => {
    if (plain) out.push(plain);
    plain = '';
    out.push(span);
  };
  while (i < text.length) {
    const span = depth < MAX_DEPTH ? spanAt(text, i, depth, missing) : null;
    if (span) {
      push(span.node);
      i = span.end;
    } else if (text[i] === '\\' && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? '')) {
      plain += text[i + 1];
      i += 2;
    } else if (text[i] === '`') {
      const run = /`+/y;
      run.lastIndex = i;
      const found = run.exec(text)[0];
      plain += found;
      i += found.length;
    } else if (text[i] === '\n') {
      plain = plain.replace(/( +|\\)$/, '');
      push({ type: 'break' });
      i += 1;
    } else {
      plain += text[i];
      i += 1;
    }
  }
  if (plain) out.push(plain);
  return out;
}

function spanAt(text, i, depth, missing) {
  switch (text[i]) {
    case '`': return codeAt(text, i, missing);
    case '*':
    case '_': return emphasisAt(text, i, depth, missing);
    case '~': return text.startsWith('~~', i) ? between(text, i, '~~', 'struck', depth, missing) : null;
    case '!': return text[i + 1] === '[' ? linkAt(text, i + 1, depth, missing, true) : null;
    case '[': return linkAt(text, i, depth, missing, false);
    case '<': return autoAt(text, i);
    case 'h': return bareAt(text, i);
    default: return null;
  }
}

function codeAt(text, i, missing) {
  const run = /`+/y;
  run.lastIndex = i;
  const fence = run.exec(text)[0];
  if (missing.has(fence)) return null;
  for (let at = i + fence.length; ;) {
    const close = text.indexOf(fence, at);
    if (close < 0) break;
    let end = close + fence.length;
    while (text[end] === '`') end += 1;
    if (end === close + fence.length) {
      const inner = text.slice(i + fence.length, close).replaceAll('\n', ' ');
      return { node: { type: 'code', text: /^ .*[^ ].* $/.test(inner) ? inner.slice(1, -1) : inner }, end };
    }
    at = end;
  }
  missing.add(fence);
  return null;
}

const WORD = /[\p{L}\p{N}]/u;

function emphasisAt(text, i, depth, missing) {
  const mark = text[i];
  if (mark === '_' && WORD.test(text[i - 1] ?? ' ')) return null;
  for (const [size, type] of [[3, 'both'], [2, 'strong'], [1, 'emphasis']]) {
    const fence = mark.repeat(size);
    if (!text.startsWith(fence, i)) continue;
    const found = between(text, i, fence, type, depth, missing);
    if (found) return found;
  }
  return null;
}

/** The span from a fence at `i` to the run of the same mark that closes it; runs that open another are counted. */
function between(text, i, fence, type, depth, missing) {
  const begin = i + fence.length;
  if (/\s/.test(text[begin] ?? ' ') || missing.has(fence)) return null;
  const mark = fence[0];
  for (let at = begin + 1, inside = 0, tries = 0; tries < 64; tries += 1) {
    const run = text.indexOf(mark, at);
    if (run < 0) {
      missing.add(fence);
      return null;
    }
    at = run + 1;
    while (text[at] === mark) at += 1;
    const length = at - run;
    const [before, after] = [text[run - 1], text[at] ?? ' '];
    if (before === '\\') continue;
    if (/\s/.test(before) || (mark === '_' && WORD.test(after))) {
      if (!/\s/.test(after)) inside += length;
    } else if (length >= inside + fence.length && (length < 3 || inside || fence.length === 3)) {
      const close = run + inside;
      const children = spans(text.slice(begin, close), depth + 1);
      const node = type === 'both' ? { type: 'strong', children: [{ type: 'emphasis', children }] } : { type, children };
      return { node, end: close + fence.length };
    } else {
      inside = Math.max(0, inside - length);
    }
  }
  return null;
}

function linkAt(text, i, depth, missing, image) {
  if (missing.has(']')) return null;
  let level = 0;
  let close = i;
  for (; close < text.length; close += 1) {
    if (text[close] === '\\') close += 1;
    else if (text[close] === '[') level += 1;
    else if (text[close] === ']' && (level -= 1) === 0) break;
  }
  if (close >= text.length) {
    missing.add(']');
    return null;
  }
  const target = /\(\s*(?:<([^<>\n]{0,2000})>|((?:[^\s()]|\([^\s()]{0,500}\)){0,2000}))(?:\s+(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?\s*\)/y;
  target.lastIndex = close + 1;
  const found = target.exec(text);
  if (!found) return null;
  const inner = text.slice(i + 1, close);
  const href = safeLink(found[1] ?? found[2]);
  const children = image ? [`image: ${inner || (found[1] ?? found[2])}`] : spans(inner, depth + 1);
  return { node: { type: 'link', href, children }, end: target.lastIndex };
}

function autoAt(text, i) {
  const auto = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
  auto.lastIndex = i;
  const found = auto.exec(text);
  return found && { node: { type: 'link', href: safeLink(found[1]), children: [found[1]] }, end: auto.lastIndex };
}

function bareAt(text, i) {
  if (WORD.test(text[i - 1] ?? ' ')) return null;
  ADDRESS.lastIndex = i;
  const found = ADDRESS.exec(text);
  if (!found) return null;
  let address = found[0].replace(/[.,;:!?*_~]+$/, '');
  if (address.endsWith(')') && !address.includes('(')) address = address.replace(/\)+[.,;:!?]*$/, '');
  const href = safeLink(address);
  return href && { node: { type: 'link', href, children: [address] }, end: i + address.length };
}

// -- elements ---------------------------------------------------------------------------------------------------------

const TAGS = { strong: 'strong', emphasis: 'em', struck: 's' };

function inline(text) {
  return spans(text).map(spanElement);
}

function spanElement(span) {
  if (typeof span === 'string') return document.createTextNode(span);
  switch (span.type) {
    case 'break': return h('br');
    case 'code': return h('code', {}, span.text);
    case 'link': {
      const inner = span.children.map(spanElement);
      if (!span.href) return h('span', { class: 'dead', title: 'This address is not followed' }, ...inner);
      return h('a', { href: span.href, target: '_blank', rel: 'noopener noreferrer nofollow', title: span.href }, ...inner);
    }
    default: return h(TAGS[span.type], {}, ...span.children.map(spanElement));
  }
}

/** The element of one block. */
export function element(block) {
  switch (block.type) {
    case 'heading': return h(`h${Math.min(6, block.level + 2)}`, { class: `size-${block.level}` }, ...inline(block.text));
    case 'rule': return h('hr');
    case 'quote': return h('blockquote', {}, ...block.children.map(element));
    case 'code': return codeElement(block);
    case 'list': return listElement(block);
    case 'table': return tableElement(block);
    default: return h('p', {}, ...inline(block.text));
  }
}

function codeElement({ text, language }) {
  const top = h('div', { class: 'top' }, h('span', {}, language || 'text'), copyButton(() => text, 'Copy code'));
  return h('div', { class: 'code' }, top, h('pre', { tabindex: '0' }, h('code', {}, text)));
}

function listElement({ ordered, start, loose, items }) {
  const made = items.map(({ done, children }) => {
    const tight = !loose && children[0]?.type === 'paragraph';
    const inner = tight ? [...inline(children[0].text), ...children.slice(1).map(element)] : children.map(element);
    if (done === null) return h('li', {}, ...inner);
    const box = h('input', { type: 'checkbox', disabled: true, checked: done, 'aria-label': done ? 'done' : 'to do' });
    return h('li', { class: 'task' }, box, ...inner);
  });
  return ordered ? h('ol', { start: start === 1 ? null : start }, ...made) : h('ul', {}, ...made);
}

function tableElement({ head, align, rows }) {
  const row = (tag, list) => h('tr', {}, ...list.map((cell, i) => h(tag, { class: align[i] || null }, ...inline(cell))));
  return h('div', { class: 'table', tabindex: '0' }, h('table', {}, h('thead', {}, row('th', head)), h('tbody', {}, ...rows.map((r) => row('td', r)))));
}

/** Shows a growing text in `root`: blocks that did not change keep their elements. */
export class Growing {
  constructor(root) {
    this.root = root;
    this.blocks = [];
  }

  show(text) {
    const blocks = parse(text);
    let same = 0;
    while (same < blocks.length && blocks[same].raw === this.blocks[same]?.raw && blocks[same].type === this.blocks[same].type) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    this.root.append(...blocks.slice(same).map(element));
    this.blocks = blocks;
  }
}
