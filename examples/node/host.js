// A DSPy program with a tool in JavaScript and an answer in chunks, over a worker's stdin and
// stdout. Needs Node and nothing else: node host.js; the Python is $BRIDGE_PYTHON, or python3.
"use strict";

const { spawn } = require("node:child_process");

class Worker {
  constructor(python = process.env.BRIDGE_PYTHON || "python3", tools = {}) {
    this.tools = tools;
    this.calls = new Map(); // by id: { resolve, reject, onEvent }
    this.nextId = 1;
    this.unread = Buffer.alloc(0);
    this.child = spawn(python, ["-P", "-m", "bridge", "worker"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.child.stdout.on("data", (bytes) => this.read(bytes));
    this.child.on("error", (error) => this.end(error));
    this.child.on("close", () => this.end(new Error("the worker is gone")));
  }

  /** The result of a command; onEvent(name, data) gets what comes before it. */
  call(command, args = {}, onEvent) {
    const id = this.nextId++;
    this.send({ id, command, args, stream: onEvent !== undefined });
    return new Promise((resolve, reject) => this.calls.set(id, { resolve, reject, onEvent }));
  }

  /** Ends the worker; resolves to its exit status. */
  stop() {
    this.child.stdin.end();
    return new Promise((resolve) => this.child.once("exit", resolve));
  }

  send(message) {
    const payload = Buffer.from(JSON.stringify(message));
    const header = Buffer.alloc(4);
    header.writeUInt32BE(payload.length);
    this.child.stdin.write(Buffer.concat([header, payload]));
  }

  read(bytes) {
    this.unread = Buffer.concat([this.unread, bytes]);
    while (this.unread.length >= 4 && this.unread.length >= 4 + this.unread.readUInt32BE()) {
      const end = 4 + this.unread.readUInt32BE();
      const payload = this.unread.subarray(4, end);
      this.unread = this.unread.subarray(end);
      if (payload.length) this.take(payload.toString());
    }
  }

  take(text) {
    console.log(text);
    const message = JSON.parse(text);
    if (message.command !== undefined) return this.answer(message);
    const call = this.calls.get(message.id);
    if (message.event !== undefined) return call?.onEvent?.(message.event, message.data);
    this.calls.delete(message.id);
    if (message.success) return call?.resolve(message.result);
    const error = new Error(message.error);
    call?.reject(Object.assign(error, { code: message.code, details: message.details }));
  }

  async answer({ id, args }) {
    try {
      this.send({ id, success: true, result: await this.tools[args.name](args.args) });
    } catch (error) {
      this.send({ id, success: false, error: String(error) });
    }
  }

  end(error) {
    for (const { reject } of this.calls.values()) reject(error);
    this.calls.clear();
  }
}

async function main() {
  const tools = { temperature: ({ city }) => `It is 21 degrees in ${city}.` };
  const worker = new Worker(undefined, tools);
  await worker.call("hello", { offers: { tools: true } });
  await worker.call("configure_lm", { provider: "offline" });
  const city = { city: { type: "string" } };
  const description = "The temperature in a city.";
  await worker.call("register_tools", { tools: [{ name: "temperature", description, args: city }] });
  const signature = { inputs: [{ name: "question" }], outputs: [{ name: "answer" }] };
  await worker.call("create_program", { id: "weather", program_type: "react", signature });
  const inputs = { question: "What is the temperature in Graz?" };
  const ask = { program_id: "weather", inputs };
  const { outputs } = await worker.call("execute_program", ask, () => {});
  process.exitCode = (await worker.stop()) || Number(!outputs.answer.includes("21 degrees"));
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
