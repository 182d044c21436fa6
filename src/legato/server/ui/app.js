// The page: puts the parts together, and what the keyboard does.

import { Api } from './api.js';
import { Chat } from './chat.js';
import { $, count, h } from './dom.js';
import { Pace } from './pace.js';
import { Store, titleOf } from './store.js';

const SAMPLING = [
  { name: 'temperature', label: 'Temperature', hint: '1', min: 0, max: 2, step: 0.05 },
  { name: 'top_p', label: 'Top p', hint: '1', min: 0, max: 1, step: 0.01 },
  { name: 'top_k', label: 'Top k', hint: 'all', min: 0, step: 1 },
  { name: 'min_p', label: 'Min p', hint: '0', min: 0, max: 1, step: 0.01 },
  { name: 'repetition_penalty', label: 'Repetition penalty', hint: '1', min: 0.01, max: 2, step: 0.01 },
  { name: 'presence_penalty', label: 'Presence penalty', hint: '0', min: -2, max: 2, step: 0.1 },
  { name: 'frequency_penalty', label: 'Frequency penalty', hint: '0', min: -2, max: 2, step: 0.1 },
  { name: 'max_tokens', label: 'Most tokens', hint: 'to the end', min: 1, step: 1 },
  { name: 'seed', label: 'Seed', hint: 'any', min: 0, step: 1 },
  { name: 'stop', label: 'Stop at', hint: 'nothing' },
];

const SHORTCUTS = [
  ['Enter', 'Send the message'],
  ['Shift + Enter', 'A new line'],
  ['Esc', 'Stop the answer, or close what is open'],
  ['↑', 'In an empty field: edit your last message'],
  ['Alt + N', 'New conversation'],
  ['Alt + R', 'Answer again'],
  ['Alt + C', 'Conversations'],
  ['Alt + P', 'Pace'],
  ['Alt + S', 'Settings'],
  ['Alt + D', 'Dark or light'],
  ['Alt + K', 'This list'],
  ['/', 'To the message field'],
];

const WIDE_LIST = matchMedia('(min-width: 60rem)');
const WIDE_PACE = matchMedia('(min-width: 76rem)');

const store = new Store();
const api = new Api();
api.key = store.key;
let model = '';
let context = 0;

const chat = new Chat(api, store, {
  model: () => model,
  needKey: askKey,
  changed() {
    showList();
    showContext();
    pace.show(chat.conversation.messages);
  },
  grew() {
    showContext();
    pace.show(chat.conversation.messages);
  },
});
const pace = new Pace(api, trouble);

// -- the server -------------------------------------------------------------------------------------------------------

let asked = false;

/** What the header says; called with every refresh of the figures, null when all is well. */
function trouble(problem) {
  const line = $('model');
  if (problem?.status === 401 && !asked) askKey(problem);
  const text = problem ? { 401: 'a key is needed', 503: 'not ready' }[problem.status] ?? 'no connection' : model;
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle('bad', problem !== null);
  if (problem === null && pace.stats) {
    model = pace.stats.model.name;
    context = pace.stats.model.context_length;
    line.textContent = model;
    showContext();
  }
}

/** Finds the model; asks again while the server is loading. */
async function connect() {
  await pace.refresh();
  if (!pace.stats && !$('ask-key').open) setTimeout(connect, 1500);
}

function askKey(problem) {
  asked = true;
  if ($('ask-key').open) return;
  $('ask-key-why').textContent = problem.message;
  $('ask-key-field').value = '';
  $('ask-key').showModal();
}

function useKey(key) {
  api.key = store.key = key.trim();
  asked = false;
  connect();
}

$('ask-key-form').addEventListener('submit', () => {
  useKey($('ask-key-field').value);
  if (chat.problem?.status === 401) chat.answer();
  $('composer-text').focus();
});
$('ask-key-later').addEventListener('click', () => $('ask-key').close());

// -- conversations ----------------------------------------------------------------------------------------------------

function showList() {
  const rows = store.conversations.map((c) => {
    const open = c.id === chat.conversation.id;
    const title = c.title || titleOf(c.messages[0]?.content ?? '');
    return h(
      'li',
      { class: open ? 'open' : null },
      h('button', { type: 'button', class: 'title', 'aria-current': open ? 'true' : null, onclick: () => pick(c.id) }, title),
      h('button', { type: 'button', class: 'quiet', 'aria-label': `Delete: ${title}`, onclick: (e) => remove(e.currentTarget, c.id) }, 'Delete'),
    );
  });
  $('conversations').replaceChildren(...rows);
  $('list-note').textContent = store.failed
    ? 'This browser’s storage is full or forbidden: what is said now will not be kept.'
    : 'Kept in this browser only.';
}

function pick(id) {
  const found = store.find(id);
  if (found && found !== chat.conversation) chat.open(found);
  if (!WIDE_LIST.matches) toggle('list', false);
  $('composer-text').focus();
}

/** The first click asks, the second deletes. */
function remove(button, id) {
  if (button.dataset.sure) {
    store.remove(id);
    if (chat.conversation.id === id) fresh();
    else showList();
    return;
  }
  button.dataset.sure = 'yes';
  button.textContent = 'Really?';
  setTimeout(() => {
    delete button.dataset.sure;
    button.textContent = 'Delete';
  }, 2500);
}

