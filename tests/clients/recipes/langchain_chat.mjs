// LangChain: ChatOpenAI.

import { HumanMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run } from "./scenarios.mjs";

const chat = (options = {}) =>
  new ChatOpenAI({
    model: MODEL,
    apiKey: API_KEY,
    temperature: 0,
    maxRetries: 0,
    configuration: { baseURL: BASE_URL },
    ...options,
  });

const overTurns = async (ask) => {
  const history = [];
  const answers = [];
  for (const question of QUESTIONS) {
    history.push(new HumanMessage(question));
    history.push(await ask(history));
    answers.push(history.at(-1).text);
  }
  return answers;
};

const added = async (stream) => {
  let total;
  for await (const chunk of stream) total = total === undefined ? chunk : total.concat(chunk);
  return total;
};

const scenarios = {
  whole: () => overTurns((history) => chat().invoke(history)),
  streamed: () => overTurns(async (history) => added(await chat().stream(history))),
  responses_whole: () => overTurns((history) => chat({ useResponsesApi: true }).invoke(history)),
  responses_streamed: () => overTurns(async (history) => added(await chat({ useResponsesApi: true }).stream(history))),

  async leave() {
    const read = [];
    for await (const chunk of await chat({ model: ENDLESS }).stream("Tell me more.")) {
      read.push(chunk.id);
      if (read.length === 3) break;
    }
    return read;
  },

  too_long: () => chat().invoke(LONG_QUESTION),
  too_long_streamed: async () => added(await chat().stream(LONG_QUESTION)),
  unknown_model: () => chat({ model: "no-such-model" }).invoke("Hello"),
  wrong_key: () => chat({ apiKey: "sk-wrong" }).invoke("Hello"),
};

await run(["@langchain/openai", "@langchain/core"], scenarios);
