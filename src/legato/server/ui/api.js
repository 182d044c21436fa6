// The server's API: requests, streams of events, and what to say when it says no.

/** What went wrong, as a person should read it. */
export class Problem extends Error {
  constructor({ status = 0, title, message, mend = '', param = null, code = null, requestId = null, retryAfter = null }) {
    super(message);
    Object.assign(this, { status, title, mend, param, code, requestId, retryAfter });
  }
}

const TITLES = {
  400: 'The server refused this request',
  401: 'A key is needed',
  404: 'Not found',
  408: 'The request took too long to arrive',
  413: 'The request is too large',
  429: 'The server is busy',
  500: 'The server failed on this request',
  503: 'The server is not taking requests',
};

const MENDS = {
  401: 'Give a key that this server knows; its owner chose it with --api-key.',
  404: 'Reload the page: the server may have been started again with another model.',
  408: 'Send it again.',
  413: 'Shorten the conversation, or begin a new one.',
  429: 'Wait a moment, then send it again.',
  500: 'Send it again; if it fails again, the server’s log says more under this request id.',
  503: 'Wait until it is ready, then send it again.',
};

const BY_CODE = {
  context_length_exceeded: 'Begin a new conversation, edit an earlier message, or lower the most tokens in Settings.',
  loading: 'The model is being loaded. Wait a moment, then send it again.',
  draining: 'The server is shutting down. When it is back, send it again.',
  engine_error: 'If sending it again does not help, the server has to be restarted.',
};

const BY_PARAM = 'Change it in Settings, then send it again.';
const SETTINGS = new Set([
  'temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'presence_penalty', 'frequency_penalty',
  'max_tokens', 'max_completion_tokens', 'seed', 'stop',
]);

function problemOf(status, body, headers) {
  const error = body && typeof body.error === 'object' && body.error !== null ? body.error : {};
  const { code = null, param = null } = error;
  const mend = BY_CODE[code] ?? (SETTINGS.has(param) ? BY_PARAM : MENDS[status] ?? '');
  const after = Number(headers?.get('retry-after'));
  return new Problem({
    status,
    title: TITLES[status] ?? `The server answered ${status}`,
    message: error.message ?? 'It did not say why.',
    mend,
    param,
    code,
    requestId: headers?.get('x-request-id') ?? null,
    retryAfter: Number.isFinite(after) && after > 0 ? after : null,
  });
}

export class Api {
  constructor() {
    this.base = new URL('.', document.baseURI);
    this.key = '';
  }

  async #fetch(path, options = {}) {
    const headers = { ...(options.headers ?? {}) };
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    try {
      return await fetch(new URL(path, this.base), { cache: 'no-store', credentials: 'omit', ...options, headers });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Problem({
        title: 'The server cannot be reached',
        message: `No answer from ${this.base.host} (${error.message}).`,
        mend: 'See that `legato serve` still runs and that this machine can reach it, then send it again.',
        code: 'unreachable',
      });
    }
  }

  /** JSON of a GET. Raises `Problem`. */
  async get(path, signal) {
    const answer = await this.#fetch(path, { signal });
    const body = await answer.json().catch(() => null);
    if (!answer.ok) throw problemOf(answer.status, body, answer.headers);
    return body;
  }

  /** Events of a streamed answer: {at, data}, `at` being when its bytes came, in ms. Raises `Problem`. */
  async *stream(path, body, signal) {
    const answer = await this.#fetch(path, {
      method: 'POST',
      signal,
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    });
    if (!answer.ok) throw problemOf(answer.status, await answer.json().catch(() => null), answer.headers);
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    let kept = '';
    try {
      for (;;) {
        const { done, value } = await reader.read().catch((error) => { throw this.#cut(error); });
        const at = performance.now();
        kept += done ? decoder.decode() : decoder.decode(value, { stream: true });
        const parts = kept.split('\n\n');
        kept = parts.pop();
        for (const part of parts) {
          if (!part.startsWith('data: ')) continue;
          const data = part.slice(6);
          if (data === '[DONE]') return;
          const event = JSON.parse(data);
          if (event.error) throw problemOf(500, event, answer.headers);
          yield { at, data: event };
        }
        if (done) throw this.#cut(new Error('it ended early'));
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  #cut(error) {
    if (error.name === 'AbortError') return error;
    return new Problem({
      title: 'The connection broke',
      message: `The answer is not whole: ${error.message}.`,
      mend: 'What came is kept. Answer again to have a whole one.',
      code: 'cut',
    });
  }
}
