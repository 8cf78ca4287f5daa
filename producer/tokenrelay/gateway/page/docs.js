/** The API's reference, made from openapi.json: each operation with its parameters, body fields and responses. */

import { ApiError, askJson } from "./api.js";
import { byId, el } from "./dom.js";

/** @typedef {Record<string, any>} Schema */
/** @typedef {{name: string, kind: string, isRequired: boolean, description: string}} Field */

/** @param {any} api the OpenAPI description */
function render(api) {
  byId("docs-title").textContent = `${api.info.title} ${api.info.version}: HTTP API`;
  byId("docs-lead").prepend(`${api.info.summary ?? ""} `);
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method, operation, tag: operation.tags?.[0] ?? "other" })));
  const sections = [...new Set(operations.map(({ tag }) => tag))].map((tag) => {
    const shown = operations.filter((each) => each.tag === tag).map((each) => operationOf(api, each));
    return el("section", { "aria-labelledby": `tag-${tag}` }, el("h2", { id: `tag-${tag}` }, tag), ...shown);
  });
  byId("docs-operations").replaceChildren(...sections);
}

/** @param {any} api @param {{path: string, method: string, operation: any}} each */
function operationOf(api, { path, method, operation }) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const parameters = (operation.parameters ?? []).map((/** @type {any} */ each) => ({
    name: each.name, kind: `${each.in}, ${kindOf(api, each.schema)}`, isRequired: each.required, description: each.description ?? "",
  }));
  const statuses = Object.entries(operation.responses).map(([status, response]) => ({
    name: status, kind: "", isRequired: false, description: response.description,
  }));
  return el(
    "details",
    { id: operation.operationId },
    el("summary", {}, el("code", {}, `${method.toUpperCase()} ${path}`)),
    el("p", {}, ...prose(operation.description ?? "")),
    table("Parameters", parameters),
    table("Body", body ? fieldsOf(api, body) : []),
    table("Responses", statuses),
  );
}

/** The members of an object. @param {any} api @param {Schema} given @returns {Field[]} */
function fieldsOf(api, given) {
  const schema = resolved(api, given);
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {}).map(([name, member]) => {
    const { description } = { ...resolved(api, member), ...member };
    return { name, kind: kindOf(api, member), isRequired: required.has(name), description: description ?? "" };
  });
  return fields.sort((a, b) => Number(b.isRequired) - Number(a.isRequired));
}

/** A schema's type in words, without null. @param {any} api @param {Schema} given @returns {string} */
function kindOf(api, given) {
  const schema = resolved(api, given);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map((/** @type {Schema} */ each) => kindOf(api, each)))].filter((kind) => kind !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((/** @type {unknown} */ each) => JSON.stringify(each)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array" && schema.items) return `list of ${kindOf(api, schema.items)}`;
  return schema.type ?? "any";
}

/** @param {any} api @param {Schema} schema @returns {Schema} */
function resolved(api, schema) {
  const name = schema.$ref?.split("/").at(-1);
  return name ? api.components.schemas[name] : schema;
}

/** @param {string} title @param {Field[]} fields */
function table(title, fields) {
  if (fields.length === 0) return null;
  const rows = fields.map(({ name, kind, isRequired, description }) => {
    const about = [kind, isRequired ? "required" : ""].filter(Boolean).join(", ");
    return el("tr", {}, el("th", { scope: "row" }, el("code", {}, name)), el("td", { class: "kind" }, about), el("td", {}, ...prose(description)));
  });
  return el("table", {}, el("caption", {}, title), el("tbody", {}, ...rows));
}

/** Text with code in backquotes. @param {string} text */
function prose(text) {
  return text.split("`").map((part, number) => (number % 2 ? el("code", {}, part) : part));
}

/** Open the operation that the address names, such as #create_v1_responses_post. */
function openNamed() {
  const named = document.getElementById(location.hash.slice(1));
  if (!(named instanceof HTMLDetailsElement)) return;
  named.open = true;
  named.scrollIntoView();
}

async function start() {
  try {
    render(await askJson("openapi.json"));
    openNamed();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    byId("docs-problem").replaceChildren(el("p", { class: "notice problem" }, error.message));
  }
}

addEventListener("hashchange", openNamed);
void start();
