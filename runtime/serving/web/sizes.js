// The sizes that a model can make.

const SHAPES = [["1:1", 1], ["3:2", 3 / 2], ["2:3", 2 / 3], ["16:9", 16 / 9], ["9:16", 9 / 16]];

export class Sizes {
  /** @param model as the API lists it: width, height, factor, most_pixels, width_range, height_range */
  constructor(model) {
    this.factor = model.factor;
    this.own = { width: model.width, height: model.height };
    this.width = multiples(model.width_range, model.factor);
    this.height = multiples(model.height_range, model.factor);
    this.mostPixels = model.most_pixels;
  }

  /** The nearest valid size. Where both together have too many pixels, the side that is not `kept` gives way. */
  nearest({ width, height }, kept = "width") {
    const found = { width: this.#side("width", width), height: this.#side("height", height) };
    const other = kept === "width" ? "height" : "width";
    if (found.width * found.height > this.mostPixels) {
      found[other] = this.#side(other, this.mostPixels / found[kept], Math.floor);
    }
    if (found.width * found.height > this.mostPixels) { // the other is at its least
      found[kept] = this.#side(kept, this.mostPixels / found[other], Math.floor);
    }
    return found;
  }

  /** A picture's own size where it is valid; else one of its shape, with as many pixels as the model's own. */
  of({ width, height }) {
    const same = this.nearest({ width, height });
    return same.width === width && same.height === height ? same : this.#shaped(width / height);
  }

  /** Shapes to choose from, as [name, size]; the model's own first, none twice. */
  shapes() {
    const { width, height } = this.own;
    const own = width === height ? [] : [["own", this.nearest(this.own)]];
    const seen = new Set();
    return [...own, ...SHAPES.map(([name, ratio]) => [name, this.#shaped(ratio)])].filter(([, size]) => {
      const key = `${size.width}x${size.height}`;
      return !seen.has(key) && seen.add(key);
    });
  }

  #shaped(ratio) {
    const width = Math.sqrt(this.own.width * this.own.height * ratio);
    return this.nearest({ width, height: width / ratio });
  }

  #side(name, value, rounded = Math.round) {
    const [least, most] = this[name];
    const wanted = Number.isFinite(value) ? value : this.own[name];
    return Math.min(Math.max(rounded(wanted / this.factor) * this.factor, least), most);
  }
}

function multiples([least, most], factor) {
  return [Math.ceil(least / factor) * factor, Math.floor(most / factor) * factor];
}
