// Building elements. Text only ever becomes text: nothing here parses HTML.

/** An element. Properties named like "aria-label" or "data-x" become attributes, "onclick" a listener. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'class') made.className = value;
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = 'http://www.w3.org/2000/svg';

export function s(tag, props = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const $ = (id) => document.getElementById(id);

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages that came over plain HTTP from another machine have no clipboard of the modern kind.
    const area = h('textarea', { class: 'hidden', readonly: true });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    before?.focus?.();
    return done;
  }
}

/** A button that copies and says so for a moment. */
export function copyButton(text, label = 'Copy') {
  const button = h('button', { type: 'button', class: 'quiet', 'aria-label': label === 'Copy' ? 'Copy this message' : label });
  const word = label.split(' ')[0];
  button.textContent = word;
  button.addEventListener('click', async () => {
    button.textContent = (await copy(text())) ? 'Copied' : 'Not possible';
    setTimeout(() => { button.textContent = word; }, 1500);
  });
  return button;
}

export const count = (n) => Math.round(n).toLocaleString('en-US');

export function ms(value) {
  if (!Number.isFinite(value)) return 'unknown';
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 100) return `${value.toFixed(0)} ms`;
  return `${value.toFixed(value >= 10 ? 1 : 2)} ms`;
}