function fresh() {
  chat.open(store.fresh());
  if (!WIDE_LIST.matches) toggle('list', false);
  $('composer-text').focus();
}

$('new').addEventListener('click', fresh);

// -- the message field ------------------------------------------------------------------------------------------------

const field = $('composer-text');

function fit() {
  field.style.height = 'auto';
  field.style.height = `${Math.min(field.scrollHeight + 2, 0.4 * innerHeight)}px`;
}

function showContext() {
  const used = chat.conversation.messages.findLast((m) => m.usage)?.usage.total_tokens;
  $('context').textContent = used && context ? `${count(used)} of ${count(context)} tokens of context` : '';
}

$('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = field.value.trim();
  if (!text || chat.busy) return;
  field.value = '';
  fit();
  chat.send(text);
});
field.addEventListener('input', fit);
field.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $('composer').requestSubmit();
  } else if (event.key === 'ArrowUp' && !field.value && !chat.busy) {
    event.preventDefault();
    chat.editLast();
  }
});
$('stop').addEventListener('click', () => {
  chat.stop();
  field.focus();
});

// -- panels and dialogs -----------------------------------------------------------------------------------------------

function toggle(name, open = !isOpen(name), remember = true) {
  document.body.classList.toggle(`with-${name}`, open);
  $(`show-${name}`).setAttribute('aria-expanded', String(open));
  if (open && !(name === 'list' ? WIDE_LIST : WIDE_PACE).matches) {
    const other = name === 'list' ? 'pace' : 'list';
    if (!(other === 'list' ? WIDE_LIST : WIDE_PACE).matches) toggle(other, false, false);
  }
  if (name === 'pace') {
    if (remember && WIDE_PACE.matches) {
      store.settings.pace = open;
      store.keepSettings();
    }
    if (open) pace.refresh().then(() => pace.draw());
  }
}

const isOpen = (name) => document.body.classList.contains(`with-${name}`);

$('show-list').addEventListener('click', () => toggle('list'));
$('show-pace').addEventListener('click', () => toggle('pace'));
WIDE_LIST.addEventListener('change', () => toggle('list', WIDE_LIST.matches, false));
WIDE_PACE.addEventListener('change', () => toggle('pace', WIDE_PACE.matches && store.settings.pace !== false, false));

function showSettings() {
  $('system').value = chat.conversation.system;
  $('key').value = api.key;
  for (const { name } of SAMPLING) {
    const value = store.settings.sampling[name];
    $(`s-${name}`).value = value === undefined ? '' : Array.isArray(value) ? value.join(', ') : value;
  }
  $('settings').showModal();
}

function keepSettings() {
  const { settings } = store;
  settings.system = chat.conversation.system = $('system').value;
  settings.sampling = {};
  for (const { name } of SAMPLING) {
    const text = $(`s-${name}`).value.trim();
    if (!text) continue;
    settings.sampling[name] = name === 'stop' ? text.split(',').map((x) => x.trim()).filter(Boolean) : Number(text);
  }
  store.keepSettings();
  if (chat.conversation.messages.length) store.keep(chat.conversation);
  if ($('key').value.trim() !== api.key) useKey($('key').value);
}

$('sampling').append(
  ...SAMPLING.map(({ name, label, hint, min, max, step }) =>
    h('label', {}, label, h('input', { id: `s-${name}`, type: name === 'stop' ? 'text' : 'number', min, max, step: step ? 'any' : null, placeholder: hint, inputmode: step ? 'decimal' : null }))),
);
$('settings-reset').addEventListener('click', () => {
  for (const { name } of SAMPLING) $(`s-${name}`).value = '';
});
$('settings').addEventListener('close', keepSettings);
$('show-settings').addEventListener('click', showSettings);
$('shortcuts').append(...SHORTCUTS.map(([keys, what]) => h('div', {}, h('dt', {}, ...keys.split(' + ').map((k) => h('kbd', {}, k))), h('dd', {}, what))));
$('show-keys').addEventListener('click', () => $('keys').showModal());

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  try {
    localStorage.setItem('legato.theme', root.dataset.theme);
  } catch {
    // Then it holds until the page is closed.
  }
}

$('theme').addEventListener('click', turnTheme);

// -- the keyboard -----------------------------------------------------------------------------------------------------

const ALT = {
  KeyN: fresh,
  KeyR: () => chat.answer(),
  KeyC: () => toggle('list'),
  KeyP: () => toggle('pace'),
  KeyS: showSettings,
  KeyD: turnTheme,
  KeyK: () => $('keys').showModal(),
};

document.addEventListener('keydown', (event) => {
  const inDialog = document.querySelector('dialog[open]') !== null;
  if (inDialog || event.defaultPrevented) return;
  if (event.altKey && !event.ctrlKey && !event.metaKey && ALT[event.code]) {
    event.preventDefault();
    ALT[event.code]();
  } else if (event.key === 'Escape') {
    if (chat.busy) chat.stop();
    else if (isOpen('list') && !WIDE_LIST.matches) toggle('list', false);
    else if (isOpen('pace') && !WIDE_PACE.matches) toggle('pace', false);
    field.focus();
  } else if (event.key === '/' && !event.target.closest('input, textarea')) {
    event.preventDefault();
    field.focus();
  }
});

toggle('list', WIDE_LIST.matches, false);
toggle('pace', WIDE_PACE.matches && store.settings.pace !== false, false);
chat.render();
showList();
pace.show([]);
connect();
