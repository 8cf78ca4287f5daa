// What a recipe is told, and how it reports: the driver names a scenario a line, and gets a line of JSON for each.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

export const BASE_URL = process.env.CLIENT_BASE_URL;
export const API_KEY = process.env.CLIENT_API_KEY;
export const MODEL = process.env.CLIENT_MODEL;
export const ENDLESS = process.env.CLIENT_ENDLESS_MODEL;
export const QUESTIONS = JSON.parse(process.env.CLIENT_QUESTIONS);
export const JSON_QUESTIONS = JSON.parse(process.env.CLIENT_JSON_QUESTIONS);
export const DAYS_QUESTION = process.env.CLIENT_DAYS_QUESTION;
export const DAYS = Number(process.env.CLIENT_DAYS);
export const SEED = Number(process.env.CLIENT_SEED);
export const LONG_QUESTION = QUESTIONS[0].repeat(1000);

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

const installed = (name) =>
  JSON.parse(readFileSync(new URL(`./node_modules/${name}/package.json`, import.meta.url), "utf8")).version;

const classes = (error) => {
  const names = [];
  for (let each = Object.getPrototypeOf(error); each && each !== Object.prototype; each = Object.getPrototypeOf(each)) {
    names.push(each.constructor.name);
  }
  return [error.name, ...names].join(" < ");
};

// What a caller can tell the error by: its classes, its status and code, its message; and its causes' likewise.
const described = (error) => {
  if (!(error instanceof Error)) return JSON.stringify(error);
  const lines = [];
  for (let each = error; each instanceof Error && lines.length < 5; each = each.cause ?? each.lastError) {
    lines.push(`${classes(each)} [status ${each.status ?? each.statusCode}, code ${each.code}]: ${each.message}`);
  }
  return lines.join("\ncaused by ");
};

// Report the packages' versions, then the result of each scenario that the driver asks for.
export const run = async (packages, scenarios) => {
  say({ versions: Object.fromEntries(packages.map((name) => [name, installed(name)])), scenarios: Object.keys(scenarios) });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      say({ answers: await scenarios[line.trim()]() });
    } catch (error) {
      say({ error: described(error) });
    }
  }
  process.exit(0);
};
