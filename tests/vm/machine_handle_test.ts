/** A real machine with its workers: life cycle, console, disks. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { BlockError } from "../../src/block/errors.ts";
import { MachineHandle } from "../../src/vm/machine_handle.ts";
import { TestMachine } from "../support/test_machine.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
/** In RAM, away from the guest's program. */
const FREE_GPA = "0x80f00000";

Deno.test("MachineHandle boots a guest that prints, and says when it shuts down", async () => {
  await using machine = await TestMachine.open();
  await machine.handle.start();
  assertMatch(await machine.prompt(), /Ovis demo guest, 1 disk\(s\)/);
  assertMatch(await machine.run("echo all-is-well"), /^all-is-well\nok$/);
  await machine.type("poweroff\r");
  await machine.until(() => machine.exits.length > 0);
  assertEquals(machine.exits, ["shutdown 0"]);
  assertEquals(machine.failures, []);
});

Deno.test("MachineHandle.pause() stops a guest that never rests, resume() lets it finish", async () => {
  await using machine = await TestMachine.boot();
  await machine.type("spin\r");
  await machine.until(() => machine.console.includes("spin"));
  await machine.handle.pause();
  await machine.handle.pause();
  await machine.type("echo later\r");
  await machine.handle.resume();
  assertMatch(await machine.prompt(), /instructions in/);
  assertMatch(await machine.prompt(), /later/);
});

Deno.test("MachineHandle.pause() stops the guest's clock, too", async () => {
  await using machine = await TestMachine.boot();
  const typed = performance.now();
  await machine.type("spin\r");
  await machine.until(() => machine.console.includes("spin"));
  await machine.handle.pause();
  const paused = performance.now();
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const resumed = performance.now();
  await machine.handle.resume();
  const text = await machine.prompt();
  const guestMs = Number(/in (\d+) us/.exec(text)?.[1]) / 1000;
  const runningMs = paused - typed + performance.now() - resumed;
  assertEquals(guestMs <= runningMs + 1, true, `${guestMs} ms, but it ran for ${runningMs} ms`);
});

Deno.test("MachineHandle.close() ends a machine in the middle of its work, as often as it is asked", async () => {
  const machine = await TestMachine.boot();
  await machine.type("spin\r");
  const { handle } = machine;
  await Promise.all([handle.close(), handle.close()]);
  await assertRejects(() => handle.resume(), BlockError, "closed");
  await assertRejects(() => handle.call("fleecingInfo", { name: "x" }), BlockError, "closed");
  await machine[Symbol.asyncDispose]();
  assertEquals(machine.failures, []);
});

Deno.test("MachineHandle.reset() starts from clean memory, and keeps the disks", async () => {
  await using machine = await TestMachine.boot();
  await machine.run(`poke ${FREE_GPA} 8 0x1234`);
  assertMatch(await machine.run(`peek ${FREE_GPA} 8`), /1234/);
  await machine.run("write 0 512 kept");
  await machine.handle.reset();
  assertMatch(await machine.prompt(), /Ovis demo guest/);
  assert(!(await machine.run(`peek ${FREE_GPA} 8`)).includes("1234"));
  assertMatch(await machine.run("read 0 512 512"), /kept|6b 65 70 74|6b657074/);
});

Deno.test("MachineHandle.reset() answers a reboot that the guest asked for", async () => {
  await using machine = await TestMachine.boot();
  for (let round = 1; round <= 3; round++) {
    await machine.type("reboot\r");
    await machine.until(() => machine.exits.length === round);
    machine.console = "";
    await machine.handle.reset();
    assertMatch(await machine.prompt(), /Ovis demo guest/);
  }
  assertEquals(machine.exits, ["reboot 0", "reboot 0", "reboot 0"]);
});

Deno.test("MachineHandle takes transitions one after the other, however they are thrown at it", async () => {
  await using machine = await TestMachine.boot();
  const { handle } = machine;
  machine.console = "";
  await Promise.all([
    handle.pause(),
    handle.reset(),
    handle.resume(),
    handle.pause(),
    handle.resume(),
    handle.reset(),
  ]);
  // What is typed now reaches the last boot; of those before there may be output on its way.
  await machine.type("echo fine\r");
  await machine.until(() => /\nfine/.test(machine.console));
});

Deno.test("MachineHandle runs several harts and parks them all", async () => {
  await using machine = await TestMachine.boot({ config: { hartCount: 4 } });
  for (let round = 0; round < 5; round++) {
    await machine.handle.pause();
    await machine.handle.resume();
    assertMatch(await machine.run(`echo ${round}`), new RegExp(`^${round}\n`));
  }
});

