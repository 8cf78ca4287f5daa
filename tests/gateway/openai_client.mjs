// The npm package `openai`, unmodified, against a gateway: node openai_client.mjs BASE_URL. Prints what it was told.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the weather today?" }];
const told = {};

const answer = await client.chat.completions.create({ model: "weather", messages });
told.chat = answer.choices[0].message.content;

let streamed = "";
for await (const chunk of await client.chat.completions.create({ model: "weather", messages, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
told.streamed = streamed;

const numbers = [];
const response = await client.responses.create({ model: "weather", input: "x", background: true });
for await (const event of await client.responses.retrieve(response.id, { stream: true, starting_after: 0 })) {
  numbers.push(event.sequence_number);
}
told.numbers = numbers;
told.response = (await client.responses.retrieve(response.id)).output_text;
told.models = (await client.models.list()).data.map((model) => model.id);

try {
  await client.chat.completions.create({ model: "weather", messages, n: 17 });
} catch (error) {
  told.refused = [error.status, error.param];
}
console.log(JSON.stringify(told));
