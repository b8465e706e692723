/* The page of `yi-tune web`: a chat over the API of the server that it comes from. */

import { make, markdown } from "./markdown.js";
import { say, translate } from "./texts.js";

const find = (id) => document.getElementById(id);
const [scroll, thread, message, settings, keyDialog] = ["scroll", "thread", "message", "settings", "key"].map(find);

/** An answer of the server's that is an error. */
class Refused extends Error {
  constructor(status, text, code) {
    super(text);
    this.status = status;
    this.code = code;
  }
}

let models = null; // {tuned, base}: their names, once the server has told them
const turns = []; // {text, replies: [{model, text, note, wrong, busy, element}], element}
let oldest = 0; // the index of the first turn that the model is still told of
let running = null; // the AbortController of the replies that are being made

// The server

async function request(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? "", body?.error?.code);
}

/** What the user reads of an error; asks for the key where that is what is wrong. */
function explain(error) {
  if (!(error instanceof Refused)) return say("The server cannot be reached. Is it still running?");
  if (error.status === 429) return say("The server is busy. Try again in a moment.");
  if (error.status !== 401) return `${say("The server answered with an error")} (${error.status}): ${error.message}`;
  if (!keyDialog.open) keyDialog.showModal();
  return say("The API key is missing or wrong.");
}

/** Ask for the models' names; whether they are known. */
async function connect() {
  try {
    const { data } = await (await request("/v1/models")).json();
    models = { tuned: data[0].id, base: data[1].id }; // in this order
    find("name").textContent = models.tuned;
    document.title = `${models.tuned} · yi-tune`;
    find("notice").textContent = "";
  } catch (error) {
    const asked = sessionStorage.getItem("key") === null && error.status === 401;
    const said = explain(error);
    find("notice").textContent = asked ? "" : said;
  }
  return models !== null;
}

/** The data of server-sent events, parsed; ends at [DONE], and throws where there was none. */
async function* events(response) {
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
      yield JSON.parse(data);
    }
  }
}

// The conversation

/** The messages from turn `first` to the last, as `model` saw them: its own replies, or the other's where it gave none. */
function conversation(model, first) {
  const system = settings.elements.system.value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(first, -1)) {
    const said = turn.replies.filter((reply) => reply.text);
    const reply = said.find((one) => one.model === model) ?? said[0];
    if (reply) messages.push({ role: "user", content: turn.text }, { role: "assistant", content: reply.text });
  }
  return [...messages, { role: "user", content: turns.at(-1).text }];
}

/** The server's answer to a reply asked for; where the conversation is longer than the model takes, without the oldest
 * quarter of its turns, again and again, until there is only the last. Where even that is refused, none is left out. */
