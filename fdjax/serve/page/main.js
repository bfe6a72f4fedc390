// Puts the page together.

import { Figures } from "./figures.js";
import { History } from "./history.js";
import { Keys } from "./keys.js";
import { Socket } from "./socket.js";
import { Stage, download } from "./stage.js";

const at = (id) => document.getElementById(id);
const SHORTCUTS = [
  ["Space", "pause, or go on"], ["Z", "undo a chunk"], ["Y", "redo it"],
  ["F", "fork: a second timeline"], ["1 2", "choose the timeline that moves"],
  ["N", "begin again"], ["R", "record"], ["P", "save the picture"],
  ["/", "to the prompt; Esc back"], ["?", "this help"],
];

let welcome = null;
let state = null;
const figures = new Figures();
const stage = new Stage((frame, isDrawn) => {
  socket.send({ type: "ack", frame: frame.frame });
  if (isDrawn) {
    figures.frame(frame);
    cover(null);
  }
});
const history = new History((chunk) => socket.send({ type: "jump", chunk }));
const socket = new Socket({
  onopen: () => status("Connected", "on"),
  onmessage: (message) => HANDLERS[message.type]?.(message),
  onclose: (reason, isFinal) => {
    status(isFinal ? "Ended" : "Connecting again", "off");
    cover(isFinal ? "The session is over" : "Connecting again", { text: reason, button: isFinal });
  },
});
const keys = new Keys(
  (held) => socket.send({ type: "keys", keys: held, input: figures.input(), event_id: `k${figures.sequence}-${RUN}` }),
  {
    " ": () => at("play").click(), z: () => at("undo").click(), y: () => at("redo").click(),
    f: () => at("fork").click(), n: () => at("reset").click(), r: () => at("record").click(),
    p: () => at("shot").click(), "/": () => at("prompt").focus(), "?": () => at("help").showModal(),
    1: () => select("a"), 2: () => select("b"),
  },
);
const RUN = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);

const HANDLERS = {
  welcome: (message) => {
    welcome = message;
    at("method").textContent = message.method;
    document.title = `${message.method} – fdjax live`;
    at("help-what").textContent = message.description;
    at("prompt").value = message.prompt;
    at("sessions").hidden = message.role !== "director";
    keys.use(message.keys);
    help();
  },
  loading: (message) => {
    status("Loading");
    cover(message.phase === "failed" ? "The model could not be loaded" : "Getting ready",
      { text: message.text, progress: message.phase === "failed" ? null : message.progress });
  },
  queued: (message) => {
    status(`Place ${message.position} in the queue`);
    cover("All sessions are taken", { text: `You are number ${message.position} in the queue.` });
  },
  playing: () => {
    status("Playing", "on");
    cover("Beginning", { text: "The first picture comes." });
    at("bar").hidden = at("history").hidden = false;
    at("prompt-form").hidden = !welcome.takes_prompt;
  },
  watching: (message) => {
    status(`Directing ${message.session}`, "on");
    at("history").hidden = false;
    at("prompt-form").hidden = !welcome.takes_prompt;
  },
  state: (message) => {
    state = message;
    stage.update(message);
    const now = current();
    history.update(now);
    at("undo").disabled = now.undo_limit < 1;
    at("redo").disabled = now.redo_limit < 1;
    at("play-icon").setAttribute("href", message.playing ? "#i-pause" : "#i-play");
    at("play-text").textContent = message.playing ? "Pause" : "Go on";
    at("recording").hidden = !message.recording;
    at("record").setAttribute("aria-pressed", message.recording);
    at("chunk").textContent = now.committed;
    document.body.dataset.playing = message.playing;
    document.body.dataset.committed = now.committed;
    if (document.activeElement !== at("prompt") && now.prompt) at("prompt").value = now.prompt;
  },
  chunk: (message) => {
    history.add(message);
    figures.chunk(message);
    if (state?.selected === message.timeline) {
      Object.assign(current(), message);
      at("undo").disabled = message.undo_limit < 1;
      at("redo").disabled = message.redo_limit < 1;
      document.body.dataset.committed = message.committed;
    }
  },
  forked: (message) => history.fork(message.source, message.timeline),
  frame: (message) => stage.show(message),
  file: (message) => download(message.url, message.name),
  note: (message) => toast(message.text),
  refused: (message) => toast(message.text, true),
  pong: (message) => figures.memory(message),
  ended: () => status("Ended", "off"),
};

function current() {
  return state.timelines.find((timeline) => timeline.timeline === state.selected);
}

function status(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
}

