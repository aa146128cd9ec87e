/** The I/O worker of a real machine: fleecings under a writing guest, read over every transport. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import type { FleecingRequest } from "../../src/machine/messages.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { PortStream } from "../../src/nbd/transports/port.ts";
import { connectTcp } from "../../src/nbd/transports/tcp.ts";
import { connectUnix } from "../../src/nbd/transports/unix.ts";
import { findProgram, needs } from "../support/clients.ts";
import { TestMachine } from "../support/test_machine.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const DISK_BYTES = 4 * MiB;

function order(name: string, change: Partial<FleecingRequest> = {}): FleecingRequest {
  return {
    name,
    disks: ["disk0"],
    onCbwError: "break-snapshot",
    cbwTimeoutSeconds: 45,
    minClusterSizeBytes: 0,
    scheme: "new",
    bitmap: null,
    since: null,
    checkpoint: null,
    scratchMaxBytes: null,
    scratchDirectory: null,
    ...change,
  };
}

function bootWithDisks(count: number): Promise<TestMachine> {
  return TestMachine.boot({ disks: Array(count).fill({ sizeBytes: DISK_BYTES }) });
}

/** The byte that fills a whole range, -1 if there are several. */
function onlyByte(bytes: Uint8Array): number {
  const first = bytes[0] ?? -1;
  return bytes.every((byte) => byte === first) ? first : -1;
}

async function readExport(
  machine: TestMachine,
  exportName: string,
  range = { offset: 0, length: MiB },
): Promise<Uint8Array> {
  return new Uint8Array((await machine.handle.call("exportRead", { exportName, ...range })).bytes);
}

async function scratchFiles(machine: TestMachine): Promise<string[]> {
  const names = [];
  for await (const { name } of Deno.readDir(`${machine.directory}/scratch`)) names.push(name);
  return names;
}

Deno.test("a fleecing shows the past over HTTP's calls, TCP, unix and a port, while the guest writes", async () => {
  await using machine = await bootWithDisks(1);
  const { handle } = machine;
  await machine.run(`fill 0 0 ${DISK_BYTES} 0x11`);
  const info = await handle.call("fleecingStart", order("monday"));
  const exportName = info.disks[0]?.exportName ?? "";
  assertEquals(exportName, "test-disk0-monday");
  assertMatch(await machine.run(`fill 0 0 ${DISK_BYTES} 0x22`), /ok$/);

  assertEquals(onlyByte(await readExport(machine, exportName)), 0x11);
  assertEquals(await handle.call("exportInfo", { exportName }), {
    sizeBytes: DISK_BYTES,
    isReadOnly: true,
  });
  const { host, port, socketPath } = handle.nbd;
  const channel = new MessageChannel();
  await handle.call("nbdOpen", { exportName, port: channel.port2 }, [channel.port2]);
  const streams = [
    await connectTcp({ host, port }),
    await connectUnix(socketPath),
    new PortStream(channel.port1),
  ];
  for (const stream of streams) {
    const client = await NbdClient.connect(stream, { exportName });
    assertEquals(client.sizeBytes, DISK_BYTES);
    assertEquals(onlyByte(await client.read(MiB, MiB)), 0x11);
    await client.close();
  }
  const [disk] = (await handle.call("fleecingInfo", { name: "monday" })).disks;
  assertEquals(disk?.copiedBytes, DISK_BYTES);
  assertEquals(disk?.clustersDone, DISK_BYTES / (64 * KiB));
  assert((await scratchFiles(machine)).length === 1);

  await handle.call("fleecingEnd", { name: "monday", result: "failure" });
  assertEquals(await scratchFiles(machine), []);
  const gone = await assertRejects(() => readExport(machine, exportName), BlockError);
  assertEquals(gone.code, "ENOENT");
  assertMatch(await machine.run("fill 0 0 4096 0x33"), /ok$/);
});

Deno.test("a session over a port opens its export and no other", async () => {
  await using machine = await bootWithDisks(2);
  const { handle } = machine;
  await handle.call("fleecingStart", order("pair", { disks: ["disk0", "disk1"] }));
  const open = async () => {
    const { port1, port2 } = new MessageChannel();
    await handle.call("nbdOpen", { exportName: "test-disk1-pair", port: port2 }, [port2]);
    return new PortStream(port1);
  };
  const listed = await NbdClient.list(await open());
  assertEquals(listed.map(({ name }) => name), ["test-disk1-pair"]);
  await assertRejects(async () =>
    await NbdClient.connect(await open(), { exportName: "test-disk0-pair" })
  );
  const client = await NbdClient.connect(await open());
  assertEquals(client.sizeBytes, DISK_BYTES);
  await client.close();
  const { port1, port2 } = new MessageChannel();
  const error = await assertRejects(
    () => handle.call("nbdOpen", { exportName: "nobody", port: port2 }, [port2]),
    BlockError,
  );
  assertEquals(error.code, "ENOENT");
  port1.close();
});

