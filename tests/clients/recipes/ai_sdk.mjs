// AI SDK: generateText, streamText, generateObject and streamObject, with the OpenAI-compatible provider and with OpenAI's own.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { convertToModelMessages, generateObject, generateText, streamObject, streamText } from "ai";
import { z } from "zod";
import {
  API_KEY, BASE_URL, DAYS, DAYS_QUESTION, ENDLESS, JSON_QUESTIONS, LONG_QUESTION, MODEL, QUESTIONS, SEED, run,
} from "./scenarios.mjs";

const compatible = createOpenAICompatible({
  name: "tokenrelay", baseURL: BASE_URL, apiKey: API_KEY, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const options = { temperature: 0, maxRetries: 0 };

const overTurns = async (ask) => {
  const messages = [];
  const answers = [];
  for (const question of QUESTIONS) {
    messages.push({ role: "user", content: question });
    const [answer, said] = await ask(messages);
    messages.push(...said);
    answers.push(answer);
  }
  return answers;
};

const whole = (model) =>
  overTurns(async (messages) => {
    const result = await generateText({ model, messages, ...options });
    return [result.text, (await result.response).messages];
  });

const streamed = (model) =>
  overTurns(async (messages) => {
    const result = streamText({ model, messages, ...options });
    return [await result.text, (await result.response).messages];
  });

const Weather = z.object({ place: z.string(), weather: z.string(), degrees: z.number().int(), rain: z.boolean() });
const Forecast = z.object({ days: z.array(z.enum(["sun", "rain", "snow"])).length(DAYS) });

const objectsOverTurns = async (ask) => {
  const messages = [];
  const answers = [];
  for (const question of JSON_QUESTIONS) {
    messages.push({ role: "user", content: question });
    const object = await ask({ messages, schema: Weather, ...options });
    messages.push({ role: "assistant", content: JSON.stringify(object) });
    answers.push(object);
  }
  return answers;
};

const structured = (model) => objectsOverTurns(async (asked) => (await generateObject({ model, ...asked })).object);

// The object comes once its stream has been read.
const readObject = async (asked) => {
  const result = streamObject({ ...asked, onError: () => {} });
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
  }
  return result.object;
};

const structuredStream = (model) => objectsOverTurns((asked) => readObject({ model, ...asked }));
const killed = { model: compatible(ENDLESS), prompt: DAYS_QUESTION, schema: Forecast, seed: SEED, maxRetries: 0 };

// streamText hands errors to the stream's reader.
const readAll = async (asked) => {
  for await (const part of streamText({ ...asked, ...options, onError: () => {} }).fullStream) {
    if (part.type === "error") throw part.error;
  }
};

const scenarios = {
  whole: () => whole(compatible(MODEL)),
  streamed: () => streamed(compatible(MODEL)),
  chat_whole: () => whole(openai.chat(MODEL)),
  chat_streamed: () => streamed(openai.chat(MODEL)),
  responses_whole: () => whole(openai.responses(MODEL)),
  responses_streamed: () => streamed(openai.responses(MODEL)),

  structured_whole: () => structured(compatible(MODEL)),
  structured_streamed: () => structuredStream(compatible(MODEL)),
  responses_structured_whole: () => structured(openai.responses(MODEL)),
  responses_structured_streamed: () => structuredStream(openai.responses(MODEL)),
  killed_structured: async () => (await generateObject({ ...killed, temperature: 1 })).object.days,
  killed_structured_stream: async () => (await readObject({ ...killed, temperature: 1 })).days,

  // What useChat sends to an application, and the application to the gateway.
  async ui_messages() {
    const parts = QUESTIONS.map((text, index) => ({ id: `${index}`, role: "user", parts: [{ type: "text", text }] }));
    return (await generateText({ model: compatible(MODEL), messages: await convertToModelMessages(parts), ...options }))
      .text;
  },

  async leave() {
    const leaving = new AbortController();
    const read = [];
    const asked = { model: compatible(ENDLESS), prompt: "Tell me more.", abortSignal: leaving.signal };
    for await (const piece of streamText({ ...asked, ...options }).textStream) {
      read.push(piece);
      if (read.length === 3) leaving.abort();
    }
    return read;
  },

  too_long: () => generateText({ model: compatible(MODEL), prompt: LONG_QUESTION, ...options }),
  too_long_streamed: () => readAll({ model: compatible(MODEL), prompt: LONG_QUESTION }),
  too_long_response: () => generateText({ model: openai.responses(MODEL), prompt: LONG_QUESTION, ...options }),
  unknown_model: () => generateText({ model: compatible("no-such-model"), prompt: "Hello", ...options }),

  wrong_key() {
    const other = createOpenAICompatible({ name: "tokenrelay", baseURL: BASE_URL, apiKey: "sk-wrong" });
    return generateText({ model: other(MODEL), prompt: "Hello", ...options });
  },
};

await run(["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible"], scenarios);
