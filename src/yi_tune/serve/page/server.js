/* The API of the server that the page comes from. Its addresses are relative: a proxy may have put it under a path. */

import { keep, kept } from "./storage.js";
import { say } from "./texts.js";

export const models = {}; // {tuned, base}: their names, once the server has told them
let key = kept("sessionStorage", "key");

/** An answer of the server's that is an error. */
export class Refused extends Error {
  constructor(status, text, code) {
    super(text);
    this.status = status;
    this.code = code;
  }
}

async function request(path, options = {}) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? "", body?.error?.code);
}

/** What the user reads of an error. The server's own text is English: it follows where it names what to do. */
export function explain(error) {
  const { status, code } = error;
  const told = (text) => [text, error.message].filter(Boolean).join(" ");
  if (!(error instanceof Refused) || [502, 503, 504].includes(status)) {
    return say("The server cannot be reached. Is it still running?");
  }
  if (code === "context_length_exceeded") {
    return say("This is more than the model takes, even without the turns before. Shorten your message.");
  }
  if (status === 400) return told(say("The server refuses this request."));
  if (status === 401) return say("The API key is missing or wrong.");
  if (status === 403) return told(say("The server refuses requests that come this way."));
  if (status === 404) return say("The server has no such model or address any more. Load the page again.");
  if (status === 413) return say("The message is too long for the server.");
  if (status === 429) return say("The server is busy. Try again in a moment.");
  if (status === 500) return say("The reply could not be made. The server's log says why.");
  return told(say("The server answered with an error ({status}).", { status }));
}

/** Ask for the models' names, once. Raises Refused where the server tells none. */
export async function connect() {
  const { data } = await (await request("v1/models")).json();
  [models.tuned, models.base] = data.map((model) => model.id); // in this order
}

export const connected = () => "tuned" in models;

/** Have the server ask for this key from here on. */
export function useKey(given) {
  key = given;
  keep("sessionStorage", "key", given);
}

export const hasKey = () => key !== null;

/** The server's answer to a streamed chat, for `events`. Raises Refused. */
export function chat(body, signal) {
  return request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
}

/** The data of server-sent events, up to [DONE]. Raises Refused for an error, TypeError where there is no [DONE]. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new TypeError("no [DONE]");
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Refused(500, parsed.error.message);
      yield parsed;
    }
  }
}
