// What is held: on the keyboard, on the touch pad, on a gamepad.

const ARROWS = { ArrowUp: "w", ArrowDown: "s", ArrowLeft: "a", ArrowRight: "d" };
const SIGNS = { w: "▲", s: "▼", a: "◀", d: "▶" };
const PLACES = [null, "w", null, "a", "s", "d"];
const TILT = 0.4; // of a stick, from which it counts

/** Calls onchange(keys) when other keys are held, and actions by their shortcut. */
export class Keys {
  constructor(onchange, shortcuts) {
    this.onchange = onchange;
    this.shortcuts = shortcuts;
    this.actions = {};
    this.held = { keyboard: new Set(), touch: new Set(), gamepad: new Set() };
    this.said = "";
    this.buttons = [];
    addEventListener("keydown", (event) => this.down(event));
    addEventListener("keyup", (event) => this.up(event));
    addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    addEventListener("gamepadconnected", () => this.poll());
  }

  /** Takes the keys of the method. */
  use(actions) {
    this.actions = actions;
    const pad = document.getElementById("pad");
    const known = Object.keys(actions).filter((key) => key !== ".");
    const places = known.length ? [...PLACES, ...known.filter((key) => !(key in SIGNS))] : [];
    pad.replaceChildren(...places.map((key) => this.padButton(known.includes(key) ? key : null)));
    pad.hidden = !known.length || !matchMedia("(pointer: coarse)").matches;
  }

  padButton(key) {
    if (key === null) return document.createElement("span");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = SIGNS[key] ?? key.toUpperCase();
    button.setAttribute("aria-label", this.actions[key]);
    const set = (isHeld) => {
      button.classList.toggle("held", isHeld);
      this.change("touch", key, isHeld);
    };
    button.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      set(true);
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"])
      button.addEventListener(name, () => set(false));
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    return button;
  }

  named(event) {
    const key = ARROWS[event.key] ?? event.key.toLowerCase();
    return key in this.actions && key !== "." ? key : null;
  }

  down(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]")) return;
    const key = this.named(event);
    if (key !== null) {
      event.preventDefault();
      this.change("keyboard", key, true);
      return;
    }
    const isPressed = event.target instanceof HTMLButtonElement && [" ", "Enter"].includes(event.key);
    const action = this.shortcuts[event.key.toLowerCase()];
    if (action && !event.repeat && !isPressed) {
      event.preventDefault();
      action();
    }
  }

  up(event) {
    const key = this.named(event);
    if (key !== null) this.change("keyboard", key, false);
  }

  change(source, key, isHeld) {
    if (isHeld) this.held[source].add(key);
    else this.held[source].delete(key);
    this.tell();
  }

  release() {
    for (const held of Object.values(this.held)) held.clear();
    this.tell();
  }

  tell() {
    const held = Object.keys(this.actions).filter((key) =>
      Object.values(this.held).some((keys) => keys.has(key)));
    const said = held.join("");
    if (said === this.said) return;
    this.said = said;
    this.onchange(said);
  }

  poll() {
    const pad = navigator.getGamepads().find(Boolean);
    if (!pad) {
      this.held.gamepad.clear();
      this.tell();
      return;
    }
    const pressed = (index) => Boolean(pad.buttons[index]?.pressed);
    const [x = 0, y = 0] = pad.axes;
    const wanted = {
      w: y < -TILT || pressed(12), s: y > TILT || pressed(13),
      a: x < -TILT || pressed(14), d: x > TILT || pressed(15),
    };
    for (const [key, isHeld] of Object.entries(wanted))
      if (key in this.actions) {
        if (isHeld) this.held.gamepad.add(key);
        else this.held.gamepad.delete(key);
      }
    this.tell();
    const shortcuts = [" ", "z", "f", "y"];
    shortcuts.forEach((name, index) => {
      if (pressed(index) && !this.buttons[index]) this.shortcuts[name]?.();
      this.buttons[index] = pressed(index);
    });
    requestAnimationFrame(() => this.poll());
  }
}

function isTyping(target) {
  return target instanceof HTMLSelectElement ||
    (target instanceof HTMLInputElement && target.type !== "file");
}
