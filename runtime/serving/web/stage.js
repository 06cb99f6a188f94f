// Where pictures are shown: a preview, the picture, or what it starts from.

const SMALL = 128; // pixels: a picture up to here is shown with its pixels as they are

export class Stage {
  #url = null; // of the picture
  #source = null; // the size of what an edit starts from

  /** @param ui the page's elements by their ids */
  constructor(ui) {
    this.ui = ui;
    ui["view-source"].addEventListener("click", () => this.view("source"));
    ui["view-picture"].addEventListener("click", () => this.view("picture"));
  }

  /** Shows "picture", "source" or "empty". */
  view(name) {
    const { ui } = this;
    ui.stage.dataset.view = name;
    ui["view-source"].setAttribute("aria-pressed", name === "source");
    ui["view-picture"].setAttribute("aria-pressed", name === "picture");
    ui.views.hidden = !(this.#source && this.#url);
    const { naturalWidth, naturalHeight } = ui.picture;
    const { width, height } = name === "source" ? this.#source : { width: naturalWidth, height: naturalHeight };
    ui.sheet.style.setProperty("--ratio", width && height ? width / height : 1);
    ui.sheet.classList.toggle("small", Math.max(width, height) <= SMALL);
  }

  /** Shows a picture, once it is decoded, instead of the one before. */
  async picture(blob, alt, { preview = false } = {}) {
    const { ui } = this;
    const url = URL.createObjectURL(blob);
    const next = new Image();
    next.src = url;
    await next.decode().catch(() => {}); // what cannot be decoded is shown as the browser shows such
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = url;
    Object.assign(next, { id: "picture", alt });
    ui.picture.replaceWith(next);
    ui.picture = next;
    ui.stage.classList.toggle("preview", preview);
    this.view("picture");
  }

  /** Shows no picture; what an edit starts from where there is that. */
  empty() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = null;
    this.ui.picture.removeAttribute("src");
    this.ui.stage.classList.remove("preview");
    this.view(this.#source ? "source" : "empty");
  }

  /** Tells the size of what an edit starts from; null where there is none. */
  source(size) {
    this.#source = size;
    const shown = this.ui.stage.dataset.view;
    if (shown === "source" && !size) this.view(this.#url ? "picture" : "empty");
    else this.view(shown);
  }

  /** Tells how far a picture is: an event of the API; `{}` before the first, null when none is made. */
  progress(event) {
    const { ui } = this;
    ui.meter.hidden = event === null;
    ui.stage.classList.toggle("working", event !== null);
    if (event?.steps) {
      ui.progress.max = event.steps;
      ui.progress.value = event.step;
    } else {
      ui.progress.removeAttribute("value");
    }
    ui.step.textContent = event ? told(event) : "";
  }
}

function told({ state, position, step, steps }) {
  if (steps) return `step ${step} of ${steps}`;
  if (state === "queued") return position ? `waiting, ${position} before it` : "waiting, next in line";
  return state === "running" ? "starting" : "sending";
}
