/**
 * Parser of server-sent events (HTML standard, 9.2.6) from chunks of any size. Knows no connections.
 */

/** @typedef {{id: string, event: string, data: string}} ServerSentEvent */

export class EventParser {
  #rest = "";
  #afterCr = false;
  #id = "";
  #event = "";
  /** @type {string[]} */
  #data = [];

  /**
   * The events completed by this chunk.
   *
   * @param {string} piece
   * @returns {ServerSentEvent[]}
   */
  feed(piece) {
    // CR LF is one line end, also if a chunk ends between the two.
    const text = this.#afterCr && piece.startsWith("\n") ? piece.slice(1) : piece;
    if (piece) this.#afterCr = piece.endsWith("\r");
    const lines = (this.#rest + text).split(/\r\n|\n|\r/u);
    this.#rest = lines.pop() ?? "";
    return lines.map((line) => this.#line(line)).filter((event) => event !== null);
  }

  /** @param {string} line @returns {ServerSentEvent | null} */
  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /u, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }

  /** @returns {ServerSentEvent | null} */
  #dispatch() {
    const event = { id: this.#id, event: this.#event || "message", data: this.#data.join("\n") };
    const isEmpty = this.#data.length === 0;
    this.#event = "";
    this.#data = [];
    return isEmpty ? null : event;
  }
}
