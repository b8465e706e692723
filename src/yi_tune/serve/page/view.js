/* What is seen of the conversation: its turns, and what can be done with each. */

import { make, markdown } from "./markdown.js";
import { models } from "./server.js";
import { say } from "./texts.js";

const [scroll, thread] = ["scroll", "thread"].map((id) => document.getElementById(id));
const icons = document.getElementById("icons").content;
const elements = new WeakMap(); // of turns and of replies

const icon = (name) => icons.querySelector(`[data-icon=${name}]`).cloneNode(true);

/** A button with an icon, and with its name where that is `shown`. */
export function button(name, text, act, shown = false) {
  const made = make("button", "tool", icon(name), shown ? text : "");
  made.type = "button";
  if (!shown) made.title = made.ariaLabel = text;
  made.addEventListener("click", act);
  return made;
}

function copyButton(text) {
  const copy = button("copy", say("Copy"), async () => {
    await putOnClipboard(text());
    const look = (name, text) => {
      copy.replaceChildren(icon(name));
      copy.title = copy.ariaLabel = text;
    };
    look("done", say("Copied"));
    setTimeout(() => look("copy", say("Copy")), 3000);
  });
  return copy;
}

async function putOnClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // A page that came over plain HTTP from another machine has only this.
  const [field, focused] = [make("textarea", "unseen"), document.activeElement];
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused.focus();
}

/** Change something in the thread, and stay at its end unless the reader has gone up. */
export function keepingEnd(change) {
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  change();
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

/** Have `field` as high as its text is. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

/** Call `act` for an Enter in `field` that ends the message. */
export function onEnter(field, act) {
  field.addEventListener("keydown", (event) => {
    // The Enter that ends a word of an input method is no Enter of the message's; Safari only says 229.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    act();
  });
}

/** Draw a turn, where it was or at the end. `actions`: askInstead(turn, text), which may refuse, and remove(turn). */
export function drawTurn(turn, actions) {
  const replies = turn.replies.map((reply) => {
    elements.set(reply, make("article", "reply"));
    drawReply(reply);
    return elements.get(reply);
  });
  const asked = make("div", "asked", make("div", "bubble", turn.text));
  asked.prepend(
    make(
      "div",
      "tools",
      button("edit", say("Edit"), () => edit(turn, asked, actions)),
      button("remove", say("Delete this turn"), () => actions.remove(turn)),
    ),
  );
  const element = make("section", "turn", asked, make("div", "replies", ...replies));
  element.classList.toggle("compared", replies.length > 1);
  const old = elements.get(turn);
  elements.set(turn, element);
  if (old) return keepingEnd(() => old.replaceWith(element));
  thread.append(element);
  scroll.scrollTop = scroll.scrollHeight;
}

export function eraseTurn(turn) {
  elements.get(turn).remove();
}

/** A field in place of what was asked. */
function edit(turn, asked, actions) {
  const field = make("textarea", "", turn.text);
  [field.rows, field.ariaLabel] = [1, say("Message")];
  const close = () => {
    form.replaceWith(asked);
    asked.querySelector(".tool").focus();
  };
  const send = () => field.value.trim() && actions.askInstead(turn, field.value);
  const form = make(
    "form",
    "edit",
    field,
    make("div", "tools", button("cancel", say("Cancel"), close, true), button("retry", say("Ask again"), send, true)),
  );
  field.addEventListener("input", () => fit(field));
  field.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && close());
  onEnter(field, send);
  asked.replaceWith(form);
  fit(field);
  field.focus();
}

/** Draw a reply as far as it has come. */
export function drawReply(reply) {
  const element = elements.get(reply);
  const who = make("div", reply.model === models.tuned ? "who tuned" : "who", reply.model);
  const text = make("div", "text", ...markdown(reply.text));
  for (const code of text.querySelectorAll("pre")) {
    const copy = copyButton(() => code.textContent);
    code.before(make("div", "bar", make("span", "", code.dataset.language), copy));
  }
  const parts = [who, text];
  if (reply.note) {
    const note = make("p", reply.wrong ? "note wrong" : "note", reply.note);
    if (reply.wrong) note.role = "alert";
    parts.push(note);
  }
  if (reply.text && !reply.busy) {
    parts.push(make("div", "tools", make("span", "", reply.stats), copyButton(() => reply.text)));
  }
  keepingEnd(() => {
    element.ariaBusy = String(reply.busy);
    element.replaceChildren(...parts);
  });
}

/** Draw buttons below a turn, and none below the others. */
export function drawLast(turn, buttons) {
  thread.querySelector(".last")?.remove();
  if (buttons.length) keepingEnd(() => elements.get(turn).append(make("div", "last", ...buttons)));
}
