// The server's API, as far as the page needs it. Addresses are relative: the server may stand behind a prefix.

/** What the server answered instead of a picture. */
export class ApiError extends Error {
  /**
   * @param {{message: string, param?: string|null, code?: string|null}} error of the answer's body
   * @param {number} retryAfter seconds after which to ask again; NaN where it does not say
   */
  constructor({ message, param = null, code = null }, retryAfter = NaN) {
    super(message);
    this.param = param;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** An id for a request, by which it can be cancelled. `crypto.randomUUID` is for https alone. */
export function requestId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The model that is served: its name, sizes and defaults. Null while it is not open. */
export async function servedModel() {
  if (!(await ask("health/ready")).ok) return null;
  const response = await ask("v1/models");
  if (!response.ok) throw await errorOf(response);
  return (await response.json()).data[0];
}

/**
 * The events of a picture's making: progress, partial_image, and completed at last.
 *
 * @param {object} fields of the request
 * @param {{image: Blob|null, mask: Blob|null}} files of an edit
 * @param {{id: string, signal: AbortSignal}} options the request's id, and what ends it
 */
export async function* makePicture(fields, { image, mask }, { id, signal }) {
  const asked = { ...fields, stream: true, partial_images: 3, progress: true };
  const headers = { accept: "text/event-stream", "x-request-id": id };
  if (!image) headers["content-type"] = "application/json"; // a form says its own, with its boundary
  const response = await ask(image ? "v1/images/edits" : "v1/images/generations", {
    method: "POST",
    headers,
    body: image ? formOf(asked, image, mask) : JSON.stringify(asked),
    signal,
  });
  if (!response.ok) throw await errorOf(response);
  for await (const event of eventsOf(response.body, signal)) {
    if (event.type === "error") throw new ApiError(event.error);
    yield { ...event, kind: event.type.slice(event.type.indexOf(".") + 1) };
  }
}

/** Cancels a request; false where nothing of that id is waiting or running. */
export async function cancelRequest(id) {
  return (await ask(`v1/images/requests/${id}/cancel`, { method: "POST" })).ok;
}

/** The bytes of an event's picture, just as the server made them. */
export function pictureOf(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${event.output_format ?? "png"}` });
}

/** An answer; where there is none, an error with a sentence instead of the browser's words. */
async function ask(address, options) {
  try {
    return await fetch(address, options);
  } catch (error) {
    throw options?.signal?.aborted ? error : new ApiError({ message: "The server does not answer" });
  }
}

function formOf(fields, image, mask) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  form.append("image", image, "image.png");
  if (mask) form.append("mask", mask, "mask.png");
  return form;
}

async function errorOf(response) {
  const retryAfter = parseFloat(response.headers.get("retry-after"));
  try {
    return new ApiError((await response.json()).error, retryAfter);
  } catch {
    return new ApiError({ message: `The server answered ${response.status} ${response.statusText}`.trimEnd() }, retryAfter);
  }
}

/** The JSON of a text/event-stream's events. Not by `EventSource`, which cannot send a POST. */
async function* eventsOf(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      rest += read.value;
      if (!read.value.includes("\n")) continue; // the middle of a picture
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield JSON.parse(lines.map((line) => line.slice(5)).join("\n"));
      }
    }
  } catch (error) {
    throw signal.aborted ? error : new ApiError({ message: "The server broke its answer off" });
  } finally {
    reader.cancel().catch(() => {}); // of a stream that has failed already
  }
}