async function openReply(reply, signal) {
  for (let first = oldest; ; ) {
    const body = { model: reply.model, messages: conversation(reply.model, first), stream: true };
    for (const input of settings.querySelectorAll("input")) {
      if (input.value !== "") body[input.name] = input.valueAsNumber;
    }
    try {
      const response = await request("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
      if (first > oldest) {
        reply.note = say("The oldest turns were left out: the conversation is longer than the model takes.");
      }
      oldest = Math.max(oldest, first);
      return response;
    } catch (error) {
      const before = turns.length - 1 - first;
      if (error.code !== "context_length_exceeded" || !before) throw error;
      first += Math.ceil(before / 4);
    }
  }
}

async function makeReply(reply, signal) {
  try {
    for await (const event of events(await openReply(reply, signal))) {
      if (event.error) throw new Refused(500, event.error.message);
      const { delta, finish_reason } = event.choices[0];
      reply.text += delta.content ?? "";
      if (finish_reason === "length") reply.note = say("Cut off: that was the maximum of tokens.");
      draw(reply);
    }
  } catch (error) {
    reply.wrong = !signal.aborted;
    if (signal.aborted) reply.note = say("Stopped.");
    else if (reply.text && !(error instanceof Refused)) {
      reply.note = say("The connection broke off. What had come is kept.");
    } else reply.note = explain(error);
  }
  reply.busy = false;
  draw(reply);
}

/** Have the last turn answered by who is chosen; answers that it had before go. */
async function answer() {
  const turn = turns.at(-1);
  const chosen = document.querySelector("[name=model]:checked").value;
  const asked = chosen === "both" ? [models.tuned, models.base] : [models[chosen]];
  turn.replies = asked.map((model) => ({ model, text: "", note: "", wrong: false, busy: true }));
  drawTurn(turn);
  const mine = (running = new AbortController());
  showRunning();
  await Promise.all(turn.replies.map((reply) => makeReply(reply, mine.signal)));
  if (running === mine) running = null; // not when a new chat has begun
  showRunning();
}

/** Whether a reply can be asked for now; says so where it cannot. */
async function ready() {
  if (running) return false;
  if (!settings.checkValidity()) {
    showSettings(true);
    return settings.reportValidity();
  }
  return models !== null || connect();
}

async function ask(text) {
  turns.push({ text, replies: [] });
  await answer();
}

async function send() {
  const text = message.value;
  if (!text.trim() || !(await ready())) return; // the text stays where it is
  message.value = "";
  fitMessage();
  await ask(text);
}

function startOver() {
  running?.abort();
  running = null;
  turns.length = oldest = 0;
  thread.replaceChildren();
  showRunning();
  message.focus();
}

// What is seen

/** Change something in the thread, and stay at its end unless the reader has gone up. */
function keepingEnd(change) {
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

function drawTurn(turn) {
  const replies = turn.replies.map((reply) => (reply.element = make("article", "reply")));
  turn.replies.forEach(draw);
  const element = make("section", "turn", make("div", "asked", turn.text), make("div", "replies", ...replies));
  element.classList.toggle("compared", replies.length > 1);
  if (turn.element) turn.element.replaceWith(element);
  else thread.append(element);
  turn.element = element;
  scroll.scrollTop = scroll.scrollHeight;
}

function draw(reply) {
  const who = make("div", reply.model === models.tuned ? "who tuned" : "who", reply.model);
  const note = make("p", reply.wrong ? "note wrong" : "note", reply.note);
  if (reply.wrong) note.role = "alert";
  keepingEnd(() => {
    reply.element.ariaBusy = String(reply.busy);
    reply.element.replaceChildren(who, make("div", "text", ...markdown(reply.text)), ...(reply.note ? [note] : []));
  });
}

function showRunning() {
  find("greeting").hidden = turns.length > 0;
  find("send").hidden = running !== null;
  find("stop").hidden = running === null;
  document.querySelector(".again")?.remove();
  if (running || !turns.length) return;
  const icon = find("retry-icon").content.cloneNode(true);
  const again = make("button", "again", icon, say("Try again"));
  again.addEventListener("click", async () => (await ready()) && answer());
  keepingEnd(() => turns.at(-1).element.append(again));
}

function showSettings(shown) {
  settings.hidden = !shown;
  find("open-settings").ariaExpanded = String(shown);
}

function fitMessage() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

// To begin with

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

message.addEventListener("input", fitMessage);
message.addEventListener("keydown", (event) => {
  // The Enter that ends a word of an input method is no Enter of the message's; Safari only says 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});
find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
find("stop").addEventListener("click", () => running?.abort());
find("new").addEventListener("click", startOver);
find("open-settings").addEventListener("click", () => showSettings(settings.hidden));
settings.addEventListener("submit", (event) => event.preventDefault());
find("theme").addEventListener("click", () => {
  const { theme } = document.documentElement.dataset;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
});
for (const question of document.querySelectorAll(".question")) {
  question.addEventListener("click", async () => (await ready()) && ask(question.textContent));
}
keyDialog.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", event.target.elements.value.value.trim());
  event.target.reset();
  keyDialog.close();
  connect();
});

translate();
if (localStorage.getItem("theme")) setTheme(localStorage.getItem("theme"));
connect();
