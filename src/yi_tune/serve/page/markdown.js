/* What models write, as elements: made one by one, never from HTML. */

/** An element with children, strings among which become text. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

/** Elements for what models write of Markdown: paragraphs, headings, lists, code and bold. Links stay text. */
export function markdown(text) {
  const blocks = [];
  let open = null; // the block that the next line may go on with
  let code = null; // the code element of a fence that is not closed yet
  for (const line of text.split("\n")) {
    const item = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)/.exec(line);
    const heading = /^#{1,6}\s+(.*)/.exec(line);
    if (/^\s*```/.test(line)) {
      code = code ? null : make("code", "");
      if (code) blocks.push(make("pre", "", code));
      open = null;
    } else if (code) {
      code.append(code.textContent ? "\n" : "", line);
    } else if (!line.trim()) {
      if (open?.tagName === "P") open = null; // a list goes on behind an empty line
    } else if (item) {
      const tag = item[1] ? "OL" : "UL";
      if (open?.tagName !== tag) {
        blocks.push((open = make(tag, "")));
        if (item[1]) open.start = Number(item[1]);
      }
      open.append(make("li", "", ...spans(item[2])));
    } else if (heading) {
      blocks.push(make("p", "heading", ...spans(heading[1])));
      open = null;
    } else if (open?.tagName === "P") {
      open.append("\n", ...spans(line));
    } else {
      blocks.push((open = make("p", "", ...spans(line))));
    }
  }
  return blocks;
}

/** A line's text with its `code` and **bold**. */
function spans(line) {
  return line.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return make("code", "", part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return make("strong", "", part.slice(2, -2));
    return part;
  });
}