function cover(title, { text = "", progress = null, button = false } = {}) {
  at("cover").hidden = title === null;
  at("cover-title").textContent = title ?? "";
  at("cover-text").textContent = text;
  at("cover-progress").hidden = progress === null;
  at("cover-progress").value = progress ?? 0;
  at("cover-button").hidden = !button;
}

function toast(text, isBad = false) {
  const line = document.createElement("p");
  line.textContent = text;
  line.className = isBad ? "bad" : "";
  at("toasts").append(line);
  while (at("toasts").children.length > 4) at("toasts").firstChild.remove();
  setTimeout(() => line.remove(), 7000);
}

function select(timeline) {
  if (state?.timelines.length > 1) socket.send({ type: "select", timeline });
}

function help() {
  const moves = Object.entries(welcome.keys).filter(([key]) => key !== ".");
  const rows = [...moves.map(([key, what]) => [key.toUpperCase(), what]), ...SHORTCUTS];
  at("help-keys").replaceChildren(...rows.map(([key, what]) => {
    const row = document.createElement("tr");
    const [left, right] = [document.createElement("td"), document.createElement("td")];
    for (const part of key.split(" ")) {
      const cap = document.createElement("kbd");
      cap.textContent = part;
      left.append(cap, " ");
    }
    right.textContent = what;
    row.append(left, right);
    return row;
  }));
}

async function upload(file) {
  if (file.size > welcome.max_upload) {
    toast(`The file is larger than ${Math.round(welcome.max_upload / 1e6)} MB.`, true);
    return;
  }
  try {
    const response = await socket.fetch("v1/files", { method: "POST", body: file });
    const answer = await response.json();
    if (response.ok) socket.send({ type: "load", file: answer.file });
    else toast(answer.error.message, true);
  } catch {
    toast("The file could not be sent.", true);
  }
}

async function people() {
  const response = await socket.fetch("v1/sessions");
  const { sessions = [], waiting = 0 } = response.ok ? await response.json() : {};
  at("people-title").textContent = `Sessions: ${sessions.length}, waiting: ${waiting}`;
  at("people-list").replaceChildren(...sessions.map((session) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `?watch=${session.id}${location.hash}`;
    link.target = "_blank";
    link.textContent = session.id === state?.session ? "this one" : `watch ${session.id}`;
    item.append(`chunk ${session.committed_step_id}, ${session.prompt || "no prompt"} `, link);
    return item;
  }));
  at("people").showModal();
}

const CLICKS = {
  undo: () => socket.send({ type: "undo" }),
  redo: () => socket.send({ type: "redo" }),
  play: () => socket.send({ type: "play", playing: !state?.playing }),
  fork: () => socket.send({ type: "fork" }),
  reset: () => socket.send({ type: "reset", text: at("prompt").value.trim() || null }),
  save: () => socket.send({ type: "save" }),
  load: () => at("file").click(),
  replay: () => socket.send({ type: "replay" }),
  record: () => socket.send({ type: "record", recording: !state?.recording }),
  shot: () => state && stage.save(state.selected, `${welcome.method}-${stage.shown[state.selected]}.png`),
  full: () => document.fullscreenElement ? document.exitFullscreen() : at("stages").requestFullscreen?.(),
  sessions: people,
  "help-open": () => at("help").showModal(),
  "cover-button": () => socket.open(),
};
for (const [id, action] of Object.entries(CLICKS)) at(id).addEventListener("click", action);
for (const button of document.querySelectorAll(".choose"))
  button.addEventListener("click", () => select(button.dataset.timeline));
for (const button of document.querySelectorAll(".drop"))
  button.addEventListener("click", () => socket.send({ type: "drop", timeline: button.dataset.timeline }));
for (const canvas of document.querySelectorAll("canvas"))
  canvas.addEventListener("click", () => {
    canvas.focus();
    select(canvas.closest(".stage").dataset.timeline);
  });
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) upload(file);
  at("file").value = "";
});
at("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const chunks = Number(at("blend").value);
  socket.send({ type: "prompt", text: at("prompt").value, chunks });
  at("prompt").blur();
});
at("prompt").addEventListener("keydown", (event) => event.key === "Escape" && at("prompt").blur());
at("image").addEventListener("change", () => {
  socket.image = at("image").value;
  socket.send({ type: "image", format: socket.image });
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden && state?.playing && !socket.watch) socket.send({ type: "play", playing: false });
});
setInterval(() => socket.send({ type: "ping", time: performance.now() }), 2000);

if ("WebSocket" in window) socket.open();
else cover("This browser has no WebSocket", { text: "Open the page in a newer one." });
// What tests and scripts measure with.
window.fdjax = { figures, stage, get state() { return state; } };
