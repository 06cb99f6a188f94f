// What is painted over a picture: what is under it is made anew.

import { greyPng } from "./png.js";

/** Strokes of a round brush, in the picture's own pixels, so that another crop moves them with it. */
export class MaskPainter {
  /**
   * @param {HTMLCanvasElement} canvas over the picture, as large as it is shown
   * @param {() => void} changed is called when there are more or fewer strokes
   */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.strokes = []; // of {radius, points: [[x, y], ...]}
    this.brush = 0.16; // its diameter, as a part of the picture's shorter side
    this.size = { width: 1, height: 1 };
    this.crop = { x: 0, y: 0, scale: 1 };
    this.pointer = null; // where the brush hovers
    this.stroke = null; // the one that is being painted
    canvas.addEventListener("pointerdown", (event) => this.#start(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", () => this.#end());
    canvas.addEventListener("pointercancel", () => this.#end());
    canvas.addEventListener("pointerleave", () => this.#hover(null));
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  /** Lays the strokes over another part of the picture. */
  place(size, crop) {
    this.size = size;
    this.crop = crop;
    this.redraw();
  }

  /** Replaces all strokes. */
  take(strokes) {
    this.strokes = strokes;
    this.redraw();
    this.changed();
  }

  undo() {
    this.take(this.strokes.slice(0, -1));
  }

  /** The strokes as they lie on the part that is shown, in its pixels. */
  cropped() {
    const { x, y, scale } = this.crop;
    return this.strokes.map(({ radius, points }) => ({
      radius: radius * scale,
      points: points.map(([px, py]) => [(px - x) * scale, (py - y) * scale]),
    }));
  }

  /** A PNG of the part's size: white is made anew, black stays. */
  png() {
    const { width, height } = this.size;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    paint(context, this.cropped(), 1);
    const colours = context.getImageData(0, 0, width, height).data;
    return greyPng(Uint8Array.from({ length: width * height }, (_, i) => (colours[4 * i + 3] < 128 ? 0 : 255)), width, height);
  }

  redraw() {
    const zoom = (this.canvas.clientWidth / this.size.width) * devicePixelRatio;
    if (!zoom) return; // it is not shown
    this.canvas.width = Math.round(this.size.width * zoom);
    this.canvas.height = Math.round(this.size.height * zoom);
    const context = this.canvas.getContext("2d");
    context.strokeStyle = context.fillStyle = getComputedStyle(this.canvas).color;
    paint(context, this.cropped(), zoom);
    if (!this.pointer) return;
    context.beginPath();
    context.arc(this.pointer[0] * zoom, this.pointer[1] * zoom, this.#radius() * zoom, 0, 2 * Math.PI);
    for (const [colour, width] of [["black", 4], ["white", 2]]) { // to be seen on any picture
      context.strokeStyle = colour;
      context.lineWidth = width * devicePixelRatio;
      context.stroke();
    }
  }

  #radius() {
    return (Math.min(this.size.width, this.size.height) * this.brush) / 2;
  }

  #start(event) {
    if (!event.isPrimary || event.button) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { radius: this.#radius() / this.crop.scale, points: [] };
    this.strokes = [...this.strokes, this.stroke];
    this.#move(event);
    this.changed();
  }

  #move(event) {
    if (!event.isPrimary) return;
    const between = event.getCoalescedEvents?.() ?? []; // more than one a frame
    for (const each of between.length ? between : [event]) {
      const [x, y] = this.#place(each);
      this.stroke?.points.push([x / this.crop.scale + this.crop.x, y / this.crop.scale + this.crop.y]);
    }
    this.#hover(event.pointerType === "touch" ? null : this.#place(event));
  }

  #end() {
    this.stroke = null;
  }

  #hover(place) {
    this.pointer = place;
    this.redraw();
  }

  /** Where an event is, in pixels of the part that is shown. */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.size.width,
      ((event.clientY - box.top) / box.height) * this.size.height,
    ];
  }
}

function paint(context, strokes, zoom) {
  context.lineCap = context.lineJoin = "round";
  for (const { radius, points } of strokes) {
    context.lineWidth = 2 * radius * zoom;
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x * zoom, y * zoom);
    context.stroke();
    context.beginPath(); // a line of one point is not drawn
    context.arc(points[0][0] * zoom, points[0][1] * zoom, radius * zoom, 0, 2 * Math.PI);
    context.fill();
  }
}
