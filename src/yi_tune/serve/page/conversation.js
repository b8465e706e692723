/* The conversation: its turns, who answers them, and what each model is told of those before. */

import { chat, events, explain, models, Refused } from "./server.js";
import { keep, kept } from "./storage.js";
import { say } from "./texts.js";

export const turns = []; // {text, replies: [reply], dropped: the models that are no longer told of it}
const settings = document.getElementById("settings");
let running = null; // the AbortController of the replies that are being made
let view = null;

/** Who draws what happens here: {drawTurn(turn), eraseTurn(turn), drawReply(reply), drawState(), askKey()}. */
export function drawWith(drawing) {
  view = drawing;
}

export const isRunning = () => running !== null;

const newReply = (model) => ({ model, text: "", note: "", stats: "", wrong: false, busy: true });

const replyOf = (turn, model) => turn.replies.find((reply) => reply.model === model && reply.text);

function systemMessage() {
  const content = settings.elements.system.value.trim();
  return content ? [{ role: "system", content }] : [];
}

/** What `model` was asked and what it replied itself, in the turns that it has answered. */
function history(model, answered) {
  return answered.flatMap((turn) => {
    const reply = replyOf(turn, model);
    return reply ? [{ role: "user", content: turn.text }, { role: "assistant", content: reply.text }] : [];
  });
}

// Asking

/** The server's answer to `turn`. Where the conversation is longer than the model takes, it is asked without the oldest
 * quarter of the turns before, again and again. Where the turn alone is refused, none is left out. */
async function open(turn, reply, sampling, signal) {
  const { model } = reply;
  const before = turns.slice(0, turns.indexOf(turn));
  const told = before.filter((one) => !one.dropped.includes(model) && replyOf(one, model));
  for (let first = 0; ; ) {
    const messages = [
      ...systemMessage(),
      ...history(model, told.slice(first)),
      { role: "user", content: turn.text },
    ];
    try {
      const usage = { include_usage: true };
      const response = await chat({ model, messages, stream: true, stream_options: usage, ...sampling }, signal);
      for (const one of told.slice(0, first)) one.dropped.push(model);
      if (first) reply.note = say("The oldest turns were left out: the conversation is longer than the model takes.");
      return response;
    } catch (error) {
      const left = told.length - first;
      if (error.code !== "context_length_exceeded" || !left) throw error;
      first += Math.ceil(left / 4);
    }
  }
}

/** Have the model of `reply` answer `turn`; `changed` is called at each piece. */
async function fill(turn, reply, signal, changed) {
  const sampling = {};
  for (const input of settings.querySelectorAll("input")) {
    if (input.value !== "") sampling[input.name] = input.valueAsNumber;
  }
  const most = sampling.max_tokens ?? Number(settings.elements.max_tokens.placeholder);
  const began = performance.now();
  let cut = false;
  for await (const { choices, usage } of events(await open(turn, reply, sampling, signal))) {
    if (usage) {
      const tokens = usage.completion_tokens;
      // From the question on: between pieces there may be no time at all, where a proxy holds them back.
      const rate = ((1000 * tokens) / (performance.now() - began)).toFixed(1);
      reply.stats = say("{tokens} tokens · {rate} tokens/s", { tokens, rate });
      const full = tokens < most && say("Cut off: the conversation fills all that the model takes.");
      if (cut) reply.note = [reply.note, full || say("Cut off: that was the maximum of tokens.")].join(" ").trim();
    } else {
      const { delta, finish_reason } = choices[0];
      reply.text += delta.content ?? "";
      cut ||= finish_reason === "length";
    }
    changed();
  }
  reply.busy = false;
}

