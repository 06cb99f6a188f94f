// The page: what is asked for, what comes of it, and what came before.

import { ApiError, cancelRequest, makePicture, pictureOf, requestId, servedModel } from "./api.js";
import { History } from "./history.js";
import { MaskPainter } from "./mask.js";
import { Sizes } from "./sizes.js";
import { Source } from "./source.js";
import { Stage } from "./stage.js";

const THUMBNAIL = 160; // pixels
const PAUSE = 1000; // milliseconds between two looks whether the model is open
const PATIENCE = 10_000; // milliseconds for a cancelled request to end by itself

const ui = Object.fromEntries(Array.from(document.querySelectorAll("[id]"), (element) => [element.id, element]));
const stage = new Stage(ui);
const painter = new MaskPainter(ui.mask, showTools);
const thumbnails = new Map(); // ids -> object URLs

let model = null;
let sizes = null;
let history = null;
let source = null; // what is edited
let shown = null; // the entry of the history that is on the stage, with its files
let running = null; // {id, controller}

// --- what is asked for

function fieldsAsked() {
  const found = { prompt: ui.prompt.value, size: asText(sizeAsked()) };
  for (const name of ["negative_prompt", "scheduler"]) if (ui[name].value.trim()) found[name] = ui[name].value;
  for (const name of ["num_inference_steps", "guidance_scale"]) {
    if (ui[name].validity.badInput) throw new ApiError({ message: `${ui[name].labels[0].textContent} must be a number`, param: name });
    if (ui[name].value) found[name] = Number(ui[name].value);
  }
  const seed = ui.seed.value.trim();
  if (seed) found.seed = /^\d+$/.test(seed) ? Number(seed) : seed; // what is no number, the server refuses
  if (Number.isInteger(found.seed) && !Number.isSafeInteger(found.seed)) {
    throw new ApiError({ message: `seeds go up to ${Number.MAX_SAFE_INTEGER} on this page`, param: "seed" });
  }
  if (source) found.strength = Number(ui.strength.value);
  return found;
}

function sizeAsked(kept = "width") {
  return sizes.nearest({ width: ui.width.valueAsNumber, height: ui.height.valueAsNumber }, kept);
}

function showSize(size) {
  ui.width.value = size.width;
  ui.height.value = size.height;
  for (const button of ui.shapes.children) button.setAttribute("aria-pressed", button.title === asText(size));
  if (source) {
    source.draw(ui.source, size);
    painter.place(size, source.crop(size));
    stage.source(size);
  }
}

function asText({ width, height }) {
  return `${width}x${height}`;
}

function take(fields) {
  for (const name of ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "seed"]) {
    ui[name].value = fields[name] ?? "";
  }
  if (fields.strength) ui.strength.value = fields.strength;
  const [width, height] = fields.size.split("x").map(Number);
  showSize(sizes.nearest({ width, height }));
  showRanges();
}

// --- a picture to start from

function takesPictures() {
  return Boolean(model?.edits || model?.masks);
}

async function startFrom(blob, name, strokes = []) {
  try {
    const read = await Source.read(blob, name);
    source?.bitmap.close();
    source = read;
  } catch {
    return fail(new ApiError({ message: `${name} is no picture that this browser can read`, param: "image" }));
  }
  clearError();
  showSize(sizes.of(source.size));
  stage.view("source");
  painter.take(model.masks ? strokes : []);
}

function startFromNothing() {
  source?.bitmap.close();
  source = null;
  ui.file.value = "";
  paint(false);
  stage.source(null);
  painter.take([]);
}

function paint(on) {
  ui.paint.setAttribute("aria-pressed", on);
  ui["brush-field"].hidden = !on;
  ui.stage.classList.toggle("painting", on);
  if (on) stage.view("source");
}

function showTools() {
  ui.drop.hidden = source !== null;
  ui["source-tools"].hidden = source === null;
  ui["source-name"].textContent = source?.name ?? "";
  ui["mask-tools"].hidden = source === null || !model.masks;
  ui.undo.disabled = ui.clear.disabled = painter.strokes.length === 0;
}

function showRanges() {
  ui["strength-shown"].textContent = Number(ui.strength.value).toFixed(2);
  painter.brush = ui.brush.value / 100;
}

// --- making

async function generate() {
  if (running || !model) return;
  clearError();
  const controller = new AbortController();
  running = { id: requestId(), controller };
  busy(true);
  try {
    const fields = fieldsAsked();
    const files = await filesAsked(sizeAsked());
    const made = await finished(makePicture(fields, files, { id: running.id, signal: controller.signal }), fields);
    await keep(fields, files, made);
    announce(`The picture is there, seed ${made.seed}.`);
  } catch (error) {
    if (error.name === "AbortError" || error.code === "cancelled") announce("Cancelled.");
    else fail(error);
    await restore();
  } finally {
    running = null;
    busy(false);
  }
}

