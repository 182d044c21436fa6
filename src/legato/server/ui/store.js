// Conversations and settings, kept in this browser.

const CONVERSATIONS = 'legato.conversations';
const SETTINGS = 'legato.settings';
const KEY = 'legato.key';
const MAX_CONVERSATIONS = 200;
const MAX_PACE = 4000; // tokens whose times are kept with an answer

function read(storage, name, otherwise) {
  try {
    const text = storage().getItem(name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

function write(storage, name, value) {
  try {
    storage().setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const local = () => localStorage;
const session = () => sessionStorage;

export class Store {
  constructor() {
    const found = read(local, CONVERSATIONS, []);
    this.conversations = Array.isArray(found) ? found.filter((c) => c && Array.isArray(c.messages)) : [];
    this.settings = { system: '', sampling: { temperature: 0.7 }, ...read(local, SETTINGS, {}) };
    this.failed = false;
  }

  /** A new conversation; it is kept from its first message on. */
  fresh() {
    const now = Date.now();
    return { id: `c${now.toString(36)}${Math.random().toString(36).slice(2, 8)}`, title: '', created: now, updated: now, system: this.settings.system, messages: [] };
  }

  find(id) {
    return this.conversations.find((c) => c.id === id);
  }

  keep(conversation) {
    conversation.updated = Date.now();
    const others = this.conversations.filter((c) => c.id !== conversation.id);
    this.conversations = [conversation, ...others].slice(0, MAX_CONVERSATIONS);
    this.#save();
  }

  remove(id) {
    this.conversations = this.conversations.filter((c) => c.id !== id);
    this.#save();
  }

  #save() {
    const slim = (list) => list.map((c) => ({ ...c, messages: c.messages.map(trimmed) }));
    this.failed = !write(local, CONVERSATIONS, slim(this.conversations));
    // A full store gives up the oldest conversations rather than the newest.
    for (let n = this.conversations.length - 1; this.failed && n > 0; n = Math.floor(n / 2)) {
      this.failed = !write(local, CONVERSATIONS, slim(this.conversations.slice(0, n)));
    }
  }

  keepSettings() {
    write(local, SETTINGS, this.settings);
  }

  get key() {
    const found = read(session, KEY, '');
    return typeof found === 'string' ? found : '';
  }

  set key(value) {
    write(session, KEY, value);
  }
}

function trimmed(message) {
  const { pace, ...kept } = message;
  if (pace) kept.pace = { at: pace.at.slice(-MAX_PACE), ms: pace.ms.slice(-MAX_PACE).map((x) => Math.round(100 * x) / 100) };
  return kept;
}

/** A title out of the first words. */
export function titleOf(text) {
  const line = text.trim().replace(/\s+/g, ' ');
  if (line.length <= 48) return line || 'Untitled';
  const cut = line.slice(0, 48);
  return `${cut.slice(0, Math.max(24, cut.lastIndexOf(' ')))}…`;
}
