"use strict";
// Draws what the server computes: no number is made here, and text is only ever put in as text.

const find = (selector, within = document) => within.querySelector(selector);
const temperatures = JSON.parse(document.body.dataset.temperatures);
const fields = [...document.querySelectorAll("textarea")];
const cards = [...document.querySelectorAll(".card")];
const modelNames = cards.map((card) => card.dataset.model);
let distributions = [];
let latest = 0; // which question's answers are wanted: an older one's are dropped

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function bar(share) {
  const outer = make("div", undefined, "bar");
  const inner = make("i");
  outer.setAttribute("aria-hidden", "true");
  inner.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  outer.append(inner);
  return outer;
}

async function post(path, typed) {
  let reply;
  try {
    reply = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ typed }),
    });
  } catch {
    throw new Error("The page's server does not answer. Check that potstill demo is still running.");
  }
  let found;
  try {
    found = await reply.json();
  } catch {
    throw new Error("The page's server failed. Read the error in its terminal.");
  }
  return found;
}

function tell(problem) {
  const place = find("#problem");
  place.textContent = problem;
  place.hidden = !problem;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

// --- asking --------------------------------------------------------------------------------------

async function ask() {
  const number = ++latest;
  const typed = fields.map((field) => field.value);
  const button = find("#ask");
  button.disabled = true;
  find("#status").textContent = "Asking …";
  for (const card of cards) find(".time", card).textContent = "";
  find("#noise").hidden = true;
  try {
    const found = await post("/answer", typed);
    if (number !== latest) return;
    tell(found.problem ? sentence(found.problem) : "");
    if (found.problem) {
      hideAnswers();
      return;
    }
    show(found);
    button.disabled = false;
    find("#status").textContent = "Measuring times …";
    const times = await post("/times", typed);
    if (number !== latest) return;
    if (!times.problem) showTimes(times);
    find("#status").textContent = "Done.";
  } catch (error) {
    if (number === latest) {
      tell(error.message);
      hideAnswers();
    }
  } finally {
    if (number === latest) {
      button.disabled = false;
      if (find("#status").textContent !== "Done.") find("#status").textContent = "";
    }
  }
}

function hideAnswers() {
  find("#answers").hidden = true;
  find("#softened").hidden = true;
}

function show(found) {
  find("#notes").replaceChildren(...found.notes.map((note) => make("li", sentence(note))));
  found.models.forEach((model, place) => fill(cards[place], model));
  find("#answers").hidden = false;
  distributions = found.distributions;
  find("#softened").hidden = distributions.length === 0;
  if (distributions.length === 0) return;
  const which = find("#which");
  which.replaceChildren(...distributions.map((one) => make("option", one.title)));
  which.selectedIndex = found.foremost;
  find("#which-control").hidden = distributions.length === 1;
  draw();
}

function fill(card, model) {
  const parts = [];
  if (model.headline) parts.push(make("p", model.headline, "headline clamp"));
  if (model.beside) {
    parts.push(make("p", model.beside.told, model.beside.alike ? "alike" : "alike differs"));
  }
  if (model.words.length) parts.push(tagged(model.words));
  for (const group of model.groups) parts.push(choices(group));
  if (model.notes.length) {
    const notes = make("ul", undefined, "notes");
    notes.append(...model.notes.map((note) => make("li", sentence(note))));
    parts.push(notes);
  }
  find(".answer", card).replaceChildren(...parts);
}

function choices(group) {
  const place = make("div", undefined, "group");
  if (group.title) place.append(make("h4", group.title));
  const list = make("ul");
  for (const [name, told, share] of group.rows) {
    const item = make("li");
    const line = make("div", undefined, "line");
    line.append(make("span", name, "clamp"), make("span", told));
    item.append(line);
    if (share !== null) item.append(bar(share));
    list.append(item);
  }
  place.append(list);
  return place;
}

function tagged(words) {
  const place = make("p", undefined, "words");
  for (const [word, tag, sure] of words) {
    if (tag === "O") {
      place.append(`${word} `);
      continue;
    }
    const mark = make("mark", word);
    mark.title = `${tag}: ${(100 * sure).toFixed(1)}%`;
    mark.append(make("b", tag));
    place.append(mark, " ");
  }
  return place;
}

function showTimes(times) {
  find("#noise").textContent = times.noise || "";
  find("#noise").hidden = !times.noise;
  const first = times.milliseconds[modelNames[0]];
  cards.forEach((card, place) => {
    const taken = times.milliseconds[modelNames[place]];
    const digits = taken < 10 ? 2 : taken < 100 ? 1 : 0;
    const [ratio, how] = taken > first ? [taken / first, "slower"] : [first / taken, "faster"];
    const compared = place ? `, ${ratio.toFixed(1)}× ${how} than ${modelNames[0]}` : "";
    find(".time", card).textContent = `${taken.toFixed(digits)} ms${compared}`;
  });
}

// --- the softened distribution -------------------------------------------------------------------

function draw() {
  const slider = find("#temperature");
  const step = Number(slider.value);
  find("#shown-temperature").textContent = `T = ${temperatures[step]}`;
  slider.setAttribute("aria-valuetext", `T = ${temperatures[step]}`);
  const one = distributions[find("#which").selectedIndex];
  if (!one) return;
  find("#formula").textContent = one.apart ? "sigmoid(z / T), for each label by itself" : "softmax(z / T)";
  const other = find("#other");
  const chosen = [modelNames[0], ...(other ? [other.value] : [])];
  const head = make("tr");
  for (const name of [one.apart ? "Label" : "Choice", ...chosen]) {
    const cell = make("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  find("#distribution thead").replaceChildren(head);
  const rows = one.candidates.map((candidate, place) =>
    row(candidate, chosen.map((name) => one.models[name].shares[step][place])));
  const rest = chosen.map((name) => one.models[name].rest[step]);
  if (rest.some((share) => share > 0.0005)) {
    const last = row("all others", rest);
    last.className = "rest";
    rows.push(last);
  }
  find("#distribution tbody").replaceChildren(...rows);
  const divergence = chosen.length > 1 && one.models[chosen[1]].divergence;
  find("#divergence").textContent = divergence
    ? `KL(${chosen[0]} ‖ ${chosen[1]}) at T = ${temperatures[step]}: ${divergence[step].toPrecision(3)} nats${one.apart ? ", the mean of the labels" : ""}.`
    : "";
}

function row(name, shares) {
  const line = make("tr");
  const head = make("th");
  head.scope = "row";
  head.append(make("span", name, "clamp"));
  line.append(head);
  shares.forEach((share, place) => {
    const cell = make("td", share === null ? "not a choice of this model" : `${(100 * share).toFixed(1)}%`);
    if (place) cell.className = "second-model";
    if (share !== null) cell.append(bar(share));
    line.append(cell);
  });
  return line;
}

// --- what the user does --------------------------------------------------------------------------

find("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
for (const field of fields) {
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      ask();
    }
  });
}
for (const control of ["#temperature", "#which", "#other"]) {
  find(control)?.addEventListener("input", draw);
}
find("#mask")?.addEventListener("click", () => {
  const field = fields[0];
  field.setRangeText(find("#mask").dataset.mask, field.selectionStart, field.selectionEnd, "end");
  field.focus();
});
find("#temperature").value = find("#temperature").defaultValue; // browsers keep what was there
draw();
ask();
