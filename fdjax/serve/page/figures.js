// The line of figures: frames a second, input to frame, chunk, memory.

const WINDOW = 3000; // ms
const KEPT = 200;

/** Measures what the player sees. */
export class Figures {
  constructor() {
    this.times = [];
    this.inputs = [];
    this.latencies = [];
    this.sequence = 0;
    setInterval(() => this.draw(), 500);
  }

  /** An input is sent; its number. */
  input() {
    this.inputs.push({ number: ++this.sequence, at: performance.now() });
    return this.sequence;
  }

  /** A frame is on the screen. */
  frame(frame) {
    const now = performance.now();
    if (frame.count > 1) this.times.push(now);
    while (this.inputs.length && this.inputs[0].number <= frame.input) {
      this.latencies.push(now - this.inputs.shift().at);
      if (this.latencies.length > KEPT) this.latencies.shift();
    }
  }

  /** The last input-to-frame times: the newest, and the 95th of a hundred. */
  latency() {
    if (!this.latencies.length) return null;
    const sorted = [...this.latencies].sort((a, b) => a - b);
    return { last: this.latencies.at(-1), p95: sorted[Math.floor(0.95 * (sorted.length - 1))] };
  }

  fps() {
    const now = performance.now();
    while (this.times.length && this.times[0] < now - WINDOW) this.times.shift();
    if (this.times.length < 2) return 0;
    return (1000 * (this.times.length - 1)) / (this.times.at(-1) - this.times[0]);
  }

  chunk(chunk) {
    set("chunk", chunk.committed);
    set("chunk-ms", `${Math.round(chunk.chunk_ms)} ms`);
  }

  memory(pong) {
    const bytes = pong.device_memory ?? pong.memory;
    if (bytes) set("memory", bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);
  }

  draw() {
    const fps = this.fps();
    set("fps", fps ? fps.toFixed(1) : "–");
    const latency = this.latency();
    if (latency) set("latency", `${Math.round(latency.last)} ms (p95 ${Math.round(latency.p95)})`);
  }
}

function set(id, text) {
  document.getElementById(id).textContent = text;
}