async function filesAsked(size) {
  if (!source) return { image: null, mask: null, strokes: [], name: null };
  const strokes = painter.cropped();
  const { name } = source;
  return { image: await source.png(size), mask: strokes.length ? await painter.png() : null, strokes, name };
}

/** The event that ends it; what comes before is shown. */
async function finished(events, { prompt }) {
  for await (const event of events) {
    if (event.kind === "progress") stage.progress(event);
    else if (event.kind === "partial_image") await stage.picture(pictureOf(event), prompt, { preview: true });
    else if (event.kind === "completed") return event;
  }
  throw new ApiError({ message: "The server ended its answer before the picture" });
}

async function cancel() {
  const { id, controller } = running;
  ui.cancel.disabled = true;
  if (await cancelRequest(id).catch(() => false)) setTimeout(() => controller.abort(), PATIENCE);
  else controller.abort(); // it never came there
}

async function restore() {
  if (!ui.stage.classList.contains("preview")) return;
  if (shown) await stage.picture(shown.files.picture, shown.entry.fields.prompt);
  else stage.empty();
}

function busy(on) {
  const here = on ? ui.generate : ui.cancel;
  const focused = document.activeElement === here || document.activeElement === document.body;
  stage.progress(on ? {} : null);
  ui.caption.inert = ui.history.inert = on;
  ui.generate.disabled = on;
  ui.cancel.hidden = !on;
  ui.cancel.disabled = false;
  if (focused) (on ? ui.cancel : ui.generate).focus({ preventScroll: true });
  if (on) {
    announce("Making the picture.");
    ui.stage.scrollIntoView({ block: "nearest" });
  }
}

// --- what came before

async function keep(fields, { image, strokes, name }, made) {
  const picture = pictureOf(made);
  const { num_inference_steps = model.num_inference_steps, guidance_scale = model.guidance_scale } = fields;
  const entry = {
    id: running.id,
    time: Date.now(),
    fields: { ...fields, num_inference_steps, guidance_scale, seed: made.seed },
    format: made.output_format ?? "png",
    seconds: made.timings?.total ?? null,
    warnings: made.warnings ?? [],
    strokes,
    sourceName: name,
    thumbnail: await thumbnailOf(picture),
  };
  const files = { picture, source: image };
  await history.add(entry, files);
  showHistory();
  await show(entry, files);
}

