"""The page of a study with people: pairs of images, a question, answers and times; it loads and sends nothing.

LOGIC has functions without a document; PAGE shows pairs, keeps answers in the browser and saves them as .csv.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #0003; --ink: #1a1a1a; --paper: #fdfdfc; --quiet: #5f5f5f; --link: #0060a8; }
@media (prefers-color-scheme: dark) {
  :root { --line: #fff4; --ink: #e8e8e6; --paper: #17181a; --quiet: #a8a8a8; --link: #7cc0f4; } }
* { box-sizing: border-box; } [hidden] { display: none !important; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 46rem;
       margin: 1rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 1rem 0 .5rem; }
.pair { display: flex; gap: 1rem; } figure { flex: 1; margin: 0; } figcaption, .quiet { color: var(--quiet); }
.pair img { display: block; width: 100%; border: 1px solid var(--line); }
.coarse { max-width: 26rem; } .coarse img { image-rendering: pixelated; }
figure:last-child img { border: 2px solid var(--link); }
button, input { font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 6px;
                padding: .4rem .8rem; }
button { cursor: pointer; } button:hover, button:focus-visible { border-color: var(--link); }
button:focus-visible, input:focus-visible { outline: 2px solid var(--link); outline-offset: 1px; }
button:disabled { color: var(--quiet); cursor: default; border-color: var(--line); }
#choices { display: flex; flex-wrap: wrap; gap: .5rem; max-height: 40vh; overflow: auto; padding: 3px; }
#choices button { min-width: 3rem; } kbd { font: inherit; color: var(--quiet); }
.row { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; align-items: center; }
"""

LOGIC = """
"use strict";
// mulberry32: numbers in [0, 1) from a 32-bit seed
const random = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
// the order in which an annotator sees the pairs: Fisher and Yates's shuffle
const order = (count, seed) => {
  const next = random(seed), rows = Array.from({ length: count }, (_, row) => row);
  for (let last = count - 1; last > 0; last--) {
    const other = Math.floor(next() * (last + 1));
    [rows[last], rows[other]] = [rows[other], rows[last]];
  }
  return rows;
};
const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
const toCsv = (study, session) => {
  const lines = session.answers.map(([pair, answer, seconds], trial) => {
    const name = answer < 0 ? "none" : study.classes[answer];
    return [study.id, session.annotator, session.seed, trial, pair, answer, quoted(name), seconds.toFixed(3)].join(",");
  });
  return ["study,annotator,seed,trial,pair,answer,answer_name,seconds", ...lines].join("\\n") + "\\n";
};
"""

