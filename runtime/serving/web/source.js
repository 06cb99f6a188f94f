// A picture to start from, cut to the size of what is made.

export class Source {
  /** @param {ImageBitmap} bitmap */
  constructor(bitmap, name) {
    this.bitmap = bitmap;
    this.name = name;
  }

  /** Of a file's bytes; throws where they are no picture that the browser knows. */
  static async read(blob, name) {
    return new Source(await createImageBitmap(blob), name);
  }

  get size() {
    return { width: this.bitmap.width, height: this.bitmap.height };
  }

  /** The middle part that has the shape of `size`: a point's place in it is (point - {x, y}) * scale. */
  crop({ width, height }) {
    const scale = Math.max(width / this.bitmap.width, height / this.bitmap.height);
    return { x: (this.bitmap.width - width / scale) / 2, y: (this.bitmap.height - height / scale) / 2, scale };
  }

  draw(canvas, { width, height }) {
    Object.assign(canvas, { width, height });
    const { x, y, scale } = this.crop({ width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "white"; // behind what is transparent
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, x, y, width / scale, height / scale, 0, 0, width, height);
  }

  /** The part as a PNG of that size. */
  png(size) {
    const canvas = document.createElement("canvas");
    this.draw(canvas, size);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}
