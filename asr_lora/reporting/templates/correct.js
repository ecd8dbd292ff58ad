// The page on which texts are corrected: asks the server for a clip, plays it, and saves what is decided, by keyboard first.
{% include "waves.js" %}
const SLOW = 0.75, BACK = 2; // of the speed; seconds
const DRAFT = 400, HOLD = 30000; // ms, between two keys before a draft is saved; between two renewals of the lease
const at = name => element.querySelector(`#${name}`);
const [who, clip, sound, text, message] = ["who", "clip", "sound", "text", "message"].map(at);
const wave = element.querySelector(".wave");
const stored = (name, made) => {
  const value = localStorage.getItem(name) ?? made();
  localStorage.setItem(name, value);
  return value;
};
const random = () => [...crypto.getRandomValues(new Uint8Array(12))].map(byte => byte.toString(16).padStart(2, "0"));
const client = stored("asr_lora-client", () => random().join("")); // of this browser: its clips and drafts
who.value = stored("asr_lora-name", () => "");
let item = null, busy = false, waiting = null, active = false;

const say = (line, status = "") => {
  message.hidden = !line;
  message.textContent = line;
  at("state").textContent = status;
};
const SILENT = {error: "Not saved: the server does not answer. The text stays here; try again once it runs."};
const ask = async (action, more = {}) => {
  const asked = {action, client, who: who.value, ...(item && {item: item.id, revision: item.revision}), ...more};
  return await server.ask(asked) ?? SILENT; // what fails is undefined
};
const playing = () => sound.play().catch(() => {}); // a browser may want a key first
const show = (found, play) => {
  item = found;
  clip.hidden = !item;
  at("end").hidden = Boolean(item);
  at("where").textContent = "";
  sound.pause();
  if (!item) return;
  at("where").textContent = `no. ${item.place}: ${item.where}`;
  at("why").textContent = item.why;
  text.value = item.draft ?? item.text;
  text.lang = item.language;
  at("second").hidden = !item.second || item.second === item.text;
  const other = at("second").querySelector("span");
  other.textContent = item.second;
  other.lang = item.language;
  if (sound.src) URL.revokeObjectURL(sound.src);
  sound.removeAttribute("src");
  wave.dataset.seconds = item.seconds;
  wave.hidden = !item.sound;
  if (item.sound) {
    const bytes = Uint8Array.from(atob(item.sound), char => char.charCodeAt(0));
    wave.querySelector("svg").setAttribute("viewBox", `0 0 ${item.wave.bars} 100`);
    wave.querySelector("path").setAttribute("d", item.wave.path);
    const rate = sound.playbackRate;
    sound.src = URL.createObjectURL(new Blob([bytes], {type: "audio/flac"}));
    sound.defaultPlaybackRate = sound.playbackRate = rate;
  }
  say(item.problem ?? "", item.draft === null ? "" : "your draft");
  clip.focus({preventScroll: true});
  if (play && item.sound) playing();
};
const showProgress = async () => {
  const {html} = await ask("progress");
  if (html) at("progress").innerHTML = html; // made and escaped by the server
};
const next = async play => {
  const found = await ask("next");
  if (found.error) say(found.error);
  else show(found.item, play);
  showProgress();
};
const conflict = other => {
  item.revision = other.revision;
  const did = other.dropped ? "dropped this clip" : other.undone ? "took a decision on this clip back" : `saved: ${other.text}`;
  say(`${other.who} meanwhile ${did} — Enter saves your text instead, n leaves it as it is.`);
};
const decide = async action => {
  if (!who.value.trim()) {
    say("Type your name first: the table says who corrected.");
    who.focus();
    return;
  }
  const answer = await ask(action, action === "save" ? {text: text.value} : {});
  if (answer.other) conflict(answer.other);
  else if (answer.error) say(answer.error);
  else await next(true);
};
const drafted = async () => {
  clearTimeout(waiting);
  if (waiting === null || !item) return;
  waiting = null;
  const {error} = await ask("draft", {text: text.value});
  say(error ?? (message.hidden ? "" : message.textContent), error ? "" : "draft saved");
};

const actions = {
  play: () => sound.paused ? playing() : sound.pause(),
  slower: () => {
    const slow = sound.playbackRate === 1;
    sound.defaultPlaybackRate = sound.playbackRate = slow ? SLOW : 1;
    element.querySelector("[data-do=slower]").setAttribute("aria-pressed", slow);
  },
  back: () => { sound.currentTime = Math.max(0, sound.currentTime - BACK); },
  edit: () => text.focus(),
  save: () => decide("save"),
  drop: () => decide("drop"),
  skip: async () => {
    const {error} = await ask("skip");
    if (error) say(error); else await next(true);
  },
  undo: async () => {
    const found = await ask("undo");
    if (found.error) say(found.error);
    else { show(found.item, false); showProgress(); }
  },
};
const LASTING = ["save", "drop", "skip", "undo"]; // that wait for the server: one at a time
const act = async name => {
  if (!item && name !== "undo") return;
  if (!LASTING.includes(name)) return actions[name]();
  if (busy) return;
  busy = true;
  clearTimeout(waiting);
  waiting = null;
  try { await actions[name](); } finally { busy = false; }
};
const keys = {
  " ": "play", s: "slower", b: "back", ArrowLeft: "back", e: "edit", Enter: "save", d: "drop", n: "skip", u: "undo",
};

document.addEventListener("keydown", event => {
  active = true;
  if (event.defaultPrevented || event.isComposing || event.altKey || event.metaKey) return;
  if (event.target === who) {
    if (event.key === "Enter" || event.key === "Escape") clip.focus();
    return;
  }
  if (event.target === text) {
    const name = event.ctrlKey && {Enter: "save", " ": "play"}[event.key];
    if (event.key === "Escape") clip.focus();
    if (!name) return;
    event.preventDefault();
    act(name);
    return;
  }
  if (event.ctrlKey || event.repeat && event.key !== "ArrowLeft") return;
  const pressed = event.target.closest?.("button, a, summary") && [" ", "Enter"].includes(event.key);
  const name = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (pressed || !name) return; // a focused button answers these itself
  event.preventDefault();
  act(name);
});
element.addEventListener("click", event => {
  active = true;
  const button = event.target.closest("[data-do]");
  if (!button) return;
  if (event.detail) button.blur(); // by mouse: the next space plays
  act(button.dataset.do);
});
who.addEventListener("input", () => localStorage.setItem("asr_lora-name", who.value));
text.addEventListener("input", () => {
  active = true;
  clearTimeout(waiting);
  waiting = setTimeout(drafted, DRAFT);
});
text.addEventListener("blur", drafted);
document.addEventListener("visibilitychange", () => { if (document.hidden) drafted(); });
setInterval(async () => { // the lease of a clip that a person works at; and whether another one saved it
  if (!item || busy || !(active || !sound.paused)) return;
  active = false;
  const held = item.id, {other} = await ask("hold");
  if (other && item?.id === held) conflict(other);
}, HOLD);
next(false).then(() => { if (!who.value.trim()) who.focus(); });