PAGE = """
const study = JSON.parse(document.getElementById("study").textContent);
const at = (id) => document.getElementById(id);
const KEY = `nonisotropic-study-${study.id}`, HASTY = 150;  // milliseconds in which nobody has seen a pair
const byKeys = study.classes.length <= 10;
let session = null, rows = [], shownAt = 0, isKept = true;

const kept = () => { try { return JSON.parse(localStorage.getItem(KEY)) || {}; } catch { return {}; } };
const keep = () => {
  try { localStorage.setItem(KEY, JSON.stringify({ ...kept(), [session.seed]: session })); isKept = true; }
  catch { isKept = false; }
  at("unkept").hidden = isKept;
};
const view = (name) => { for (const id of ["start", "trial", "end"]) at(id).hidden = id !== name; };

const show = () => {
  const trial = session.answers.length;
  if (trial >= rows.length) { view("end"); at("save").focus(); return; }
  view("trial");
  const [before, after] = study.pairs[rows[trial]];
  at("before").src = `data:image/png;base64,${before}`;
  at("after").src = `data:image/png;base64,${after}`;
  at("progress").textContent = `${trial + 1} of ${rows.length}`;
  at("back").disabled = trial === 0;
  at("filter").value = "";
  filter();
  shownAt = performance.now();
};
const answer = (choice) => {
  const passed = performance.now() - shownAt;
  if (at("trial").hidden || passed < HASTY) return;
  session.answers.push([rows[session.answers.length], choice, passed / 1000]);
  keep();
  show();
};
const back = () => {
  if (at("trial").hidden || !session.answers.length) return;
  session.answers.pop();
  keep();
  show();
};
const begin = (chosen) => {
  session = chosen;
  rows = order(study.pairs.length, session.seed);
  keep();
  show();
};
const save = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv(study, session)], { type: "text/csv" }));
  link.download = `answers_${session.annotator}_${session.seed}.csv`;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
const filter = () => {
  const wanted = at("filter").value.trim().toLowerCase();
  for (const button of at("choices").children) button.hidden = !button.dataset.name.toLowerCase().includes(wanted);
};

const choose = (number, name, key) => {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.name = name;
  button.dataset.answer = number;
  button.textContent = name;
  if (key && key !== name) {
    const hint = document.createElement("kbd");
    hint.textContent = ` ${key}`;
    button.append(hint);
  }
  button.addEventListener("click", () => answer(number));
  at("choices").append(button);
};
study.classes.forEach((name, number) => choose(number, name, byKeys ? String(number) : ""));
choose(-1, "none of these", byKeys ? "x" : "");
at("finding").hidden = byKeys;
at("keys").hidden = !byKeys;
at("filter").addEventListener("input", filter);
at("filter").addEventListener("keydown", (event) => {
  const left = [...at("choices").children].filter((button) => !button.hidden);
  if (event.key === "Enter" && left.length === 1) left[0].click();
});
document.addEventListener("keydown", (event) => {
  if (!byKeys || at("trial").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "x") answer(-1);
  else if (event.key === "Backspace") back();
  else if (/^[0-9]$/.test(event.key) && Number(event.key) < study.classes.length) answer(Number(event.key));
  else return;
  event.preventDefault();
});
at("back").addEventListener("click", back);
at("pause").addEventListener("click", save);
at("save").addEventListener("click", save);
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const annotator = at("name").value.trim().replace(/[^\\p{L}\\p{N}_-]+/gu, "_") || "anonymous";
  begin({ annotator, seed: crypto.getRandomValues(new Uint32Array(1))[0], answers: [] });
});
for (const earlier of Object.values(kept())) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `${earlier.annotator}: ${earlier.answers.length} of ${study.pairs.length}`;
  button.addEventListener("click", () => begin(earlier));
  at("earlier").append(button);
  at("go-on").hidden = false;
}
addEventListener("beforeunload", (event) => { if (session && !isKept) event.preventDefault(); });
"""

BODY = """
<section id="start"><h1>Which class do you see?</h1>
<p>You will see {count} pairs of pictures, one after the other. The left one is a picture before it was changed, the
right one after. Say which class you see in the <b>right one</b>: it may be that of the left one or another.
Where you see none, say so. A few of the pairs are there to see whether one looks.</p>
<p class="quiet">Answers and times stay in this browser until you save them as a file at the end; nothing is sent. You
may close the page and go on later.</p>
<form id="form" class="row"><label>A name for your answers <input id="name" maxlength="40" autocomplete="off" required>
</label><button>Start</button></form>
<div id="go-on" hidden><h2>Go on with</h2><div id="earlier" class="row"></div></div></section>
<section id="trial" hidden><p class="quiet" id="progress" aria-live="polite"></p>
<div class="pair{coarse}"><figure><figcaption>before</figcaption><img id="before" alt="before the change"></figure>
<figure><figcaption><b>now</b></figcaption><img id="after" alt="after the change"></figure></div>
<h2>Which class do you see now?</h2>
<div class="row" id="finding">
<input id="filter" placeholder="type to find a class" autocomplete="off" aria-label="find a class"></div>
<div id="choices"></div>
<div class="row"><button type="button" id="back">Back</button>
<button type="button" id="pause">Save the answers so far</button>
<span class="quiet" id="keys">Keys: the numbers, x for none, Backspace to go back</span></div></section>
<section id="end" hidden><h1>Thank you</h1><p>Save the answers, and send the file to whom it may concern.</p>
<div class="row"><button type="button" id="save">Save the answers</button></div></section>
<p id="unkept" hidden>This browser keeps nothing: save the answers before you close the page.</p>
"""
SMALL = 96  # side in pixels up to which pixels are shown as squares
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def study_html(title: str, study: str, classes: Sequence[str], pairs: Sequence[tuple[str, str]], side: int) -> str:
    """The page as HTML.

    study   the digest of the pairs, which the answers name
    pairs   before and after, as PNG in base64, in the order of the rows of pairs.npz
    side    the longer side of the images in pixels
    """
    content = json.dumps({"id": study, "classes": list(classes), "pairs": list(pairs)}).replace("<", "\\u003c")
    body = BODY.format(count=len(pairs), coarse=" coarse" if side <= SMALL else "")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style></head>\n<body>{body}\n"
        f'<script type="application/json" id="study">{content}</script>\n'
        f"<script>{LOGIC}{PAGE}</script></body></html>\n"
    )
