// The timeline: one thumbnail a chunk, to look at and to jump to.

const MOST = 400; // thumbnails in the strip

/** Chunks of both timelines; calls onjump(chunks that are then committed). */
export class History {
  constructor(onjump) {
    this.onjump = onjump;
    this.steps = { a: [], b: [] };
    this.now = null;
    this.strip = document.getElementById("strip");
    this.scrub = document.getElementById("scrub");
    this.scrub.addEventListener("input", () => this.preview());
    this.scrub.addEventListener("change", () => this.jump(Number(this.scrub.value)));
  }

  /** A new chunk. */
  add(chunk) {
    const steps = this.steps[chunk.timeline];
    const place = chunk.committed - 1;
    this.forget(steps.splice(place));
    while (steps.length < place) steps.push(null);
    const url = URL.createObjectURL(new Blob([chunk.thumbnail], { type: "image/jpeg" }));
    steps.push({ url, keys: chunk.keys, prompt: chunk.prompt });
    const old = steps[steps.length - 1 - MOST];
    if (old) {
      this.forget([old]);
      steps[steps.length - 1 - MOST] = null;
    }
    if (this.now?.timeline === chunk.timeline) this.update({ ...this.now, ...chunk });
  }

  /** The other timeline begins with the same past. */
  fork(source, timeline) {
    this.forget(this.steps[timeline]);
    // Addresses of pictures are each timeline's own, as each forgets its own.
    this.steps[timeline] = this.steps[source].map((step) => step && { ...step, isShared: true });
  }

  forget(steps) {
    for (const step of steps) if (step && !step.isShared) URL.revokeObjectURL(step.url);
  }

  /** Where the selected timeline stands. */
  update(timeline) {
    this.now = timeline;
    const steps = this.steps[timeline.timeline];
    const end = timeline.committed + timeline.redo_limit;
    this.forget(steps.splice(end));
    while (steps.length < end) steps.push(null);
    this.first = Math.max(0, timeline.committed - timeline.undo_limit);
    this.scrub.min = this.first;
    this.scrub.max = Math.max(end, this.first);
    this.scrub.value = timeline.committed;
    this.draw(steps, timeline);
  }

  draw(steps, timeline) {
    const from = Math.max(0, steps.length - MOST);
    const items = steps.slice(from).map((step, offset) => {
      const index = from + offset;
      const item = this.strip.children[offset] ?? this.item();
      const before = steps[index - 1];
      item.className = [
        index + 1 === timeline.committed ? "now" : "",
        index >= timeline.committed ? "undone" : "",
        index + 1 < this.first ? "far" : "",
        step && before && before.prompt !== step.prompt ? "said" : "",
      ].join(" ");
      this.fill(item.firstChild, step, index);
      return item;
    });
    for (const item of items) if (!item.isConnected) this.strip.append(item);
    while (this.strip.children.length > items.length) this.strip.lastChild.remove();
    this.strip.scrollLeft = Math.max(0,
      (this.strip.children[timeline.committed - 1 - from]?.offsetLeft ?? 0) - this.strip.clientWidth * 0.7);
  }

  item() {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("img"), document.createElement("b"), document.createElement("i"));
    button.firstChild.alt = "";
    button.addEventListener("click", () => this.jump(Number(button.dataset.chunk)));
    item.append(button);
    return item;
  }

  fill(button, step, index) {
    const [image, keys, number] = button.children;
    const url = step?.url ?? "";
    if (image.dataset.url !== url) {
      image.dataset.url = url;
      image.hidden = !url;
      if (url) image.src = url;
      else image.removeAttribute("src");
    }
    keys.textContent = step?.keys ?? "";
    number.textContent = index;
    button.dataset.chunk = index + 1;
    button.disabled = index + 1 < this.first;
    button.title = step?.prompt ?? "";
    button.setAttribute("aria-label",
      `Go to chunk ${index}${step?.keys ? `, keys ${step.keys}` : ""}`);
  }

  preview() {
    for (const item of this.strip.children)
      item.classList.toggle("now", Number(item.firstChild.dataset.chunk) === Number(this.scrub.value));
  }

  jump(chunk) {
    if (this.now && chunk !== this.now.committed) this.onjump(chunk);
  }
}
