"use strict";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const SHOWN = 20;
const HISTORY = 60;
const KEY = "router-key";
const SVG = "http://www.w3.org/2000/svg";
const STATES = {
  up: ["● up", "good"],
  full: ["■ full", "bad"],
  cooling: ["✕ cooling down", "bad"],
  probing: ["◐ being tried", ""],
};

const find = (id) => document.getElementById(id);
const history = new Map();
let timer = null;
let asking = false;

/* Everything from outside becomes text, never markup. */
function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function number(value, digits = 1) {
  return typeof value === "number" && isFinite(value) ? value.toFixed(digits) : "–";
}

function percent(part, whole) {
  return whole ? `${Math.round((100 * part) / whole)} %` : "–";
}

function track(share, className) {
  const outer = make("span", "", "track");
  const inner = make("span", "", `fill ${className}`);
  inner.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
  outer.setAttribute("aria-hidden", "true");
  outer.append(inner);
  return outer;
}

function tile(name, value) {
  const group = make("div");
  group.append(make("dt", name), make("dd", value));
  return group;
}

function drawTotals(totals) {
  const known = [
    ["requests", totals.requests],
    ["answered", totals.answered],
    ["deadlines met", percent(totals.deadlines_met, totals.answered + totals.failed)],
    ["sent elsewhere", totals.retried],
    ["refused", totals.refused],
    ["broke off", totals.failed],
    ["clients gone", totals.cancelled],
    ["learned from", totals.learned],
    ["tokens", totals.tokens],
    ["US dollars", number(totals.dollars, 4)],
  ];
  find("totals").replaceChildren(...known.map(([name, value]) => tile(name, String(value ?? "–"))));
}

function slots(server) {
  const row = make("div", "", "slots");
  const waiting = Math.min(server.waiting, 24);
  for (let i = 0; i < Math.min(server.slots, 24); i += 1) {
    row.append(make("i", "", i < server.in_service ? "busy" : ""));
  }
  for (let i = 0; i < waiting; i += 1) row.append(make("i", "", "wait"));
  row.setAttribute("aria-hidden", "true");
  return row;
}

