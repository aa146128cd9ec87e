/** A machine's monitor beside HTTP: each sees what the other does. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { Service, ServiceConsole, TOKEN } from "../support/service.ts";

const MiB = 1024 * 1024;

interface Message {
  return?: unknown;
  error?: { class: string; desc: string };
  event?: string;
  QMP?: unknown;
}

/** A client of a monitor, over whatever carries lines. */
class Client {
  readonly events: string[] = [];
  readonly #messages: Message[] = [];
  #text = "";
  #waiters: (() => void)[] = [];

  constructor(readonly send: (text: string) => unknown) {}

  hear(text: string): void {
    this.#text += text;
    for (let end = this.#text.indexOf("\n"); end >= 0; end = this.#text.indexOf("\n")) {
      const message: Message = JSON.parse(this.#text.slice(0, end));
      this.#text = this.#text.slice(end + 1);
      if (message.event === undefined) this.#messages.push(message);
      else this.events.push(message.event);
    }
    for (const wake of this.#waiters.splice(0)) wake();
  }

  async next(): Promise<Message> {
    for (;;) {
      const message = this.#messages.shift();
      if (message !== undefined) return message;
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  async event(name: string): Promise<void> {
    while (!this.events.includes(name)) {
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  async execute(execute: string, args?: object): Promise<unknown> {
    this.send(`${JSON.stringify({ execute, ...(args && { arguments: args }) })}\n`);
    const answer = await this.next();
    if (answer.error) throw new Error(answer.error.desc);
    return answer.return;
  }
}

Deno.test("a machine is steered by its monitor, on its socket and in a WebSocket", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await using service = await Service.start(folder);
    const disks = [{ name: "disk0", sizeBytes: MiB }];
    await service.call("POST", "/v1/vms", { name: "t1", image: "demo", disks });
    const guest = new ServiceConsole(service, "t1");
    await using _ = guest;
    await guest.waitFor(/demo> /);
    const state = async () => (await service.call<{ state: string }>("GET", "/v1/vms/t1")).state;
    const { qmp } = await service.call<{ qmp: string }>("GET", "/v1/vms/t1");

    const stream = await Deno.connect({ transport: "unix", path: qmp });
    const client = new Client((text) => stream.write(new TextEncoder().encode(text)));
    const reading = (async () => {
      for await (const text of stream.readable.pipeThrough(new TextDecoderStream())) {
        client.hear(text);
      }
    })();
    assert("QMP" in await client.next());
    await client.execute("qmp_capabilities");
    assertEquals(await client.execute("query-status"), { status: "running", running: true });
    await client.execute("stop");
    await client.event("STOP");
    assertEquals(await state(), "paused");
    await service.call("POST", "/v1/vms/t1/resume");
    await client.event("RESUME");
    assertMatch(JSON.stringify(await client.execute("query-block")), /disk0/);
    await client.execute("block-dirty-bitmap-add", { node: "disk-0", name: "b0" });
    const disk = await service.call<{ bitmaps: { name: string }[] }>("GET", "/v1/disks/t1:disk0");
    assertEquals(disk.bitmaps.map(({ name }) => name), ["b0"]);

    const socket = new WebSocket(
      `${service.url.replace("http", "ws")}/v1/vms/t1/qmp`,
      { headers: { authorization: `Bearer ${TOKEN}` } } as unknown as string[],
    );
    const second = new Client((text) => socket.send(text));
    socket.onmessage = ({ data }) => second.hear(data);
    assert("QMP" in await second.next());
    await second.execute("qmp_capabilities");
    await second.execute("system_reset");
    await client.event("RESET");
    const closed = new Promise((resolve) => socket.onclose = resolve);
    await second.execute("quit");
    await closed;
    await reading;
    while (await state() !== "stopped") await new Promise((resolve) => setTimeout(resolve, 20));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
