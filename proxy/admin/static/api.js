// The admin API: requests with a limit of time and the token, errors by whose fault they are, the stream of events.

const TIMEOUT = 8000;
const STORED_TOKEN = "districhat-token";

/** The proxy does not answer: it has ended, hangs, or the network is down. */
export class UnreachableError extends Error {}

/** The proxy answered that it will not (RFC 9457): `message` is for people. */
export class ProblemError extends Error {
  constructor(status, message, problems = []) {
    super(message);
    this.status = status;
    this.problems = problems;
  }
}

export const token = {
  get: () => sessionStorage.getItem(STORED_TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(STORED_TOKEN, value),
  forget: () => sessionStorage.removeItem(STORED_TOKEN),
};

function headers(more = {}) {
  return token.get() ? { ...more, Authorization: `Bearer ${token.get()}` } : more;
}

async function problemOf(response) {
  try {
    const body = await response.json();
    return new ProblemError(response.status, body.detail ?? response.statusText, body.problems);
  } catch {
    return new ProblemError(response.status, `the answer was HTTP ${response.status}`);
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(TIMEOUT) });
  } catch (error) {
    throw new UnreachableError("the proxy does not answer", { cause: error });
  }
  if (!response.ok) throw await problemOf(response);
  try {
    return await response.json();
  } catch (error) {
    throw new UnreachableError("the proxy's answer broke off", { cause: error });
  }
}

/** The JSON at a path. Throws UnreachableError or ProblemError. */
export const get = (path) => request(path, { headers: headers() });

/** The answer to a POST of JSON. Throws UnreachableError or ProblemError. */
export const post = (path, body = {}) =>
  request(path, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
  });

/**
 * The events after the one with the id `after`, as they happen, until the stream ends. EventSource cannot send a token,
 * so this reads the stream itself (HTML standard, section 9.2.6; every event of ours has one line of data).
 */
export async function* events(after, signal) {
  let response;
  try {
    response = await fetch("/api/events", { headers: headers({ "Last-Event-ID": String(after) }), signal });
  } catch (error) {
    throw new UnreachableError("the proxy does not answer", { cause: error });
  }
  if (!response.ok) throw await problemOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}
