/* What this browser keeps for the page. Where it refuses (blocked cookies, no room left), nothing is kept, and the page
 * goes on with what it has in memory. */

/** The text kept under `name` in "localStorage", or in "sessionStorage", which ends with the tab; null for none. */
export function kept(area, name) {
  try {
    return window[area].getItem(name);
  } catch {
    return null;
  }
}

/** Keep `text` under `name`; null takes away what was kept. */
export function keep(area, name, text) {
  try {
    if (text === null) window[area].removeItem(name);
    else window[area].setItem(name, text);
  } catch {
    // As said above.
  }
}
