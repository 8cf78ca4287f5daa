/** The page: puts form, request, sections and address together. */

import { ApiError, apiKey, ask, askJson } from "./api.js";
import { byId } from "./dom.js";
import { FieldError, clearFieldErrors, offerModels, readForm, showFieldError, suggestPrompt } from "./form.js";
import { renderInsight } from "./insight.js";
import { clearNotice, complain, inform } from "./notice.js";
import { Prediction } from "./prediction.js";
import { renderQuestions } from "./questions.js";
import { Recent } from "./recent.js";
import { Run } from "./run.js";
import { Session } from "./session.js";
import { Stages } from "./stages.js";
import { announce, clearStatus, renderStatus } from "./status.js";
import { showTraining } from "./training.js";

const KILL_AT_TOKEN = 12;
const MODELS_LOOK_MS = 3000;

const stages = new Stages();
const prediction = new Prediction();
const recent = new Recent((requestId) => show(requestId));
const session = new Session({ onChange: render, onEvent, onError, onConnection, onWaiting });
let config = { demo: false, auth: false };
/** What live workers serve: name → whether its training trace is to be had. @type {Map<string, boolean>} */
let models = new Map();
let isLost = false;

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
  recent.update(run.requestId, run.state);
  showTrainingOf(run.model ?? "");
  // Others may have ended meanwhile, unwatched.
  if (run.ended) void tried(() => recent.refresh());
}

/** @param {Run} run @param {ApiError} error */
function onError(run, error) {
  if (error.status !== 404 && error.status !== 410) return refused(error, () => session.open(run.requestId));
  recent.update(run.requestId, "gone");
  byId("state").textContent = "Gone";
  for (const id of ["cancel", "kill"]) byId(id).hidden = true;
  complain(new ApiError(error.status, `${error.message}. Streams are kept for a while after their end; this one can't be read any more.`));
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
    inform(`No live worker serves the model ${run.model}. The request is queued, and is answered when one comes.`);
  }
}

/** Put a request on the page, and its ID into the address: a reload comes back to it. @param {string} requestId */
function show(requestId, { prompt = "", model = /** @type {string | undefined} */ (undefined), isInAddress = false } = {}) {
  clearNotice();
  isLost = false;
  if (!isInAddress) history.pushState(null, "", `?request=${encodeURIComponent(requestId)}`);
  recent.select(requestId);
  const known = recent.entries.find((entry) => entry.requestId === requestId);
  void session.open(requestId, { prompt, model: model ?? known?.model });
  suggestPrompt(prompt || known?.prompt || "");
}

/** What the address says is what is on the page. */
function showAddressed() {
  const requestId = new URLSearchParams(location.search).get("request");
  if (requestId) return show(requestId, { isInAddress: true });
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
    recent.add(request_id, String(body.prompt), model);
    show(request_id, { prompt: String(body.prompt), model });
    return request_id;
  } catch (error) {
    if (error instanceof FieldError) showFieldError(error.field, error.message);
    else refused(error, () => submit(more));
  } finally {
    button.disabled = false;
  }
  return "";
}

/** @param {string} when where not at once, as a query */
async function kill(when = "") {
  await tried(async () => {
    await ask(`demo/kill-worker${when}`, { method: "POST" });
    inform("The worker is dead. The stream stays as it is until another one has loaded the model and goes on.");
  });
}

/** @param {() => Promise<unknown>} work */
async function tried(work) {
  try {
    await work();
  } catch (error) {
    refused(error, () => tried(work));
  }
}

/** @param {unknown} error @param {() => unknown} retry */
function refused(error, retry) {
  if (!(error instanceof ApiError)) throw error;
  if (error.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  if (!showFieldError(error.field, error.message)) complain(error, retry);
}

async function loadModels() {
  const { data } = await askJson("v1/models");
  models = new Map(data.map((/** @type {{id: string, training: boolean}} */ model) => [model.id, model.training]));
  offerModels([...models.keys()]);
  if (models.size === 0) {
    inform("No live worker serves a model right now. What you send waits in the queue until one comes (tokenrelay-worker run).");
  }
  showTrainingOf(session.run?.model ?? byId("model").value);
}

/** @param {string} model */
function showTrainingOf(model) {
  void showTraining(models.get(model) ? model : "");
}

/** Look until there's a model to ask. */
async function awaitModels() {
  await tried(loadModels);
  if (models.size > 0) return;
  setTimeout(async () => {
    await awaitModels();
    if (models.size > 0) clearNotice();
  }, MODELS_LOOK_MS);
}

async function start() {
  config = await askJson("config.json");
  byId("key-form").hidden = !config.auth;
  byId("run-and-kill").hidden = !config.demo;
  showAddressed();
  if (config.auth && !apiKey.get()) {
    inform("This gateway wants an API key.");
    return;
  }
  await awaitModels();
  await tried(() => recent.refresh());
}

byId("ask").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  void submit();
});
byId("prompt").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
byId("run-and-kill").addEventListener("click", async () => {
  // A short answer would be over before anybody could kill its worker.
  byId("ignore_eos").checked = true;
  const id = await submit();
  // The gateway sees the token sooner than a busy page.
  if (id) await kill(`?request_id=${id}&after=${KILL_AT_TOKEN}`);
});
byId("key-form").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  apiKey.set(byId("key").value.trim());
  clearNotice();
  void tried(start);
});
byId("model").addEventListener("change", () => showTrainingOf(byId("model").value));
byId("kill").addEventListener("click", () => kill());
byId("cancel").addEventListener("click", () => tried(() => session.cancel()));
byId("replay").addEventListener("click", () => session.replay());
addEventListener("popstate", showAddressed);
void tried(start);
