/* The page of `yi-tune web`: a chat over the API of the server that it comes from. This has its controls. */

import * as conversation from "./conversation.js";
import { connect, connected, explain, hasKey, models, useKey } from "./server.js";
import { say, translate } from "./texts.js";
import { toggleTheme } from "./theme.js";
import * as view from "./view.js";

const find = (id) => document.getElementById(id);
const [message, settings, keyDialog] = ["message", "settings", "key"].map(find);

/** Learn the models' names, and draw the conversation that was kept; whether they are known. */
async function begin() {
  try {
    await connect();
    find("name").textContent = models.tuned;
    document.title = `${models.tuned} · yi-tune`;
    find("notice").textContent = "";
    conversation.restore();
  } catch (error) {
    find("notice").textContent = error.status === 401 && !hasKey() ? "" : explain(error);
    if (error.status === 401) askKey();
  }
  return connected();
}

function askKey() {
  if (!keyDialog.open) keyDialog.showModal();
}

/** Whether a reply can be asked for now; says so where it cannot. */
async function ready() {
  if (conversation.isRunning()) return false;
  if (!settings.checkValidity()) {
    showSettings(true);
    return settings.reportValidity();
  }
  return connected() || begin();
}

async function ask(text) {
  if (await ready()) await conversation.ask(text);
}

async function send() {
  const text = message.value;
  if (!text.trim() || !(await ready())) return; // the text stays where it is
  message.value = "";
  view.fit(message);
  await conversation.ask(text);
}

/** What the buttons of a turn do. */
const actions = {
  async askInstead(turn, text) {
    if (await ready()) await conversation.askInstead(turn, text);
  },
  remove(turn) {
    conversation.remove(turn);
    message.focus();
  },
};

function exportChat() {
  const file = conversation.exported();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = file.name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Draw what depends on whether there is a conversation, and on whether replies are being made. */
function drawState() {
  const [any, running] = [conversation.turns.length > 0, conversation.isRunning()];
  find("greeting").hidden = any;
  find("send").hidden = running;
  find("stop").hidden = !running;
  find("thread").classList.toggle("running", running);
  const last = [];
  if (any && !running) {
    last.push(view.button("retry", say("Try again"), async () => (await ready()) && conversation.answer(), true));
    if (conversation.exported()) last.push(view.button("export", say("Export chat"), exportChat, true));
  }
  view.drawLast(conversation.turns.at(-1), last);
}

function showSettings(shown) {
  settings.hidden = !shown;
  find("open-settings").ariaExpanded = String(shown);
}

message.addEventListener("input", () => view.fit(message));
view.onEnter(message, send);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) conversation.stop();
});
find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
find("stop").addEventListener("click", conversation.stop);
find("new").addEventListener("click", () => {
  conversation.startOver();
  message.focus();
});
find("open-settings").addEventListener("click", () => showSettings(settings.hidden));
settings.addEventListener("submit", (event) => event.preventDefault());
find("theme").addEventListener("click", toggleTheme);
for (const question of document.querySelectorAll(".question")) {
  question.addEventListener("click", () => ask(question.textContent));
}
keyDialog.addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(event.target.elements.value.value.trim());
  event.target.reset();
  keyDialog.close();
  begin();
});
// A page that is left in the middle of a reply keeps what had come.
addEventListener("pagehide", () => conversation.isRunning() && conversation.save());

conversation.drawWith({ ...view, drawTurn: (turn) => view.drawTurn(turn, actions), drawState, askKey });
translate();
begin();
