/**
 * Elements, made without HTML: all text goes in as text, so nothing that a model or a prompt says can be markup.
 */

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] `class`, `onclick` and the like, any attribute; null and false are left out
 * @param {...(Node | string | null)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** @param {string} id @returns {any} the element, which index.html must have */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element;
}

/**
 * Text in which blanks and line ends can be seen. The marks are CSS: what is copied or read aloud is the text itself.
 *
 * @param {string} text
 * @returns {Node[]}
 */
export function visible(text) {
  return text.split(/(\s)/u).filter(Boolean).map((part) => {
    if (!/^\s$/u.test(part)) return document.createTextNode(part);
    return el("span", { class: part === "\n" ? "blank line-end" : "blank" }, part);
  });
}

/**
 * A function that runs `work` once in the next frame, however often it's called until then.
 *
 * @param {() => void} work
 */
export function oncePerFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}
