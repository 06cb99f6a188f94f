// A mask as a PNG of one channel. A canvas would write one with alpha, and there transparent, not white, is made anew.

/**
 * A PNG of 8-bit greys.
 *
 * @param {Uint8Array} pixels row by row
 */
export async function greyPng(pixels, width, height) {
  const rows = new Uint8Array((width + 1) * height); // before each row its filter: none
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const header = new Uint8Array(13); // no palette, no interlacing
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 8; // bits
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const chunks = [chunk("IHDR", header), chunk("IDAT", await deflated(rows)), chunk("IEND", new Uint8Array())];
  return new Blob([signature, ...chunks], { type: "image/png" });
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate")); // zlib's format, as PNG's
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(name, data) {
  const found = new Uint8Array(data.length + 12);
  const view = new DataView(found.buffer);
  view.setUint32(0, data.length);
  found.set(new TextEncoder().encode(name), 4);
  found.set(data, 8);
  view.setUint32(data.length + 8, crc32(found.subarray(4, data.length + 8)));
  return found;
}

/** ISO 3309's, bit by bit. */
function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
