// openai: chat completions and the Responses API.

import OpenAI from "openai";
import { API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run } from "./scenarios.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const ask = (question, options = {}, asked = client) =>
  asked.chat.completions.create({
    model: MODEL,
    messages: [{ role: "user", content: question }],
    temperature: 0,
    ...options,
  });

const scenarios = {
  async whole() {
    const messages = [];
    for (const question of QUESTIONS) {
      messages.push({ role: "user", content: question });
      const completion = await client.chat.completions.create({ model: MODEL, messages, temperature: 0 });
      messages.push(completion.choices[0].message);
    }
    return messages.filter((message) => message.role === "assistant").map((message) => message.content);
  },

  async streamed() {
    const messages = [];
    for (const question of QUESTIONS) {
      messages.push({ role: "user", content: question });
      messages.push(await client.chat.completions.stream({ model: MODEL, messages, temperature: 0 }).finalMessage());
    }
    return messages.filter((message) => message.role === "assistant").map((message) => message.content);
  },

  async responses_whole() {
    const history = [];
    const answers = [];
    for (const question of QUESTIONS) {
      history.push({ role: "user", content: question });
      const response = await client.responses.create({ model: MODEL, input: history, temperature: 0 });
      history.push(...response.output);
      answers.push(response.output_text);
    }
    return answers;
  },

  async responses_streamed() {
    const history = [];
    const answers = [];
    for (const question of QUESTIONS) {
      history.push({ role: "user", content: question });
      const response = await client.responses.stream({ model: MODEL, input: history, temperature: 0 }).finalResponse();
      history.push(...response.output);
      answers.push(response.output_text);
    }
    return answers;
  },

  async leave() {
    const stream = await ask("Tell me more.", { model: ENDLESS, stream: true });
    const read = [];
    for await (const chunk of stream) {
      read.push(chunk.id);
      if (read.length === 3) break; // leaving the loop ends the connection
    }
    return read;
  },

  too_long: () => ask(LONG_QUESTION),
  async too_long_streamed() {
    for await (const chunk of await ask(LONG_QUESTION, { stream: true })) return chunk.id;
  },
  too_long_response: () => client.responses.create({ model: MODEL, input: LONG_QUESTION }),
  unknown_model: () => ask("Hello", { model: "no-such-model" }),
  wrong_key: () => ask("Hello", {}, new OpenAI({ baseURL: BASE_URL, apiKey: "sk-wrong" })),
};

await run(["openai"], scenarios);
