// The connection: hello, messages both ways, and coming back after it broke.

import { pack, unpack } from "./msgpack.js";

const STORED = "fdjax-session";
const WAITS = [500, 1000, 2000, 4000, 8000];
// Codes of the server after which another try would end in the same way.
const FINAL = new Set([4400, 4401, 4404, 4409, 4410, 4429, 4503]);

/** Calls onmessage(message), onopen() and onclose(reason, isFinal). */
export class Socket {
  constructor(handlers) {
    this.handlers = handlers;
    this.tries = 0;
    this.image = "webp";
    this.watch = new URLSearchParams(location.search).get("watch");
    this.token = new URLSearchParams(location.hash.slice(1)).get("token") ||
      sessionStorage.getItem("fdjax-token");
    if (this.token) sessionStorage.setItem("fdjax-token", this.token);
  }

  open() {
    clearTimeout(this.timer);
    const secure = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${secure}://${location.host}/v1/live`);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.send({
        type: "hello", token: this.token, image: this.image, watch: this.watch,
        resume: this.watch ? null : sessionStorage.getItem(STORED),
      });
      this.handlers.onopen();
    };
    socket.onmessage = (event) => this.receive(unpack(event.data));
    socket.onclose = (event) => this.closed(event);
  }

  receive(message) {
    if (message.type === "playing") {
      this.tries = 0;
      sessionStorage.setItem(STORED, message.secret);
    }
    this.handlers.onmessage(message);
  }

  closed(event) {
    const isFinal = FINAL.has(event.code);
    if (isFinal) sessionStorage.removeItem(STORED);
    this.handlers.onclose(event.reason || "The connection broke.", isFinal);
    if (isFinal) return;
    const wait = WAITS[Math.min(this.tries++, WAITS.length - 1)];
    this.timer = setTimeout(() => this.open(), wait);
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (this.isOpen) this.socket.send(pack(message));
  }

  fetch(path, options = {}) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    return fetch(path, { ...options, headers });
  }
}
