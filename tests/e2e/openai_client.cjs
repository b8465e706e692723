// Run by Node with the npm package `openai` on NODE_PATH: asks the server at the address given, and prints JSON.
const { OpenAI } = require("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "你是谁？" }];

/** The answer to `messages`, read piece by piece, and how many pieces with text there were. */
async function streamed() {
  let text = "";
  let pieces = 0;
  for await (const { choices } of await client.chat.completions.create({ model: "identity", messages, stream: true })) {
    const piece = choices[0].delta.content ?? "";
    text += piece;
    pieces += piece !== "";
  }
  return { text, pieces };
}

/** What the client throws for a request that is refused. */
async function refused(body) {
  try {
    await client.chat.completions.create({ model: "identity", messages, ...body });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code };
  }
}

/** Leave a reply that finds no end after its first piece. */
async function leave(body) {
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) return chunk.object;
}

async function main() {
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const whole = await client.chat.completions.create({ model: "identity", messages });
  const together = await Promise.all(Array.from({ length: 32 }, streamed));
  console.log(
    JSON.stringify({
      models,
      text: whole.choices[0].message.content,
      finish: whole.choices[0].finish_reason,
      tokens: whole.usage.completion_tokens,
      together,
      refused: [await refused({ model: "gpt-4o" }), await refused({ max_tokens: -1 })],
      left: await leave(JSON.parse(process.argv[3])),
    }),
  );
}

main();
