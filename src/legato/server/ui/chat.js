// One conversation on the page: its messages, the answer that is coming, editing and answering again.

import { Problem } from './api.js';
import { $, copyButton, count, h, ms } from './dom.js';
import { Growing } from './markdown.js';

const NEAR_PX = 80;

/** The body of a request: what is set, and nothing else. */
export function bodyOf(conversation, model, sampling) {
  const messages = conversation.messages.filter((m) => m.content).map(({ role, content }) => ({ role, content }));
  const system = conversation.system.trim();
  if (system) messages.unshift({ role: 'system', content: system });
  const set = Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== '' && value !== null && value !== undefined));
  return {
    ...(model ? { model } : {}),
    messages,
    ...set,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    timings_per_token: true,
  };
}

/** Follows an answer's chunks: its text, when each token came, and how it ended. */
export class Coming {
  constructor(model) {
    this.message = { role: 'assistant', content: '', model, pace: { at: [], ms: [] } };
    this.tokens = 0;
    this.before = null;
  }

  take({ at, data }) {
    const { message } = this;
    const choice = data.choices[0];
    if (choice?.delta?.content) message.content += choice.delta.content;
    if (choice?.delta?.reasoning_content) message.thoughts = (message.thoughts ?? '') + choice.delta.reasoning_content;
    if (choice?.finish_reason) message.finish = choice.stop_reason === 'deadline' ? 'deadline' : choice.finish_reason;
    const stamp = data.timings?.at_ms;
    if (data.timings && stamp === undefined) message.timings = data.timings;
    if (data.usage) this.#count(stamp ?? at, data.usage);
  }

  /**
   * `at` is when the step ended by the server's clock. Tokens that came together share the time since those before
   * them; the first one's time is not a decode step's.
   */
  #count(at, usage) {
    const { message } = this;
    const fresh = usage.completion_tokens - this.tokens;
    if (fresh > 0) {
      const base = usage.prompt_tokens + this.tokens;
      for (let i = 0; this.before !== null && i < fresh; i += 1) {
        message.pace.at.push(base + i);
        message.pace.ms.push((at - this.before) / fresh);
      }
      this.tokens = usage.completion_tokens;
      this.before = at;
    }
    message.usage = usage;
  }
}

export class Chat {
  /**
   * api, store; hooks: {changed(): the conversation's messages did; model(): its name; needKey(problem)}
   */
  constructor(api, store, hooks) {
    Object.assign(this, { api, store, hooks });
    this.conversation = store.fresh();
    this.abort = null;
    this.problem = null;
    this.stick = true;
    const scroll = $('scroll');
    scroll.addEventListener('scroll', () => {
      this.stick = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_PX;
      $('down').hidden = this.stick;
    });
    $('down').addEventListener('click', () => this.toEnd(true));
  }

  get busy() {
    return this.abort !== null;
  }

  open(conversation) {
    this.stop();
    this.conversation = conversation;
    this.problem = null;
    this.stick = true;
    this.render();
    this.hooks.changed();
  }

  stop() {
    this.abort?.abort();
  }

  send(text) {
    this.conversation.messages.push({ role: 'user', content: text });
    return this.answer();
  }

  /** Answers the last message of the user, anew if there was an answer. */
  async answer() {
    const { conversation } = this;
    if (this.busy) return;
    while (conversation.messages.at(-1)?.role === 'assistant') conversation.messages.pop();
    if (!conversation.messages.length) return;
    this.store.keep(conversation);
    this.problem = null;
    const body = bodyOf(conversation, this.hooks.model(), this.store.settings.sampling);
    const coming = new Coming(this.hooks.model());
    const { message } = coming;
    this.abort = new AbortController();
    conversation.messages.push(message);
    this.stick = true;
    this.render();
    this.hooks.changed();
    announce('The model is answering.');
    try {
      for await (const event of this.api.stream('v1/chat/completions', body, this.abort.signal)) {
        coming.take(event);
        this.#grow(message);
      }
    } catch (error) {
      if (error.name === 'AbortError') message.finish = 'stopped';
      else this.#failed(conversation, message, error);
    }
    this.abort = null;
    if (!message.content && !message.thoughts && message.finish !== 'stop') conversation.messages = conversation.messages.filter((m) => m !== message);
    this.store.keep(conversation);
    if (this.conversation === conversation) this.render();
    announce(this.problem ? `${this.problem.title}. ${this.problem.message}` : message.content);
    this.hooks.changed();
  }

