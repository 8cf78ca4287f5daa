/** The prompt form: its values, its models, and errors shown at fields. */

import { byId } from "./dom.js";
import { capitalised } from "./format.js";

const FIELDS = ["prompt", "model", "max_new_tokens", "temperature", "seed", "top_logprobs", "schema"];
const NUMBERS = ["max_new_tokens", "temperature", "seed", "top_logprobs"];
const EXAMPLE_PROMPT = "What is the weather in Oslo? Answer as JSON.";
const EXAMPLE_SCHEMA = `{
  "type": "object",
  "properties": {
    "place": { "type": "string" },
    "weather": { "type": "string" },
    "degrees": { "type": "integer" },
    "rain": { "type": "boolean" }
  },
  "required": ["place", "weather", "degrees", "rain"],
  "additionalProperties": false
}`;

/** A field whose value can't be sent. All other validation is the gateway's. */
export class FieldError extends Error {
  /** @param {string} field @param {string} message */
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/**
 * The body of POST requests, without empty options, for which the gateway has defaults.
 *
 * @returns {Record<string, unknown>}
 * @throws {FieldError}
 */
export function readForm() {
  /** @type {Record<string, unknown>} */
  const body = { prompt: byId("prompt").value, ignore_eos: byId("ignore_eos").checked };
  if (byId("model").value) body.model = byId("model").value;
  for (const name of NUMBERS) {
    const input = byId(name);
    if (input.validity.badInput) throw new FieldError(name, "Not a number");
    if (input.value === "") continue;
    const value = Number(input.value);
    if (name === "seed" && !Number.isSafeInteger(value)) {
      throw new FieldError(name, `A whole number up to ${Number.MAX_SAFE_INTEGER.toLocaleString("en")}`);
    }
    body[name] = value;
  }
  if ("top_logprobs" in body) body.logprobs = true;
  const schema = readSchema();
  if (schema) body.response_format = { type: "json_schema", value: schema };
  return body;
}

/** The schema, or null for an empty box. @throws {FieldError} */
function readSchema() {
  const text = byId("schema").value.trim();
  if (text === "") return null;
  /** @type {unknown} */
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new FieldError("schema", `Not JSON: ${error instanceof Error ? error.message : error}`);
  }
  if (typeof schema === "object" && schema !== null && !Array.isArray(schema)) return schema;
  throw new FieldError("schema", 'A JSON schema is an object, such as {"type": "object"}');
}

/** Fill in a schema, and a prompt that it suits unless the user has edited the prompt. */
export function fillInExample() {
  const box = byId("schema");
  box.value = EXAMPLE_SCHEMA;
  suggestPrompt(EXAMPLE_PROMPT);
  clearFieldErrors();
  box.focus();
  box.setSelectionRange(0, 0);
  box.scrollTop = 0;
}

export function clearFieldErrors() {
  for (const name of FIELDS) {
    byId(name).removeAttribute("aria-invalid");
    byId(`${name}-error`).hidden = true;
  }
}

/**
 * Show an error at its field. Returns whether the form has that field.
 *
 * @param {string | null} field
 * @param {string} message
 */
export function showFieldError(field, message) {
  const name = field?.startsWith("response_format") ? "schema" : field;
  if (!name || !FIELDS.includes(name)) return false;
  const target = byId(`${name}-error`);
  // The message starts with the field's name, which the label shows already.
  const reason = message.startsWith(`${field}: `) ? message.slice(`${field}: `.length) : message;
  target.textContent = capitalised(reason);
  target.hidden = false;
  byId(name).setAttribute("aria-invalid", "true");
  byId(name).focus();
  return true;
}

/** Fill the prompt box, unless the user has edited it. @param {string} prompt */
export function suggestPrompt(prompt) {
  const box = byId("prompt");
  if (box.value !== box.defaultValue || prompt === "") return;
  box.value = prompt;
}

/**
 * Offer the models of live workers; without any, the gateway's default applies.
 *
 * @param {string[]} models
 */
export function offerModels(models) {
  const select = byId("model");
  const before = select.value;
  const options = models.map((model) => new Option(model, model));
  select.replaceChildren(...(options.length > 0 ? options : [new Option("no live worker", "")]));
  if (models.includes(before)) select.value = before;
}