/* Requests at a server, one point for each poll, oldest left. */
function spark(name, values, most) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${HISTORY - 1} 28`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const highest = Math.max(...values);
  const text = `requests at ${name} lately: now ${values.at(-1)}, at most ${highest}`;
  svg.setAttribute("aria-label", text);
  const base = document.createElementNS(SVG, "line");
  for (const [key, value] of [["x1", 0], ["x2", HISTORY - 1], ["y1", 27], ["y2", 27]]) {
    base.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  const from = HISTORY - values.length;
  const points = values.map((v, i) => `${from + i} ${27 - (25 * v) / Math.max(1, most)}`);
  path.setAttribute("d", `M${points.join("L")}`);
  svg.append(base, path);
  return svg;
}

function remember(server) {
  const values = history.get(server.name) || [];
  values.push(server.waiting + server.in_service);
  history.set(server.name, values.slice(-HISTORY));
  return history.get(server.name);
}

function drawServer(server, decisions, most) {
  const card = make("li");
  const head = make("div", "", "head");
  const [words, tone] = STATES[server.state] || [server.state, ""];
  const rest = server.cooling_s > 0 ? ` ${number(server.cooling_s, 0)} s` : "";
  head.append(make("h3", server.name), make("span", words + rest, `state ${tone}`));
  const counts = `${server.in_service} of ${server.slots} in service, ${server.waiting} waiting`;
  // requests that never got to the server say nothing about it
  const ended = decisions.filter((each) => /^(answered|broke off)/.test(each.became));
  const mine = ended.filter((each) => each.server === server.name);
  const met = mine.filter((each) => each.met).length;
  const lately = mine.length ? `, deadlines met lately ${met} of ${mine.length}` : "";
  const served = `${server.served} answered, ${server.failed} failed${lately}`;
  card.append(head, slots(server), make("p", counts), make("p", served, "quiet small"));
  card.append(make("p", `${number(server.tokens_per_s, 0)} tokens/s`, "quiet small"));
  card.append(spark(server.name, history.get(server.name), most));
  return card;
}

function drawServers(status) {
  const known = status.servers.map(remember);
  const most = Math.max(1, ...known.flat());
  const cards = status.servers.map((each) => drawServer(each, status.decisions, most));
  find("servers").replaceChildren(...cards);
}

function chances(decision) {
  const bars = make("div", "", "bars");
  for (const [name, chance] of Object.entries(decision.probabilities || {})) {
    const chosen = name === decision.server ? "chosen" : "";
    const shown = make("span", chosen ? `▸ ${name}` : name, `name ${chosen}`);
    bars.append(shown, track(chance, chosen), make("span", number(chance, 2), chosen));
  }
  return bars;
}

function timing(decision) {
  const box = make("div", "", "small");
  const whole = decision.became === "answered";
  const verdict = whole ? (decision.met ? "✓ met" : "✗ missed") : `✗ ${decision.became}`;
  const times = `${number(decision.response_s, 2)} s of ${number(decision.deadline_s)} s `;
  const line = make("p", times);
  line.append(make("strong", verdict, decision.met ? "good" : "bad"));
  const share = decision.response_s / decision.deadline_s;
  box.append(line, track(share, decision.met ? "met" : "missed"));
  return box;
}

function drawDecision(decision) {
  const item = make("li");
  const what = make("div");
  what.append(make("h3", decision.server), make("p", decision.task || "", "small"));
  const again = decision.attempt > 1 ? `, attempt ${decision.attempt}` : "";
  what.append(make("p", `made by ${decision.made_by}${again}`, "quiet small"));
  const reasons = make("p", (decision.reasons || []).join("; "), "reasons quiet small");
  item.append(what, chances(decision), timing(decision), reasons);
  return item;
}

function draw(status) {
  find("entry").hidden = true;
  find("live").hidden = false;
  find("live").classList.remove("stale");
  const ending = status.draining ? ", about to end" : "";
  tell(`live, up for ${duration(status.uptime_s)}${ending}`, false);
  find("policy").textContent = status.policy ?? "";
  drawTotals(status.totals);
  drawServers(status);
  const recent = status.decisions.slice(0, SHOWN);
  find("none").hidden = recent.length > 0;
  find("decisions").replaceChildren(...recent.map(drawDecision));
}

function duration(seconds) {
  if (seconds < 120) return `${number(seconds, 0)} s`;
  return seconds < 7200 ? `${number(seconds / 60, 0)} min` : `${number(seconds / 3600)} h`;
}

/* Said only when it changes in words, so that a screen reader does not count seconds. */
function tell(text, lost) {
  const link = find("link");
  link.setAttribute("aria-live", lost ? "assertive" : "off");
  if (link.textContent !== text) link.textContent = text;
  link.classList.toggle("lost", lost);
}

function askForKey() {
  find("live").hidden = true;
  if (find("entry").hidden) {
    find("entry").hidden = false;
    find("key").focus();
  }
  const wrong = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  stop();
  tell(wrong ? "this key is not known" : "a key is needed", wrong);
}

async function poll() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const answer = await fetch("status", { headers, signal, cache: "no-store" });
    if (answer.status === 401) askForKey();
    else if (answer.ok) draw(await answer.json());
    else throw new Error(`status ${answer.status}`);
  } catch (error) {
    find("live").classList.add("stale");
    tell("connection lost, trying again", true);
  } finally {
    asking = false;
  }
}

function start() {
  stop();
  timer = setInterval(poll, EVERY_MS);
  poll();
}

function stop() {
  clearInterval(timer);
  timer = null;
}

find("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = find("key").value.trim();
  find("key").value = "";
  // others cannot be sent in a header, so they are no keys
  if (/^[!-~]+$/.test(key)) sessionStorage.setItem(KEY, key);
  start();
});
document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
start();
