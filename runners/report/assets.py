"""Style and script of the report page: light and dark mode, sortable tables, figures to enlarge; no external files."""

STYLE = """
:root { color-scheme: light dark; --line: #0002; --ink: #1a1a1a; --paper: #fdfdfc; --quiet: #5f5f5f; --link: #0060a8;
        --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #fff3; --ink: #e8e8e6; --paper: #17181a; --quiet: #a8a8a8; --link: #7cc0f4; --card: #1f2123; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; border-block: 1px solid var(--line); padding: .5rem 0;
      position: sticky; top: 0; max-height: 30vh; overflow-y: auto; background: var(--paper); z-index: 1; }
h2 { scroll-margin-top: 3.5rem; }
.answer { font-size: 1.1rem; padding-left: 1.2rem; } .answer li { margin: .3rem 0; }
a { color: var(--link); }
td a { color: inherit; text-decoration: underline dotted var(--quiet); text-underline-offset: .2em; }
td a:hover { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { overflow-wrap: normal; } td a { white-space: nowrap; }
td:first-child > * { display: inline-block; width: max-content; max-width: 20rem; }
td:first-child > * { white-space: normal; overflow-wrap: break-word; }
th button { all: unset; white-space: nowrap; cursor: pointer; font-weight: 600; }
th button:focus-visible, .zoom:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th button::after { content: " \\2195"; color: var(--quiet); font-weight: 400; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
figure { margin: 1.5rem 0; } figcaption, .quiet { color: var(--quiet); font-size: .85rem; }
.zoom { all: unset; cursor: zoom-in; display: block; }
.zoom img { max-width: 100%; background: #fff; border-radius: 6px; padding: 6px; display: block; }
dialog { border: 0; padding: 0; max-width: 100vw; max-height: 100vh; width: 100vw; height: 100vh; overflow: auto;
         background: #fff; cursor: zoom-out; }
dialog img { display: block; margin: auto; min-width: min(100%, 160vh); max-width: 250vw; }
code { font-size: .8rem; } details { margin: .5rem 0; } summary { cursor: pointer; }
@media (max-width: 640px) {
  table, tbody, tr, td { display: block; width: 100%; }
  thead tr { display: flex; flex-wrap: wrap; gap: 0 .8rem; } th { border: 0; padding: .1rem 0; }
  tbody tr { border: 1px solid var(--line); border-radius: 6px; background: var(--card); margin: .5rem 0;
             padding: .3rem .6rem; }
  td { border: 0; padding: .1rem 0; display: flex; gap: .6rem; justify-content: space-between; text-align: right; }
  td, td a { white-space: normal; overflow-wrap: anywhere; }
  td::before { content: attr(data-label); color: var(--quiet); text-align: left; flex: none; max-width: 50%; }
}
@media print { nav, th button::after { display: none; } }
"""

SCRIPT = """
"use strict";
const compare = (a, b) => {
  const x = parseFloat(a), y = parseFloat(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return a.localeCompare(b, undefined, { numeric: true });
};
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.parentElement, head = th.parentElement, body = th.closest("table").tBodies[0];
    const column = [...head.cells].indexOf(th), down = th.getAttribute("aria-sort") === "ascending";
    for (const other of head.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) =>
      (down ? -1 : 1) * compare(a.cells[column].textContent, b.cells[column].textContent));
    body.append(...rows);
  });
}
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img");
    dialog.replaceChildren(Object.assign(new Image(), { src: image.src, alt: image.alt }));
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
"""