  #failed(conversation, message, error) {
    const known = error instanceof Problem;
    if (!known) console.error(error);
    if (message.content) message.finish = 'broken';
    if (this.conversation !== conversation) return;
    this.problem = known ? error : new Problem({ title: 'This page failed', message: String(error), mend: 'Reload the page; the conversation is kept.' });
    if (this.problem.status === 401) this.hooks.needKey(this.problem);
  }

  // -- showing ------------------------------------------------------------------------------------------------------

  render() {
    const { messages } = this.conversation;
    const turns = messages.map((message, i) => this.#turn(message, i));
    if (this.problem) turns.push(this.#problemBox(this.problem));
    $('thread').replaceChildren(...(turns.length ? turns : [welcome()]));
    document.body.classList.toggle('busy', this.busy);
    $('stop').hidden = !this.busy;
    $('send').hidden = this.busy;
    this.toEnd();
  }

  #turn(message, i) {
    const mine = message.role === 'user';
    const body = h('div', { class: 'body' });
    let before = null;
    const growing = this.busy && !mine && i === this.conversation.messages.length - 1;
    if (mine) {
      body.textContent = message.content;
    } else {
      const view = new Growing(body);
      const thoughts = h('details', { class: 'thoughts' }, h('summary', {}, 'Thoughts'), h('p'));
      if (growing) this.growing = { view, message, thoughts };
      show({ view, thoughts, message });
      before = thoughts;
    }
    const name = mine ? 'You' : message.model || 'Model';
    const foot = h('footer', {}, this.#actions(message, i), mine ? null : h('p', { class: 'meta' }, metaOf(message)));
    return h(
      'article',
      { class: `turn ${mine ? 'mine' : 'theirs'}${growing ? ' growing' : ''}`, 'aria-label': `${name} said` },
      h('h2', {}, name),
      before,
      body,
      growing ? null : foot,
    );
  }

  #actions(message, i) {
    const { messages } = this.conversation;
    const actions = h('div', { class: 'actions' }, copyButton(() => message.content));
    if (message.role === 'user') {
      actions.append(h('button', { type: 'button', class: 'quiet', 'aria-label': 'Edit this message', onclick: () => this.edit(i) }, 'Edit'));
    } else if (i === messages.length - 1) {
      actions.append(h('button', { type: 'button', class: 'quiet', id: 'again', onclick: () => this.answer() }, 'Answer again'));
    }
    return actions;
  }

  #grow(message) {
    if (this.frame || this.growing?.message !== message) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.growing?.message !== message) return;
      show(this.growing);
      this.toEnd();
      this.hooks.grew();
    });
  }

  toEnd(force = false) {
    if (!force && !this.stick) return;
    const scroll = $('scroll');
    scroll.scrollTop = scroll.scrollHeight;
  }

  /** Lets the user write message `i` anew; what came after it goes when it is sent. */
  edit(i) {
    this.stop();
    const message = this.conversation.messages[i];
    const turn = $('thread').children[i];
    if (!turn || message?.role !== 'user') return;
    const field = h('textarea', { rows: '2', 'aria-label': 'Edit this message' });
    field.value = message.content;
    const done = (text) => {
      if (text === null || !text.trim()) {
        this.render();
        $('composer-text').focus();
        return;
      }
      this.conversation.messages.length = i;
      $('composer-text').focus();
      this.send(text);
    };
    const form = h(
      'form',
      { class: 'editing' },
      field,
      h('div', { class: 'buttons' },
        h('span', { class: 'fine' }, this.conversation.messages.length > i + 1 ? 'What follows is answered anew.' : ''),
        h('button', { type: 'button', onclick: () => done(null) }, 'Cancel'),
        h('button', { type: 'submit', class: 'primary' }, 'Send')),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      done(field.value);
    });
    field.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        done(null);
      } else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        done(field.value);
      }
    });
    turn.replaceChildren(turn.firstChild, form);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  editLast() {
    this.edit(this.conversation.messages.findLastIndex((m) => m.role === 'user'));
  }

  #problemBox(problem) {
    const again = h('button', { type: 'button', class: 'primary', onclick: () => this.answer() }, 'Send again');
    if (problem.retryAfter) hold(again, problem.retryAfter);
    const facts = [
      problem.param && `field ${problem.param}`,
      problem.code && `code ${problem.code}`,
      problem.status && `status ${problem.status}`,
      problem.requestId && `request ${problem.requestId}`,
    ].filter(Boolean);
    return h(
      'section',
      { class: 'problem', role: 'alert' },
      h('h2', {}, problem.title),
      h('p', {}, problem.message),
      problem.mend ? h('p', {}, problem.mend) : null,
      facts.length ? h('p', { class: 'fine' }, facts.join(', ')) : null,
      h('div', { class: 'buttons' },
        problem.status === 401 ? h('button', { type: 'button', onclick: () => this.hooks.needKey(problem) }, 'Enter a key') : null,
        again),
    );
  }
}

/** Holds a button back for the seconds that the server asked for. */
function hold(button, seconds) {
  const word = button.textContent;
  let left = Math.ceil(seconds);
  button.disabled = true;
  const tick = () => {
    button.textContent = left > 0 ? `${word} in ${left} s` : word;
    button.disabled = left > 0;
    left -= 1;
    if (left >= 0 && (button.isConnected || left === Math.ceil(seconds) - 1)) setTimeout(tick, 1000);
  };
  tick();
}

function show({ view, thoughts, message }) {
  thoughts.hidden = !message.thoughts;
  if (message.thoughts) thoughts.lastChild.textContent = message.thoughts;
  view.show(message.content);
}

const ENDS = {
  length: 'cut at the most tokens',
  deadline: 'cut at its deadline',
  stopped: 'stopped by you',
  broken: 'broken off',
  error: 'failed',
};

function metaOf({ usage, timings, finish }) {
  const parts = [];
  if (usage) parts.push(`${count(usage.completion_tokens)} tokens`);
  if (timings?.decode_tok_s) parts.push(`${timings.decode_tok_s.toFixed(1)} a second`);
  if (timings) parts.push(`first after ${ms(timings.ttft_ms)}`);
  if (timings?.cached_tokens) parts.push(`${count(timings.cached_tokens)} of ${count(usage?.prompt_tokens ?? 0)} prompt tokens cached`);
  if (ENDS[finish]) parts.push(ENDS[finish]);
  return parts.join(' · ');
}

function announce(text) {
  $('announce').textContent = text.slice(0, 4000);
}

function welcome() {
  return h(
    'section',
    { class: 'welcome' },
    h('h2', {}, 'What shall we talk about?'),
    h('p', {}, 'Answers come from the model on this machine. Beside them, the pace view shows how long each token took, and the wall that memory sets beneath it.'),
  );
}