Deno.test("several disks are frozen at one moment", async () => {
  await using machine = await bootWithDisks(3);
  const { handle } = machine;
  for (const disk of [0, 1, 2]) await machine.run(`fill ${disk} 0 1M ${disk + 1}`);
  const disks = ["disk2", "disk0"];
  const info = await handle.call("fleecingStart", order("two", { disks }));
  assertEquals(info.disks.map(({ disk }) => disk), disks);
  for (const disk of [0, 1, 2]) await machine.run(`fill ${disk} 0 1M 9`);
  assertEquals(onlyByte(await readExport(machine, "test-disk0-two")), 1);
  assertEquals(onlyByte(await readExport(machine, "test-disk2-two")), 3);
});

Deno.test("a read-only disk can be frozen too", async () => {
  await using machine = await TestMachine.boot({
    disks: [{ sizeBytes: DISK_BYTES, isReadOnly: true }],
  });
  await machine.handle.call("fleecingStart", order("still"));
  assertEquals(onlyByte(await readExport(machine, "test-disk0-still")), 0);
  await machine.handle.call("fleecingEnd", { name: "still", result: "failure" });
  assertMatch(await machine.run("read 0 0 512"), /ok$/);
});

Deno.test("fleecings stack, each shows its own moment, and close takes all of them down", async () => {
  await using machine = await bootWithDisks(1);
  const { handle } = machine;
  for (let day = 1; day <= 3; day++) {
    await machine.run(`fill 0 0 1M ${day}`);
    await handle.call("fleecingStart", order(`day${day}`));
  }
  await machine.run("fill 0 0 1M 4");
  for (let day = 1; day <= 3; day++) {
    assertEquals(onlyByte(await readExport(machine, `test-disk0-day${day}`)), day);
  }
  await handle.call("fleecingEnd", { name: "day2", result: "failure" });
  assertEquals(onlyByte(await readExport(machine, "test-disk0-day1")), 1);
  assertEquals(onlyByte(await readExport(machine, "test-disk0-day3")), 3);
  await handle.close();
  assertEquals(await scratchFiles(machine), []);
  const image = await Deno.readFile(`${machine.directory}/disk0.img`);
  assertEquals(onlyByte(image.subarray(0, MiB)), 4);
});

Deno.test("a guest's reset neither waits for a fleecing nor ends it", async () => {
  await using machine = await bootWithDisks(1);
  await machine.run("fill 0 0 1M 1");
  await machine.handle.call("fleecingStart", order("kept"));
  await machine.handle.reset();
  await machine.prompt();
  await machine.run("fill 0 0 1M 2");
  assertEquals(onlyByte(await readExport(machine, "test-disk0-kept")), 1);
});

Deno.test("a fleecing that ran out of room breaks, says so once, and leaves the guest alone", async () => {
  await using machine = await bootWithDisks(1);
  const { handle } = machine;
  await machine.run(`fill 0 0 ${DISK_BYTES} 6`);
  await handle.call("fleecingStart", order("small", { scratchMaxBytes: 256 * KiB }));
  assertMatch(await machine.run(`fill 0 0 ${DISK_BYTES} 7`), /ok$/);
  await machine.until(() => machine.broken.length > 0);
  assertEquals(machine.broken.length, 1);
  assertMatch(machine.broken[0] ?? "", /^small disk0: /);
  const error = await assertRejects(() => readExport(machine, "test-disk0-small"), BlockError);
  assertEquals(error.code, "EACCES");
  await handle.call("fleecingEnd", { name: "small", result: "failure" });
});