Deno.test("MachineHandle moves a disk's data to its file, flushed when it is closed", async () => {
  const disks = [{ sizeBytes: 3 * MiB + 512 }, { sizeBytes: 512 }];
  const first = await TestMachine.boot({ disks });
  assertMatch(await first.run("disks"), /0: 3146240 bytes, serial disk0\n1: 512 bytes/);
  assertMatch(await first.run("fill 0 0 3146240 0x41"), /ok$/);
  assertMatch(await first.run("zero 0 4096 8192"), /ok$/);
  assertMatch(await first.run("write 1 0 last-sector"), /ok$/);
  assertMatch(await first.run("flush 0"), /ok$/);
  await first.handle.close();
  const image = await Deno.readFile(`${first.directory}/disk0.img`);
  assertEquals(image.length, 3 * MiB + 512);
  for (const [offset, byte] of [[0, 0x41], [4095, 0x41], [4096, 0], [12287, 0], [12288, 0x41]]) {
    assertEquals(image[offset ?? 0], byte);
  }
  assertEquals(image.at(-1), 0x41);

  await using second = await TestMachine.boot({ disks, directory: first.directory });
  const text = await Deno.readTextFile(`${first.directory}/disk1.img`);
  assert(text.startsWith("last-sector"));
  assertMatch(await second.run("hash 0"), /[0-9a-f]{64}/);
});

Deno.test("MachineHandle keeps a read-only disk as it is", async () => {
  await using machine = await TestMachine.boot({ disks: [{ sizeBytes: MiB, isReadOnly: true }] });
  assertMatch(await machine.run("write 0 0 no"), /failed$/);
  assertMatch(await machine.run("read 0 0 512"), /ok$/);
  const image = await Deno.readFile(`${machine.directory}/disk0.img`);
  assert(image.every((byte) => byte === 0));
});

Deno.test("MachineHandle survives a guest that writes nonsense to every device", async () => {
  await using machine = await TestMachine.boot();
  for (const seed of [1, 2, 3]) {
    machine.console = "";
    await machine.type(`fuzz ${seed} 3000\r`);
    await machine.until(() => /ok\r?\n|failed/.test(machine.console) || machine.exits.length > 0);
    await machine.handle.reset();
    machine.exits.length = 0;
    machine.console = "";
    await machine.until(() => machine.console.includes("demo> "));
  }
  machine.console = "";
  assertMatch(await machine.run("echo still-here"), /still-here/);
});

Deno.test("MachineHandle.open() refuses what can't be opened, and leaves nothing running", async () => {
  const directory = await Deno.makeTempDir();
  await Deno.mkdir(`${directory}/scratch`);
  await Deno.writeFile(`${directory}/disk0.img`, new Uint8Array(1024));
  const open = (disks: { sizeBytes: number; path?: string }[]) =>
    TestMachine.open({ directory, disks });
  const wrong = await assertRejects(() => open([{ sizeBytes: 2048 }]), BlockError);
  assertEquals(wrong.code, "EINVAL");
  const path = `${directory}/nowhere.img`;
  const missing = await assertRejects(() => open([{ sizeBytes: 512, path }]), BlockError);
  assertEquals(missing.code, "ENOENT");
  // The disk of the first attempt is free again.
  await using machine = await open([{ sizeBytes: 1024 }]);
  const taken = await assertRejects(() => open([{ sizeBytes: 1024 }]), BlockError);
  assertEquals(taken.code, "EBUSY");
  assertEquals(machine.failures, []);
});

Deno.test("MachineHandle.start() says what is wrong with a boot file", async () => {
  const directory = await Deno.makeTempDir();
  await Deno.writeFile(`${directory}/disk0.img`, new Uint8Array(1024));
  await Deno.writeTextFile(`${directory}/kernel`, "this is no kernel\n".repeat(100));
  const boot = { kernel: `${directory}/kernel`, initrd: null, firmware: null, cmdline: "" };
  await using machine = await TestMachine.open({
    directory,
    disks: [{ sizeBytes: 1024 }],
    config: { boot },
  });
  assert(machine.handle instanceof MachineHandle);
  const error = await assertRejects(() => machine.handle.start(), BlockError);
  assertEquals(error.code, "EINVAL");
  assertMatch(error.message, /kernel/);
  await Deno.remove(`${directory}/kernel`);
  const missing = await assertRejects(() => machine.handle.start(), BlockError);
  assertEquals(missing.code, "ENOENT");
});

Deno.test("MachineHandle carries much console output without loss", async () => {
  await using machine = await TestMachine.boot();
  const line = "0123456789".repeat(6);
  let count = 0;
  for (let round = 0; round < 200; round++) {
    const answer = await machine.run(`echo ${line}`);
    if (answer.startsWith(line)) count++;
  }
  assertEquals(count, 200);
});
