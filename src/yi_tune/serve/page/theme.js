/* Light or dark, as the user had it last. It waits for nothing, so that the page does not flash in the other. */

import { keep, kept } from "./storage.js";

const set = (theme) => (document.documentElement.dataset.theme = theme);

/** Change from the one to the other, and keep that. */
export function toggleTheme() {
  const { theme } = document.documentElement.dataset;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  keep("localStorage", "theme", set(dark ? "light" : "dark"));
}

if (kept("localStorage", "theme")) set(kept("localStorage", "theme"));
