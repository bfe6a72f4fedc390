// The pictures: frames are decoded in order, stale ones dropped, each is acknowledged.

const SMALL = 256; // rows, below which a picture keeps its pixels' edges

/** Draws frames; calls onshown(frame) after each, drawn or dropped. */
export class Stage {
  constructor(onshown) {
    this.onshown = onshown;
    this.epochs = { a: 0, b: 0 };
    this.canvases = { a: document.getElementById("canvas-a"), b: document.getElementById("canvas-b") };
    this.contexts = Object.fromEntries(
      Object.entries(this.canvases).map(([name, canvas]) => [name, canvas.getContext("2d")]));
    this.queue = Promise.resolve();
    this.shown = { a: -1, b: -1 };
  }

  /** Takes a frame; older epochs are dropped. */
  show(frame) {
    const blob = new Blob([frame.data], { type: `image/${frame.image}` });
    const decoded = createImageBitmap(blob);
    this.queue = this.queue
      .then(() => decoded)
      .then((bitmap) => this.draw(frame, bitmap), () => this.onshown(frame, false));
  }

  draw(frame, bitmap) {
    const isFresh = frame.epoch >= this.epochs[frame.timeline];
    if (isFresh) {
      const canvas = this.canvases[frame.timeline];
      if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
        canvas.width = bitmap.width;
        canvas.height = bitmap.height;
      }
      canvas.classList.toggle("small", bitmap.height < SMALL);
      canvas.style.setProperty("--ratio", bitmap.width / bitmap.height);
      this.contexts[frame.timeline].drawImage(bitmap, 0, 0);
      this.shown[frame.timeline] = frame.chunk;
      canvas.dataset.chunk = frame.chunk;
      canvas.dataset.frame = frame.index;
      canvas.dataset.count = frame.count;
      canvas.dataset.epoch = frame.epoch;
    }
    bitmap.close();
    this.onshown(frame, isFresh);
  }

  /** Says where timelines stand, and which one moves. */
  update(state) {
    const names = state.timelines.map((timeline) => timeline.timeline);
    document.getElementById("stages").classList.toggle("two", names.length > 1);
    for (const name of ["a", "b"]) {
      const stage = document.getElementById(`stage-${name}`);
      stage.hidden = !names.includes(name);
      stage.classList.toggle("selected", name === state.selected);
    }
    for (const timeline of state.timelines) this.epochs[timeline.timeline] = timeline.epoch;
  }

  /** Saves what a timeline shows as a PNG. */
  save(timeline, name) {
    this.canvases[timeline].toBlob((blob) => download(URL.createObjectURL(blob), name));
  }
}

/** Lets the browser keep what an address gives. */
export function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  if (url.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(url), 10000);
}
