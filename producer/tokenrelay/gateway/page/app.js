/** The page: connects form, request, sections and URL. */

import { ApiError, apiKey, ask, askJson } from "./api.js";
import { byId } from "./dom.js";
import { FieldError, clearFieldErrors, fillInExample, offerModels, readForm, showFieldError, suggestPrompt } from "./form.js";
import { renderInsight } from "./insight.js";
import { clearNotice, showProblem, inform } from "./notice.js";
import { Prediction } from "./prediction.js";
import { renderQuestions } from "./questions.js";
import { Recent } from "./recent.js";
import { Run } from "./run.js";
import { Session } from "./session.js";
import { Stages } from "./stages.js";
import { announce, clearStatus, renderStatus } from "./status.js";
import { showTraining } from "./training.js";

const KILL_AT_TOKEN = 12;
const MODELS_POLL_MS = 3000;

const stages = new Stages();
const prediction = new Prediction();
const recent = new Recent((requestId) => show(requestId));
const session = new Session({ onChange: render, onEvent, onError, onConnection, onWaiting });
let config = { demo: false, auth: false };
/** Models of live workers: name → whether it has a training trace. @type {Map<string, boolean>} */
let models = new Map();
let isLost = false;
/** The last request that the form sent. */
let submitted = "";

/** @param {Run} run @param {boolean} isReplaying */
function render(run, isReplaying) {
  renderStatus(run, { isActive: session.isActive, isReplaying, isDemo: config.demo, isLost });
  stages.render(run);
  renderInsight(run);
  prediction.render(run);
  renderQuestions(run);
}

/** @param {Run} run @param {import("./run.js").StreamEvent} event */
function onEvent(run, event) {
  announce(run, event);
  if (event.event === "queued" || event.event === "token") return;
  clearNotice();
  // Only a worker compiles a schema.
  if (run.ended?.code === "invalid_grammar" && run.requestId === submitted) showFieldError("response_format", run.ended.message);
  recent.update(run.requestId, run.state);
  showTrainingOf(run.model ?? "");
  // Other requests may have ended meanwhile.
  if (run.ended) void attempt(() => recent.refresh());
}

/** @param {Run} run @param {ApiError} error */
function onError(run, error) {
  if (error.status !== 404 && error.status !== 410) return showError(error, () => session.open(run.requestId));
  recent.update(run.requestId, "gone");
  byId("state").textContent = "Gone";
  for (const id of ["cancel", "kill"]) byId(id).hidden = true;
  showProblem(new ApiError(error.status, `${error.message}. Streams are deleted after their retention time.`));
}

/** @param {boolean} lost */
function onConnection(lost) {
  isLost = lost;
  session.changed();
}

/** @param {Run} run */
async function onWaiting(run) {
  await loadModels();
  if (models.size > 0 && run.model && !models.has(run.model)) {
    inform(`No live worker serves the model ${run.model}. The request stays queued until one starts.`);
  }
}

/** Show a request, and put its ID into the URL so that a reload shows it again. @param {string} requestId */
function show(requestId, { prompt = "", model = /** @type {string | undefined} */ (undefined), isInUrl = false } = {}) {
  clearNotice();
  isLost = false;
  if (!isInUrl) history.pushState(null, "", `?request=${encodeURIComponent(requestId)}`);
  recent.select(requestId);
  const known = recent.entries.find((entry) => entry.requestId === requestId);
  void session.open(requestId, { prompt, model: model ?? known?.model });
  suggestPrompt(prompt || known?.prompt || "");
}

/** Show the request in the URL, or an empty page. */
function showFromUrl() {
  const requestId = new URLSearchParams(location.search).get("request");
  if (requestId) return show(requestId, { isInUrl: true });
  session.close();
  clearNotice();
  clearStatus();
  recent.select("");
  stages.render(new Run(""));
  for (const id of ["insight", "prediction", "questions"]) byId(id).hidden = true;
}

/** @param {Record<string, unknown>} [more] */
async function submit(more = {}) {
  clearNotice();
  clearFieldErrors();
  const button = byId("submit");
  button.disabled = true;
  try {
    const body = { ...readForm(), ...more };
    const { request_id, model } = await askJson("requests", { method: "POST", body });
    submitted = request_id;
    recent.add(request_id, String(body.prompt), model);
    show(request_id, { prompt: String(body.prompt), model });
    return request_id;
  } catch (error) {
    if (error instanceof FieldError) showFieldError(error.field, error.message);
    else showError(error, () => submit(more));
  } finally {
    button.disabled = false;
  }
  return "";
}

/** @param {string} when a query string for a later time; empty for now */
async function kill(when = "") {
  await attempt(async () => {
    await ask(`demo/kill-worker${when}`, { method: "POST" });
    inform("The worker was killed. The stream pauses until another one has loaded the model and resumes it.");
  });
}

/** @param {() => Promise<unknown>} work */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    showError(error, () => attempt(work));
  }
}

/** @param {unknown} error @param {() => unknown} retry */
function showError(error, retry) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  if (!showFieldError(error.field, error.message)) showProblem(error, retry);
}

async function loadModels() {
  const { data } = await askJson("v1/models");
  models = new Map(data.map((/** @type {{id: string, training: boolean}} */ model) => [model.id, model.training]));
  offerModels([...models.keys()]);
  if (models.size === 0) {
    inform("No worker is alive. Requests stay queued until one starts (tokenrelay-worker run).");
  }
  showTrainingOf(session.run?.model ?? byId("model").value);
}

/** @param {string} model */
function showTrainingOf(model) {
  void showTraining(models.get(model) ? model : "");
}

/** Poll until a model is served. */
async function awaitModels() {
  await attempt(loadModels);
  if (models.size > 0) return;
  setTimeout(async () => {
    await awaitModels();
    if (models.size > 0) clearNotice();
  }, MODELS_POLL_MS);
}

async function start() {
  config = await askJson("config.json");
  byId("key-form").hidden = !config.auth;
  byId("run-and-kill").hidden = !config.demo;
  showFromUrl();
  if (config.auth && !apiKey.get()) {
    inform("This gateway requires an API key.");
    return;
  }
  await awaitModels();
  await attempt(() => recent.refresh());
}

byId("ask").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  void submit();
});
byId("prompt").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
byId("run-and-kill").addEventListener("click", async () => {
  // A short answer would end before its worker could be killed; one with a schema ends where it is complete.
  byId("ignore_eos").checked = byId("schema").value.trim() === "";
  const id = await submit();
  // The gateway receives the token earlier than a busy page.
  if (id) await kill(`?request_id=${id}&after=${KILL_AT_TOKEN}`);
});
byId("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  clearNotice();
  void attempt(start);
});
byId("schema-example").addEventListener("click", fillInExample);
byId("model").addEventListener("change", () => showTrainingOf(byId("model").value));
byId("kill").addEventListener("click", () => kill());
byId("cancel").addEventListener("click", () => attempt(() => session.cancel()));
byId("replay").addEventListener("click", () => session.replay());
addEventListener("popstate", showFromUrl);
void attempt(start);
