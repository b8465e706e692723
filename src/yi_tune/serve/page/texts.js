/* The page's texts: English where they are used, and in Chinese in zh_CN.json, which `make messages` writes. */

const chinese = navigator.language.toLowerCase().startsWith("zh");
// Where the file does not come, the page speaks English.
const catalogue = chinese ? await fetch("zh_CN.json").then((file) => file.json(), () => ({})) : {};

/** A text of the page's in the language of the browser, with values in place of its {names}. */
export const say = (english, values = {}) =>
  (catalogue[english] ?? english).replace(/\{(\w+)\}/g, (_, name) => values[name]);

/** Put what index.html says into the language of the browser. */
export function translate() {
  if (!chinese) return;
  document.documentElement.lang = "zh-CN";
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.children.length) element.textContent = say(element.textContent);
    for (const name of ["title", "placeholder", "aria-label"]) {
      if (element.hasAttribute(name)) element.setAttribute(name, say(element.getAttribute(name)));
    }
  }
}
