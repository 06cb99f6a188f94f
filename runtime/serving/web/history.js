// The pictures that were made here, kept by the browser: nothing of them is on the server.

const MOST = 200;
const ROOM = 10; // pictures that may go to make room for one
const ENTRIES = "entries"; // what the strip shows: parameters and a thumbnail
const FILES = "files"; // of the same ids: the picture, and what an edit started from

export class History {
  #database;
  #unkept = new Map(); // files that the browser has no room for, until the page is left

  constructor(database, entries) {
    this.#database = database;
    this.entries = entries; // newest first
  }

  /** The history that the browser keeps; an empty one that is not kept where it forbids that. */
  static async open() {
    try {
      const database = await opened();
      const entries = await asked(database.transaction(ENTRIES).objectStore(ENTRIES).getAll());
      return new History(database, entries.sort((one, other) => other.time - one.time));
    } catch {
      return new History(null, []);
    }
  }

  /** Whether all of it will be here after a reload. */
  get kept() {
    return this.#database !== null && this.#unkept.size === 0;
  }

  /**
   * @param {{id: string, time: number}} entry its time orders it
   * @param {{picture: Blob, source: Blob|null}} files
   */
  async add(entry, files) {
    this.entries = [entry, ...this.entries];
    for (const old of this.entries.slice(MOST)) await this.remove(old.id);
    let failed = await this.#put(entry, files);
    for (let i = 0; failed === "QuotaExceededError" && i < ROOM; i++) {
      const oldest = this.entries.findLast(({ id }) => id !== entry.id && !this.#unkept.has(id));
      if (!oldest) break;
      await this.remove(oldest.id);
      failed = await this.#put(entry, files);
    }
    if (failed) this.#unkept.set(entry.id, files);
  }

  /** An entry's files; undefined where they are gone: another tab has removed them. */
  async files(id) {
    if (this.#unkept.has(id) || this.#database === null) return this.#unkept.get(id);
    return asked(this.#database.transaction(FILES).objectStore(FILES).get(id));
  }

  async remove(id) {
    this.entries = this.entries.filter((entry) => entry.id !== id);
    this.#unkept.delete(id);
    await this.#write((entries, files) => {
      entries.delete(id);
      files.delete(id);
    });
  }

  async clear() {
    this.entries = [];
    this.#unkept.clear();
    await this.#write((entries, files) => {
      entries.clear();
      files.clear();
    });
  }

  #put(entry, files) {
    return this.#write((entryStore, fileStore) => {
      entryStore.put(entry);
      fileStore.put(files, entry.id);
    });
  }

  /** Writes all of it or nothing; gives the name of what prevented it, null where nothing did. */
  #write(change) {
    if (this.#database === null) return Promise.resolve("Forbidden");
    return new Promise((resolve) => {
      try {
        const transaction = this.#database.transaction([ENTRIES, FILES], "readwrite");
        transaction.oncomplete = () => resolve(null);
        transaction.onabort = () => resolve(transaction.error?.name ?? "AbortError");
        change(transaction.objectStore(ENTRIES), transaction.objectStore(FILES));
      } catch (error) {
        resolve(error.name); // the browser has closed the database
      }
    });
  }
}

function opened() {
  const request = indexedDB.open("safelight", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(ENTRIES, { keyPath: "id" });
    request.result.createObjectStore(FILES);
  };
  return asked(request);
}

function asked(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
