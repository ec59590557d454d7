"use strict";
const page = document.body.dataset.page;
const items = Array.from(document.querySelectorAll("article"));
const buttons = Array.from(document.querySelectorAll("[data-choice]"));
const find = (id) => document.getElementById(id);
const store = "preftune-human-" + page;
// Up and down stay with the browser: whoever scrolls through a long answer must not rate it.
const keys = { 1: "left", 2: "tie", 3: "right", ArrowLeft: "left", ArrowRight: "right" };
const choices = ["left", "tie", "right"];

let answers = {};
let place = 0;

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(store)) || {};
    for (const item of items) {
      if (choices.includes((kept.answers || {})[item.id])) answers[item.id] = kept.answers[item.id];
    }
    find("rater").value = String(kept.rater || "");
  } catch {
    // Without storage, or with something else in it, the page starts anew.
  }
  const open = items.findIndex((item) => !(item.id in answers));
  place = open < 0 ? items.length - 1 : open;
}

function content() {
  return { page: page, rater: find("rater").value.trim(), answers: answers };
}

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify(content()));
  } catch {
    find("note").textContent = "This browser keeps nothing for this page: save your answers before you close it.";
  }
}

function show(scroll) {
  const rated = Object.keys(answers).length;
  items.forEach((item, index) => { item.hidden = index !== place; });
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(answers[items[place].id] === button.dataset.choice));
  }
  find("progress").textContent = `Pair ${place + 1} of ${items.length}, ${rated} rated`;
  find("bar").value = rated;
  find("back").disabled = place === 0;
  find("next").disabled = place === items.length - 1;
  find("save").disabled = rated === 0;
  find("save").classList.toggle("ready", rated === items.length);
  if (scroll) window.scrollTo(0, 0);
}

function go(step) {
  place = Math.min(items.length - 1, Math.max(0, place + step));
  show(true);
}

function rate(choice) {
  answers[items[place].id] = choice;
  keep();
  go(1);
}

function save() {
  const rater = find("rater").value.trim();
  if (!rater) {
    find("note").textContent = "Give your name first, so that your answers can be told from others'.";
    find("rater").focus();
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content(), null, 2)], { type: "application/json" }));
  link.download = `answers-${page}-${rater.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
}

for (const button of buttons) button.addEventListener("click", () => rate(button.dataset.choice));
find("back").addEventListener("click", () => go(-1));
find("next").addEventListener("click", () => go(1));
find("save").addEventListener("click", save);
find("rater").addEventListener("input", keep);
document.addEventListener("keydown", (event) => {
  // A key held down would rate every pair; with a modifier it is the browser's.
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.id === "rater") return;
  if (event.key in keys) rate(keys[event.key]);
  else if (event.key === "Backspace") go(-1);
  else if (event.key.toLowerCase() === "n") go(1);
  else return;
  event.preventDefault();
});

restore();
show(false);
