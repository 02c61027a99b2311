// Runs a DSPy program in a worker, with a tool in JavaScript and a streamed answer: node host.js. Needs
// nothing but Node. The worker is at the other end of the Unix socket $BRIDGE_SOCKET, where
// `python -m bridge serve --listen unix:PATH` listens; without it, a process that is started here, with
// the interpreter $BRIDGE_PYTHON or python3.
"use strict";

const { spawn } = require("node:child_process");
const net = require("node:net");

const LAST_BYTES_MS = 200; // to read what the worker wrote before it ended

class Worker {
  constructor({ tools = {}, socket = process.env.BRIDGE_SOCKET, python = process.env.BRIDGE_PYTHON || "python3" } = {}) {
    this.tools = tools;
    this.calls = new Map(); // by id: { resolve, reject, onEvent }
    this.nextId = 1;
    this.unread = Buffer.alloc(0);
    this.ended = undefined; // the error of every call, once the worker has ended
    if (socket) this.connect(socket);
    else this.start(python);
    this.input.on("data", (bytes) => this.read(bytes));
  }

  connect(path) {
    this.input = this.output = net.createConnection(path);
    this.input.on("error", (error) => this.end(error));
    this.input.on("close", () => this.end(new Error("the worker has ended")));
  }

  start(python) {
    this.child = spawn(python, ["-P", "-m", "bridge", "worker"], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.input = this.child.stdout;
    this.output = this.child.stdin;
    this.output.on("error", () => {}); // the worker is ending: "exit" says how
    this.child.on("error", (error) => this.end(error));
    // Not "close", which waits for every process that holds the pipe, such as a child of the worker.
    this.child.on("exit", (status, signal) => {
      const error = new Error(`the worker has ended (${signal || `exit status ${status}`})`);
      setTimeout(() => this.end(error), LAST_BYTES_MS);
    });
  }

  /** Returns a promise of a command's result; calls onEvent(name, data) for each event. */
  call(command, args = {}, onEvent) {
    return new Promise((resolve, reject) => {
      if (this.ended) throw this.ended;
      const id = this.nextId++;
      this.send({ id, command, args, stream: onEvent !== undefined });
      this.calls.set(id, { resolve, reject, onEvent });
    });
  }

  /** Ends the worker; resolves to its exit status, or null if that is not known or it never ran. */
  stop() {
    this.output.end();
    const status = () => this.child?.exitCode ?? null;
    return new Promise((resolve) => {
      if (this.ended) resolve(status());
      else this.onEnd = () => resolve(status());
    });
  }

  send(message) {
    const payload = Buffer.from(JSON.stringify(message));
    const header = Buffer.alloc(4);
    header.writeUInt32BE(payload.length);
    this.output.write(Buffer.concat([header, payload]));
  }

  read(bytes) {
    this.unread = Buffer.concat([this.unread, bytes]);
    while (this.unread.length >= 4 && this.unread.length >= 4 + this.unread.readUInt32BE()) {
      const end = 4 + this.unread.readUInt32BE();
      const payload = this.unread.subarray(4, end);
      this.unread = this.unread.subarray(end);
      if (payload.length) this.dispatch(payload.toString());
    }
  }

  dispatch(text) {
    console.log(text);
    const message = JSON.parse(text);
    if (message.command !== undefined) return this.answer(message);
    const call = this.calls.get(message.id);
    if (message.event !== undefined) return this.deliver(message, call);
    this.calls.delete(message.id);
    if (message.success) return call?.resolve(message.result);
    const error = new Error(message.error);
    call?.reject(Object.assign(error, { code: message.code, details: message.details }));
  }

  /** Passes an event to its call. If onEvent throws, only that call fails. */
  deliver({ id, event, data }, call) {
    try {
      call?.onEvent?.(event, data);
    } catch (error) {
      this.calls.delete(id);
      call.reject(error);
      this.call("cancel", { id }).catch(() => {});
    }
  }

  async answer({ id, args }) {
    try {
      this.send({ id, success: true, result: await this.tools[args.name](args.args) });
    } catch (error) {
      this.send({ id, success: false, error: String(error) });
    }
  }

  end(error) {
    this.ended ??= error;
    for (const { reject } of this.calls.values()) reject(this.ended);
    this.calls.clear();
    this.input?.destroy();
    this.onEnd?.();
  }
}

async function main() {
  const tools = { temperature: ({ city }) => `It is 21 degrees in ${city}.` };
  const worker = new Worker({ tools });
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

if (require.main === module) {
  main().catch((error) => {
    console.error(error.message);
    process.exit(1);
  });
}

module.exports = { Worker };
