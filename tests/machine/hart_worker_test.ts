import { assertEquals } from "@std/assert";
import { GuestMemory } from "../../src/machine/guest_memory.ts";
import { loadMachine } from "../../src/machine/loader.ts";
import type { HartEvent, HartRequest } from "../../src/machine/messages.ts";
import { createMachineMemory } from "../../src/wasm/hart.ts";
import { layout, module } from "../support/bare_hart.ts";

const MiB = 1024 * 1024;
/**
 * Parking is a matter of a slice or a notification: far below this, unless the machine is
 * overloaded.
 */
const PARK_LIMIT_MS = 2_000;

const SELF_JUMP = [0x0000006f];
const WFI_LOOP = [0x10500073, 0xffdff06f]; // wfi; j -4
/** a0 = the finisher; a1 = 0x5555; sw a1, (a0); j . */
const SHUTDOWN = [0x00100537, 0x000055b7, 0x55558593, 0x00b52023, 0x0000006f];

/**
 * Hart 0 starts hart 1; both ask 500 times for a fence of all harts; the last one to finish shuts
 * down.
 */
// deno-fmt-ignore
const FENCE_EACH_OTHER = [
  0x02051263, // bnez a0, second
  0x004858b7, 0x34d8889b, 0x00000813, 0x00100513, // HSM, hart_start(1,
  0x00000597, 0x01058593, 0x00000613, 0x00000073, // second, 0)
  0x1f400493, // second: li s1, 500
  0x524658b7, 0xe438889b, 0x00100813, // loop: RFENCE, remote_sfence_vma(
  0x00000513, 0xfff00593, 0x00000613, 0x00000693, 0x00000073, // 0, -1, 0, 0)
  0x02051263, // bnez a0, fail
  0xfff48493, 0xfc049ce3, // addi s1, s1, -1; bnez s1, loop
  0x00001297, 0x00100313, 0x0062a3af, // amoadd.w t2, 1, (a word behind the program)
  0x02038263, // beqz t2, self
  0x00000593, 0x0080006f, // li a1, 0; j end
  0x00100593, // fail: li a1, 1
  0x535258b7, 0x3548889b, 0x00000813, 0x00000513, 0x00000073, // end: SRST, reset(0, a1)
  0x0000006f, // self: j self
];

/**
 * A machine of `hartCount` workers at this program: a firmware in M mode, or a kernel in S mode.
 */
async function createMachine(
  program: number[],
  options: { hartCount?: number; kind?: "firmware" | "kernel" } = {},
) {
  const { hartCount = 1, kind = "firmware" } = options;
  const memory = new GuestMemory(createMachineMemory(layout, 8 * MiB), layout);
  await loadMachine(memory, {
    module,
    hartCount,
    firmware: null,
    kernel: null,
    [kind]: new Uint8Array(Uint32Array.from(program).buffer),
    initrd: null,
    cmdline: "",
    virtioSlots: [],
  });
  const harts = Array.from({ length: hartCount }, (_, hartId) => new HartWorker(memory, hartId));
  await Promise.all(harts.map((hart) => hart.next("ready")));
  return { memory, harts };
}

/** A worker with no permissions, and what it says. */
class HartWorker {
  readonly #worker: Worker;
  readonly #events: HartEvent[] = [];
  #wake: (() => void) | null = null;

  constructor(readonly memory: GuestMemory, readonly hartId: number) {
    const url = new URL("../../src/machine/hart_worker.ts", import.meta.url);
    this.#worker = new Worker(url, { type: "module", deno: { permissions: "none" } });
    this.#worker.onmessage = ({ data }: MessageEvent<HartEvent>) => {
      this.#events.push(data);
      this.#wake?.();
    };
    const modules = { hart: module, kernels: module };
    this.send({ type: "init", hartId, accel: "interpreter", modules, memory: memory.memory });
  }

  send(request: HartRequest): void {
    this.#worker.postMessage(request);
  }

  /** The next event, which must be this one. */
  async next(type: HartEvent["type"]): Promise<void> {
    while (this.#events.length === 0) {
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
    const event = this.#events.shift();
    assertEquals([event?.type, event?.hartId], [type, this.hartId]);
  }

  get instret(): bigint {
    const base = layout.HART_BASE + this.hartId * layout.HART_STRIDE;
    return this.memory.view.getBigUint64(base + layout.HART_INSTRET, true);
  }

  get state(): number {
    const base = layout.HART_BASE + this.hartId * layout.HART_STRIDE;
    return this.memory.loadWord(base + layout.HART_STATE_WORD);
  }

  close(): void {
    this.#worker.terminate();
  }
}

function setStop(memory: GuestMemory, isStopped: boolean): void {
  memory.storeWord(layout.STOP_WORD, isStopped ? 1 : 0);
  memory.wakeHarts();
}

/** Waits for what other threads do; the test's own time limit bounds it. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}

Deno.test("hart worker: busy harts park when the stop word is set, and run on afterwards", async () => {
  const { memory, harts } = await createMachine(SELF_JUMP, { hartCount: 2 });
  for (let round = 0; round < 3; round++) {
    const before = harts.map((hart) => hart.instret);
    setStop(memory, false);
    for (const hart of harts) hart.send({ type: "run" });
    await until(() => harts.every((hart, index) => hart.instret > (before[index] ?? 0n)));
    const started = performance.now();
    setStop(memory, true);
    await Promise.all(harts.map((hart) => hart.next("parked")));
    assertEquals(performance.now() - started < PARK_LIMIT_MS, true);
  }
  for (const hart of harts) hart.close();
});

Deno.test("hart worker: a hart in WFI sleeps, and parks at once when it is told", async () => {
  const { memory, harts } = await createMachine(WFI_LOOP);
  const hart = harts[0] ?? new HartWorker(memory, 0);
  hart.send({ type: "run" });
  await until(() => hart.state === layout.HART_WAITING);
  const before = hart.instret;
  // Woken without an interrupt it must go back to sleep: nothing is executed.
  for (let count = 0; count < 100; count++) memory.wakeHarts();
  const started = performance.now();
  setStop(memory, true);
  await hart.next("parked");
  assertEquals(performance.now() - started < PARK_LIMIT_MS, true);
  assertEquals(hart.instret, before);
  assertEquals(hart.state, layout.HART_WAITING);
  hart.close();
});

Deno.test("hart worker: a machine that ends itself parks its harts and says why", async () => {
  const { memory, harts } = await createMachine(SHUTDOWN, { hartCount: 2 });
  for (const hart of harts) hart.send({ type: "run" });
  await Promise.all(harts.map((hart) => hart.next("parked")));
  assertEquals(memory.loadWord(layout.EXIT_WORD), layout.EXIT_SHUTDOWN);
  const isRung = (memory.loadWord(layout.DOORBELL_WORD) & layout.DOORBELL_EXIT) !== 0;
  assertEquals(isRung, true);
  for (const hart of harts) hart.close();
});

Deno.test("hart worker: harts that fence each other all the time both get on", async () => {
  const { memory, harts } = await createMachine(FENCE_EACH_OTHER, { hartCount: 2, kind: "kernel" });
  for (const hart of harts) hart.send({ type: "run" });
  await Promise.all(harts.map((hart) => hart.next("parked")));
  assertEquals(memory.loadWord(layout.EXIT_WORD), layout.EXIT_SHUTDOWN);
  assertEquals(memory.loadWord(layout.EXIT_CODE), 0);
  for (const hart of harts) hart.close();
});