/** Have the model of `reply` answer the turns before `turn` that only the other has, in order and in its own words. */
async function catchUp(turn, reply, signal) {
  const before = turns.slice(0, turns.indexOf(turn));
  const missed = before.filter(
    // A turn that the other is no longer told of is not asked either.
    (one) => !one.dropped.length && one.replies.some(({ text }) => text) && !replyOf(one, reply.model),
  );
  for (const [index, one] of missed.entries()) {
    const values = { number: index + 1, all: missed.length };
    reply.note = say("It answers the earlier turns first: {number}/{all}", values);
    view.drawReply(reply);
    const earlier = newReply(reply.model);
    await fill(one, earlier, signal, () => {});
    one.replies = [...one.replies.filter(({ model }) => model !== reply.model), earlier];
    one.replies.sort((a, b) => (b.model === models.tuned) - (a.model === models.tuned));
    view.drawTurn(one);
    save();
  }
  reply.note = "";
}

async function makeReply(turn, reply, signal) {
  try {
    await catchUp(turn, reply, signal);
    await fill(turn, reply, signal, () => view.drawReply(reply));
  } catch (error) {
    reply.wrong = !signal.aborted;
    if (signal.aborted) reply.note = say("Stopped.");
    else if (reply.text && !(error instanceof Refused)) {
      reply.note = say("The connection broke off. What had come is kept.");
    } else reply.note = explain(error);
    if (error.status === 401) view.askKey();
  }
  reply.busy = false;
  view.drawReply(reply);
}

// What the user does

/** Have the last turn answered by who is chosen; answers that it had before go. */
export async function answer() {
  const turn = turns.at(-1);
  const chosen = document.querySelector("[name=model]:checked").value;
  const asked = chosen === "both" ? [models.tuned, models.base] : [models[chosen]];
  turn.replies = asked.map(newReply);
  view.drawTurn(turn);
  const mine = (running = new AbortController());
  save();
  view.drawState();
  await Promise.all(turn.replies.map((reply) => makeReply(turn, reply, mine.signal)));
  if (running !== mine) return; // a new chat has begun
  running = null;
  save();
  view.drawState();
}

export async function ask(text) {
  turns.push({ text, replies: [], dropped: [] });
  await answer();
}

/** Ask this instead of what `turn` asked: it is the last turn from here on. */
export async function askInstead(turn, text) {
  takeOut(turns.indexOf(turn) + 1);
  turn.text = text;
  await answer();
}

export function remove(turn) {
  takeOut(turns.indexOf(turn), 1);
  save();
  view.drawState();
}

/** Without these turns, others that were left out may fit again. */
function takeOut(first, count = turns.length) {
  turns.splice(first, count).forEach(view.eraseTurn);
  for (const turn of turns) turn.dropped = [];
}

export function stop() {
  running?.abort();
}

export function startOver() {
  stop();
  running = null;
  takeOut(0);
  save();
  view.drawState();
}

// Keeping

const shelf = () => `chat with ${models.tuned}`;

/** Keep the conversation in this browser. */
export function save() {
  const system = settings.elements.system.value;
  keep("localStorage", shelf(), turns.length ? JSON.stringify({ system, turns }) : null);
}

/** Go on with the conversation that this browser has kept. */
export function restore() {
  const chat = JSON.parse(kept("localStorage", shelf()));
  if (chat === null || turns.length) return;
  settings.elements.system.value = chat.system;
  turns.push(...chat.turns);
  for (const reply of turns.flatMap(({ replies }) => replies)) {
    if (reply.busy) reply.note = say("Stopped."); // the page was left in the middle of it
    reply.busy = false;
  }
  turns.forEach(view.drawTurn);
  view.drawState();
}

/** The conversation with who answered last, as `/save` of `yi-tune chat` writes it; null where nobody has. */
export function exported() {
  const reply = turns.findLast((turn) => turn.replies.some(({ text }) => text))?.replies.find(({ text }) => text);
  if (!reply) return null;
  const messages = [...systemMessage(), ...history(reply.model, turns)];
  const lines = messages.map((message) => `${JSON.stringify(message)}\n`);
  return new File(lines, `${reply.model}.jsonl`, { type: "application/jsonl" });
}
