/* What models write, as elements: made one by one, never from HTML. */

/** An element with children, strings among which become text. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

/** Elements for what models write of Markdown: paragraphs, headings, lists, tables, code and bold. Links stay text. */
export function markdown(text) {
  const blocks = [];
  const lines = text.split("\n");
  let open = null; // the block that the next line may go on with
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at];
    const item = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)/.exec(line);
    const heading = /^#{1,6}\s+(.*)/.exec(line);
    const fence = /^\s*(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/.exec(line);
    const sides = line.includes("|") && alignments(lines[at + 1]);
    if (fence) {
      const end = lines.findIndex((one, index) => index > at && closes(one, fence[1]));
      const last = end < 0 ? lines.length : end; // while it is being written there is no end yet
      const code = make("pre", "", make("code", "", lines.slice(at + 1, last).join("\n")));
      code.dataset.language = fence[2];
      blocks.push(code);
      [at, open] = [last, null];
    } else if (sides && sides.length === cells(line).length) {
      let last = at + 2;
      while (lines[last]?.includes("|")) last++;
      blocks.push(table([line, ...lines.slice(at + 2, last)], sides));
      [at, open] = [last - 1, null];
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

/** Whether a line ends the code that `fence` began: with as many of the same marks, or more. */
const closes = (line, fence) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");

/** The texts between the bars of a line; a bar behind a backslash is one of a text's own. */
const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/)
  .map((cell) => cell.trim().replaceAll("\\|", "|"));

/** How the columns of a table are aligned, by the line below its head; null where the line is none. */
function alignments(line) {
  if (!line?.includes("-") || !cells(line).every((cell) => /^:?-+:?$/.test(cell))) return null;
  return cells(line).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
}

/** A table, its first line the head, that can be scrolled where the page is narrower. */
function table(lines, sides) {
  const [head, ...rows] = lines.map((line, index) => {
    const texts = cells(line);
    const row = sides.map((side, column) => {
      const cell = make(index ? "td" : "th", "", ...spans(texts[column] ?? ""));
      cell.style.textAlign = side;
      return cell;
    });
    return make("tr", "", ...row);
  });
  return make("div", "table", make("table", "", make("thead", "", head), make("tbody", "", ...rows)));
}

/** A line's text with its `code` and **bold**. */
function spans(line) {
  return line.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return make("code", "", part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return make("strong", "", part.slice(2, -2));
    return part;
  });
}
