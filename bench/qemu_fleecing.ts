/**
 * A fleecing in a running QEMU, by QMP: the peer of one HTTP call.
 *
 * @module
 */

/** A QMP session. */
export interface QmpClient extends Disposable {
  execute(command: string, args?: unknown): Promise<unknown>;
}

/** Connects to a QMP socket and negotiates. */
export async function startQmp(path: string): Promise<QmpClient> {
  let connection: Deno.UnixConn | undefined;
  for (let attempt = 0; connection === undefined; attempt++) {
    try {
      connection = await Deno.connect({ transport: "unix", path });
    } catch (error) {
      if (attempt === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  const socket = connection;
  let text = "";
  const bytes = new Uint8Array(65536);
  const nextMessage = async (): Promise<Record<string, unknown>> => {
    for (;;) {
      const end = text.indexOf("\n");
      if (end >= 0) {
        const line = text.slice(0, end);
        text = text.slice(end + 1);
        return JSON.parse(line);
      }
      const count = await socket.read(bytes);
      if (count === null) throw new Error("QMP ended");
      text += new TextDecoder().decode(bytes.subarray(0, count));
    }
  };
  await nextMessage(); // the greeting
  const client: QmpClient = {
    async execute(command, args) {
      const request = JSON.stringify({ execute: command, arguments: args });
      await socket.write(new TextEncoder().encode(`${request}\n`));
      for (;;) {
        const message = await nextMessage();
        if ("return" in message) return message.return;
        if ("error" in message) throw new Error(`${command}: ${JSON.stringify(message.error)}`);
      }
    },
    [Symbol.dispose]: () => socket.close(),
  };
  await client.execute("qmp_capabilities");
  return client;
}

/** Puts a copy-before-write filter under the guest's disk; returns how to take it out again. */
export async function freeze(qmp: QmpClient, temporary: string): Promise<() => Promise<void>> {
  const device = "/machine/peripheral/vblk";
  await qmp.execute("blockdev-add", {
    driver: "raw",
    "node-name": "temp",
    discard: "unmap",
    file: { driver: "file", filename: temporary, discard: "unmap" },
  });
  await qmp.execute("blockdev-add", {
    driver: "copy-before-write",
    "node-name": "cbw",
    file: "disk",
    target: "temp",
  });
  await qmp.execute("qom-set", { path: device, property: "drive", value: "cbw" });
  await qmp.execute("blockdev-add", { driver: "snapshot-access", "node-name": "acc", file: "cbw" });
  return async () => {
    await qmp.execute("blockdev-del", { "node-name": "acc" });
    await qmp.execute("qom-set", { path: device, property: "drive", value: "disk" });
    await qmp.execute("blockdev-del", { "node-name": "cbw" });
    await qmp.execute("blockdev-del", { "node-name": "temp" });
  };
}
