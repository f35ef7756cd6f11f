// The page of a study in a small imitation of a browser, for machines that have node and no browser.
// node fake_page.js study.html answers.json: answers are {PNG of "now": class}. Prints what it saw as JSON.
"use strict";
const fs = require("fs"), vm = require("vm");
const [page, known] = [fs.readFileSync(process.argv[2], "utf8"), JSON.parse(fs.readFileSync(process.argv[3], "utf8"))];

class Element {
  constructor(hidden = false, textContent = "") {
    Object.assign(this, { hidden, textContent, value: "", dataset: {}, children: [], listeners: {}, disabled: false });
  }
  addEventListener(name, listener) { (this.listeners[name] ||= []).push(listener); }
  dispatch(name, event = {}) {
    for (const listener of this.listeners[name] || []) listener({ preventDefault() {}, ...event });
  }
  append(...added) { this.children.push(...added); }
  click() { this.dispatch("click"); }
  focus() {}
  remove() {}
}

// one visit: its elements, its clock and what it saved; storage outlives it
const visit = (storage) => {
  const elements = {}, clock = { now: 0 }, saved = [];
  for (const [tag, id] of page.matchAll(/<[a-z]+ [^>]*?id="([\w-]+)"[^>]*>/g)) {
    elements[id] = new Element(/ hidden[ >]/.test(tag));
  }
  elements.study.textContent = page.match(/id="study">(.*?)<\/script>/s)[1];
  const document = new Element();
  Object.assign(document, {
    body: new Element(),
    getElementById: (id) => elements[id],
    createElement: (tag) => Object.assign(new Element(), tag === "a" && { click() { saved.push([this.download, this.href]); } }),
  });
  const world = {
    document, crypto, localStorage: storage, performance: clock, addEventListener() {}, setTimeout() {},
    Blob: class { constructor(parts) { this.text = parts.join(""); } },
    URL: { createObjectURL: (blob) => blob.text, revokeObjectURL() {} },
  };
  clock.now = Object.assign(() => clock.time, {});
  clock.time = 0;
  vm.runInNewContext(page.match(/<script>(.*?)<\/script>/s)[1], world);
  const seen = () => elements.after.src.replace("data:image/png;base64,", "");
  const key = (name) => document.dispatch("keydown", { key: name });
  const button = (answer) => elements.choices.children.find((each) => each.dataset.answer === answer);
  return { elements, clock, saved, seen, key, button };
};

const values = new Map();
const storage = { getItem: (key) => values.get(key) ?? null, setItem: (key, value) => values.set(key, value) };
const told = {};
let now = visit(storage);
now.elements.name.value = " Ann B! ";
now.elements.form.dispatch("submit");
const right = () => known[now.seen()];
now.clock.time += 100;
now.key(String(right())); // sooner than anybody can see
told.hasty = now.elements.progress.textContent;
now.clock.time += 1000;
now.key("x");
told.answered = now.elements.progress.textContent;
now.key("Backspace");
told.back = now.elements.progress.textContent;
const answer = (number) => {
  now.clock.time += 500 + number;
  if (number % 2) now.key(String(right()));
  else now.button(right()).click();
};
for (let number = 0; number < 50; number++) answer(number);
now.elements.pause.click();
told.half = now.saved[0];
now = visit(storage); // the page was closed and opened again
told.earlier = now.elements.earlier.children.map((each) => each.textContent);
now.elements.earlier.children[0].click();
for (let number = 50; !now.elements.trial.hidden; number++) answer(number);
told.ended = !now.elements.end.hidden;
now.elements.save.click();
told.saved = now.saved[0];
const full = { getItem() { throw new Error("no storage"); }, setItem() { throw new Error("no storage"); } };
const without = visit(full);
told.unkeptBefore = without.elements.unkept.hidden;
without.elements.form.dispatch("submit");
told.unkept = without.elements.unkept.hidden;
console.log(JSON.stringify(told));