Deno.test("maps of an export: what may be read, what is allocated", async () => {
  await using machine = await bootWithDisks(1);
  const { handle } = machine;
  await machine.run("fill 0 65536 65536 1");
  await handle.call("fleecingStart", order("map"));
  const ask = (context: "access" | "allocation", offset = 0, length = DISK_BYTES) =>
    handle.call("exportExtents", {
      bitmap: null,
      exportName: "test-disk0-map",
      context,
      offset,
      length,
      limit: 100,
    });
  assertEquals((await ask("access")).extents, [{ offset: 0, length: DISK_BYTES, flags: 0 }]);
  const { extents } = await ask("allocation");
  assertEquals(extents.reduce((sum, { length }) => sum + length, 0), DISK_BYTES);
  const data = extents.filter(({ flags }) => flags === 0);
  assert(data.some(({ offset, length }) => offset <= 65536 && offset + length >= 131072));
  assertEquals((await ask("access", DISK_BYTES, 0)).extents, []);
  const outside = await assertRejects(() => ask("access", DISK_BYTES, 1), BlockError);
  assertEquals(outside.code, "EINVAL");
});

Deno.test("calls that make no sense get an error each, and disturb nobody", async () => {
  await using machine = await bootWithDisks(1);
  const { handle } = machine;
  await handle.call("fleecingStart", order("one"));
  const codeOf = async (call: Promise<unknown>) =>
    (await assertRejects(() => call, BlockError)).code;
  const range = (offset: number, length: number) =>
    handle.call("exportRead", { exportName: "test-disk0-one", offset, length });
  assertEquals(await codeOf(handle.call("fleecingStart", order("one"))), "EBUSY");
  assertEquals(await codeOf(handle.call("fleecingStart", order("x", { disks: [] }))), "EINVAL");
  const twice = order("x", { disks: ["disk0", "disk0"] });
  assertEquals(await codeOf(handle.call("fleecingStart", twice)), "EINVAL");
  const unknown = order("x", { disks: ["disk9"] });
  assertEquals(await codeOf(handle.call("fleecingStart", unknown)), "ENOENT");
  assertEquals(await codeOf(handle.call("fleecingStart", order("x", { bitmap: "b" }))), "ENOENT");
  assertEquals(await codeOf(handle.call("fleecingInfo", { name: "x" })), "ENOENT");
  assertEquals(
    await codeOf(handle.call("fleecingEnd", { name: "x", result: "failure" })),
    "ENOENT",
  );
  assertEquals(await codeOf(range(DISK_BYTES, 1)), "EINVAL");
  assertEquals(await codeOf(range(-1, 1)), "EINVAL");
  assertEquals(await codeOf(range(0, 2 * MiB)), "EINVAL");
  assertEquals(await codeOf(range(NaN, 1)), "EINVAL");
  assertEquals((await range(0, 0)).bytes.byteLength, 0);
  assertMatch(await machine.run("echo fine"), /fine/);
});

Deno.test("many readers and a writing guest at once: every reader sees the one moment", async () => {
  await using machine = await bootWithDisks(1);
  await machine.run(`fill 0 0 ${DISK_BYTES} 0x55`);
  await machine.handle.call("fleecingStart", order("busy"));
  const { host, port } = machine.handle.nbd;
  const readers = [1, 2, 3].map(async () => {
    const client = await NbdClient.connect(await connectTcp({ host, port }));
    for (let offset = 0; offset < DISK_BYTES; offset += 256 * KiB) {
      assertEquals(onlyByte(await client.read(offset, 256 * KiB)), 0x55);
    }
    await client.close();
  });
  await Promise.all([machine.run("stress 0 1 2000 8192"), ...readers]);
  const client = await NbdClient.connect(await connectTcp({ host, port }));
  assertEquals(onlyByte(await client.read(0, DISK_BYTES)), 0x55);
  await client.close();
});

Deno.test({
  name: "qemu-img and nbdinfo read a fleecing over TCP and a unix socket",
  ...needs("qemu-img", "nbdinfo"),
  async fn() {
    await using machine = await bootWithDisks(1);
    await machine.run(`fill 0 0 ${DISK_BYTES} 0x61`);
    await machine.handle.call("fleecingStart", order("qemu"));
    await machine.run(`fill 0 0 ${DISK_BYTES} 0x62`);
    const { host, port, socketPath } = machine.handle.nbd;
    const uris = [
      `nbd://${host}:${port}/test-disk0-qemu`,
      `nbd+unix:///test-disk0-qemu?socket=${socketPath}`,
    ];
    for (const uri of uris) {
      const copy = `${machine.directory}/copy.img`;
      const args = ["convert", "-f", "raw", "-O", "raw", uri, copy];
      await runProgram("qemu-img", args);
      assertEquals(onlyByte(await Deno.readFile(copy)), 0x61);
      assertEquals(await runProgram("nbdinfo", ["--size", uri]), `${DISK_BYTES}\n`);
    }
  },
});

async function runProgram(name: string, args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(findProgram(name) ?? name, { args })
    .output();
  assert(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}