async function thumbnailOf(picture) {
  const bitmap = await createImageBitmap(picture);
  const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function show(entry, files) {
  shown = { entry, files };
  await stage.picture(files.picture, entry.fields.prompt);
  const { fields } = entry;
  ui.caption.hidden = false;
  ui["caption-prompt"].textContent = fields.prompt;
  ui["caption-facts"].textContent = factsOf(entry).join(" · ");
  ui["caption-warnings"].textContent = entry.warnings.join("; ");
  ui["caption-warnings"].hidden = entry.warnings.length === 0;
  if (ui.download.href) URL.revokeObjectURL(ui.download.href);
  ui.download.href = URL.createObjectURL(files.picture);
  ui.download.download = `${slug(fields.prompt)}-${fields.seed}.${entry.format}`;
  ui["seed-last"].disabled = false;
  for (const item of ui.strip.children) item.firstChild.setAttribute("aria-current", item.dataset.id === entry.id);
}

function factsOf({ fields, seconds, strokes }) {
  return [
    fields.size.replace("x", " × "),
    `seed ${fields.seed}`,
    `${fields.num_inference_steps} steps`,
    `guidance ${fields.guidance_scale}`,
    fields.scheduler?.replace(/Scheduler$/, ""),
    fields.strength && `strength ${fields.strength}`,
    strokes.length > 0 && "masked",
    seconds && `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`,
  ].filter(Boolean);
}

function slug(prompt) {
  const words = prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
  return words.replace(/^-+|-+$/g, "") || "picture";
}

function showHistory() {
  const ids = new Set(history.entries.map((entry) => entry.id));
  for (const [id, url] of thumbnails) {
    if (!ids.has(id)) {
      URL.revokeObjectURL(url);
      thumbnails.delete(id);
    }
  }
  ui.strip.replaceChildren(...history.entries.map(itemOf));
  ui["history-clear"].hidden = history.entries.length === 0;
  ui["history-note"].textContent = history.kept
    ? "kept in this browser alone"
    : "not all are kept: this browser has no room for them, or forbids it";
}

function itemOf(entry) {
  if (!thumbnails.has(entry.id)) thumbnails.set(entry.id, URL.createObjectURL(entry.thumbnail));
  const image = Object.assign(new Image(), { src: thumbnails.get(entry.id), alt: entry.fields.prompt || "no prompt" });
  const button = Object.assign(document.createElement("button"), { type: "button", title: entry.fields.prompt });
  button.append(image);
  button.setAttribute("aria-current", entry.id === shown?.entry.id);
  button.addEventListener("click", () => recall(entry));
  const item = document.createElement("li");
  item.dataset.id = entry.id;
  item.append(button);
  return item;
}

async function recall(entry) {
  const files = await history.files(entry.id);
  if (files) return show(entry, files);
  await history.remove(entry.id);
  showHistory();
}

async function useAgain() {
  const { entry, files } = shown;
  if (files.source && takesPictures()) await startFrom(files.source, entry.sourceName, entry.strokes);
  else startFromNothing();
  take(entry.fields);
  stage.view("picture");
  ui.prompt.focus();
}

async function forget(id) {
  await history.remove(id);
  leave();
}

function leave() {
  shown = null;
  ui.caption.hidden = true;
  stage.empty();
  showHistory();
  ui.prompt.focus();
}

// --- telling

function announce(sentence) {
  ui.announcer.textContent = sentence;
}

function fail(error) {
  if (!(error instanceof ApiError)) console.error(error);
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  ui.error.textContent = error.message + later;
  ui.error.hidden = false;
  const param = error.param === "mask" ? "image" : error.param;
  const field = param && ui.form.elements.namedItem(param);
  if (!field) return;
  field.closest(".field, fieldset").classList.add("wrong");
  const input = field.matches("fieldset") ? field.querySelector("input:not([hidden])") : field;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", "error");
  input.focus();
}

function clearError() {
  ui.error.hidden = true;
  for (const field of ui.form.querySelectorAll(".wrong")) field.classList.remove("wrong");
  for (const input of ui.form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

// --- opening

function listen() {
  const on = (name, action, event = "click") => ui[name].addEventListener(event, action);
  on("form", (event) => { event.preventDefault(); generate(); }, "submit");
  on("form", clearError, "input");
  on("cancel", cancel);
  on("width", () => showSize(sizeAsked("width")), "change");
  on("height", () => showSize(sizeAsked("height")), "change");
  on("swap", () => {
    const { width, height } = sizeAsked();
    showSize(sizes.nearest({ width: height, height: width }));
  });
  on("seed-random", () => { ui.seed.value = ""; });
  on("seed-last", () => { ui.seed.value = shown?.entry.fields.seed ?? ""; });
  on("strength", showRanges, "input");
  on("brush", showRanges, "input");
  on("file", () => ui.file.files[0] && startFrom(ui.file.files[0], ui.file.files[0].name), "change");
  on("source-remove", startFromNothing);
  on("paint", () => paint(ui.paint.getAttribute("aria-pressed") !== "true"));
  on("undo", () => painter.undo());
  on("clear", () => painter.take([]));
  on("again", useAgain);
  on("edit", () => startFrom(shown.files.picture, ui.download.download));
  on("forget", () => forget(shown.entry.id));
  on("history-clear", async () => {
    if (!confirm("Delete all pictures that are kept here?")) return;
    await history.clear();
    leave();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
    else if (event.key === "Escape" && running) cancel();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.target.matches("input, textarea")) painter.undo();
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // or the browser leaves the page for the file
    ui.drop.classList.toggle("over", event.dataTransfer.types.includes("Files"));
  });
  document.addEventListener("dragleave", () => ui.drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    ui.drop.classList.remove("over");
    takeFile(event.dataTransfer);
  });
  document.addEventListener("paste", (event) => takeFile(event.clipboardData));
}

function takeFile({ files }) {
  if (files.length && takesPictures()) startFrom(files[0], files[0].name);
}

async function modelWhenOpen() {
  for (;;) {
    try {
      const found = await servedModel();
      if (found) return found;
      ui.model.textContent = "opening the model …";
    } catch (error) {
      ui.model.textContent = error.message;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

function showModel() {
  ui.model.textContent = [model.id, model.backend].filter(Boolean).join(" · ");
  ui.model.classList.add("open");
  ui.num_inference_steps.value = model.num_inference_steps;
  ui.guidance_scale.value = model.guidance_scale;
  ui.scheduler.placeholder = model.scheduler;
  ui.schedulers.replaceChildren(...(model.schedulers ?? []).map((name) => new Option(name, name)));
  ui.strength.value = model.strength;
  ui["source-field"].hidden = ui.edit.hidden = !takesPictures();
  ui["mask-hint"].hidden = !model.masks;
  for (const side of ["width", "height"]) {
    const [min, max] = sizes[side];
    Object.assign(ui[side], { min, max, step: sizes.factor });
  }
  const shapes = sizes.shapes();
  ui.shapes.hidden = shapes.length < 2;
  ui.shapes.replaceChildren(...shapes.map(([name, size]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: asText(size), textContent: name });
    button.addEventListener("click", () => showSize(size));
    return button;
  }));
  showSize(sizes.nearest(sizes.own));
  showRanges();
  ui.generate.disabled = false;
}

async function open() {
  listen();
  showTools();
  history = await History.open();
  showHistory();
  model = await modelWhenOpen();
  sizes = new Sizes(model);
  showModel();
}

open();
