import { assertEquals } from "@std/assert";
import {
  BARE_RAM_BYTES,
  BareMachine,
  FENCE_I,
  layout,
  RAM,
  SELF_JUMP,
  WFI,
} from "../../support/bare_hart.ts";

const BASE = 0x10;
const TIME = 0x54494d45;
const IPI = 0x735049;
const RFENCE = 0x52464e43;
const HSM = 0x48534d;
const SRST = 0x53525354;
const DBCN = 0x4442434e;
const PMU = 0x504d55;

const SUCCESS = 0;
const FAILED = -1;
const NOT_SUPPORTED = -2;
const INVALID_PARAM = -3;
const INVALID_ADDRESS = -5;
const ALREADY_AVAILABLE = -6;

const STARTED = 0n;
const STOPPED = 1n;
const START_PENDING = 2n;
const SUSPENDED = 4n;

const SSIP = 1 << 1;
const STIP = 1 << 5;
const A0 = 10;
const A1 = 11;
const CSRW_SIE_A0 = 0x10451073;

function createMachine(hartCount = 1): BareMachine {
  return new BareMachine({ hartCount, isSbiBuiltIn: true });
}

Deno.test("sbi: base tells version 2.0 and which extensions there are", () => {
  const hart = createMachine().hart();
  assertEquals(hart.call(BASE, 0), { error: SUCCESS, value: 0x0200_0000n });
  for (const fid of [1, 2, 4, 5, 6]) assertEquals(hart.call(BASE, fid).error, SUCCESS);
  assertEquals(hart.call(BASE, 7).error, NOT_SUPPORTED);
  for (const extension of [BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN, 1, 2, 8]) {
    assertEquals(hart.call(BASE, 3, extension), { error: SUCCESS, value: 1n });
  }
  for (const extension of [PMU, 0, 3, 0x53555350, 0xffff_ffff_ffff_ffffn]) {
    assertEquals(hart.call(BASE, 3, extension), { error: SUCCESS, value: 0n });
  }
});

Deno.test("sbi: what does not exist is answered, not trapped", () => {
  const hart = createMachine().hart();
  const unknown = [[PMU, 0], [0, 0], [4, 0], [TIME, 1], [IPI, 1], [RFENCE, 3], [HSM, 4], [SRST, 1]];
  for (const [extension, fid] of [...unknown, [DBCN, 3], [BASE, 99], [0x7fff_ffff, 5]]) {
    assertEquals(hart.call(extension ?? 0, fid ?? 0).error, NOT_SUPPORTED, `${extension} ${fid}`);
  }
});

Deno.test("sbi: the timer is pending from its time on, and a new time takes it back", () => {
  const machine = createMachine();
  const hart = machine.hart();
  assertEquals(hart.call(TIME, 0, 1000).error, SUCCESS);
  assertEquals(hart.pending() & STIP, 0);
  assertEquals(hart.instance.nextTimerTicks(), 1000n);
  machine.ticks = 1000;
  assertEquals(hart.pending() & STIP, STIP);
  hart.call(TIME, 0, 0xffff_ffff_ffff_ffffn);
  assertEquals(hart.pending() & STIP, 0);
});

Deno.test("sbi: hart masks select harts that run, and name none that does not exist", () => {
  const machine = createMachine(3);
  const [first, second, third] = [machine.hart(0), machine.hart(1), machine.hart(2)];
  first.call(HSM, 0, 1, RAM + 0x2000, 0);
  second.instance.run(1);
  const ipis = () =>
    [first, second, third].map((hart) => {
      const word = (hart.base + layout.HART_MIP_WORD) >>> 2;
      return (Atomics.and(machine.memory.words, word, ~SSIP) & SSIP) !== 0;
    });
  assertEquals(first.call(IPI, 0, 0b010, 0).error, SUCCESS);
  assertEquals(ipis(), [false, true, false]);
  assertEquals(first.call(IPI, 0, 0b11, 1).error, SUCCESS);
  assertEquals(ipis(), [false, true, false], "hart 2 is stopped");
  assertEquals(first.call(IPI, 0, 0, 0xffff_ffff_ffff_ffffn).error, SUCCESS);
  assertEquals(ipis(), [true, true, false]);
  const bad: [number | bigint, number | bigint][] = [
    [0b1000, 0],
    [1, 3],
    [0b100, 1],
    [0x8000_0000_0000_0000n, 0],
    [1, 0xffff_ffff_ffff_fffen],
    [0, 3],
  ];
  for (const [mask, base] of bad) {
    assertEquals(first.call(IPI, 0, mask, base).error, INVALID_PARAM, `${mask} ${base}`);
    assertEquals(first.call(RFENCE, 1, mask, base, 0, 0).error, INVALID_PARAM);
  }
  assertEquals(ipis(), [false, false, false]);
});

Deno.test("sbi: fences are left with a hart that does not run, and done before it does", () => {
  const machine = createMachine(2);
  const [first, second] = [machine.hart(0), machine.hart(1)];
  second.write(RAM + 0x2000, [FENCE_I, SELF_JUMP]);
  first.call(HSM, 0, 1, RAM + 0x2000, 0);
  second.instance.run(1);
  second.setX(A0, BigInt(SSIP));
  second.execute(CSRW_SIE_A0);
  assertEquals(second.execute(WFI), 1);
  assertEquals(second.state, layout.HART_WAITING);
  for (const fid of [0, 1, 2]) assertEquals(first.call(RFENCE, fid, 0b11, 0).error, SUCCESS);
  const remote = second.base + layout.HART_REMOTE_WORD;
  const asked = machine.memory.loadWord(remote);
  assertEquals(asked, layout.REMOTE_FENCE_I | layout.REMOTE_SFENCE);
  assertEquals(machine.memory.loadWord(first.base + layout.HART_REMOTE_WORD), 0);
  Atomics.or(machine.memory.words, (second.base + layout.HART_MIP_WORD) >>> 2, SSIP);
  second.instance.run(1);
  assertEquals(machine.memory.loadWord(remote), 0);
  assertEquals(machine.memory.loadWord(second.base + layout.HART_REMOTE_DONE_WORD), 2);
});

Deno.test("sbi: a hart is started once, with its arguments, and stops itself", () => {
  const machine = createMachine(2);
  const [first, second] = [machine.hart(0), machine.hart(1)];
  const entry = RAM + 0x2004;
  second.write(entry, [SELF_JUMP]);
  assertEquals(first.call(HSM, 2, 0), { error: SUCCESS, value: STARTED });
  assertEquals(first.call(HSM, 2, 1), { error: SUCCESS, value: STOPPED });
  assertEquals(second.instance.run(10), 3, "a stopped hart executes nothing");

  assertEquals(first.call(HSM, 0, 1, RAM - 4, 0).error, INVALID_ADDRESS);
  assertEquals(first.call(HSM, 0, 1, RAM + BARE_RAM_BYTES, 0).error, INVALID_ADDRESS);
  assertEquals(first.call(HSM, 0, 1, 0xffff_ffff_ffff_ffffn, 0).error, INVALID_ADDRESS);
  assertEquals(first.call(HSM, 0, 2, entry, 0).error, INVALID_PARAM);
  assertEquals(first.call(HSM, 0, 0x1_0000_0001n, entry, 0).error, INVALID_PARAM);
  assertEquals(first.call(HSM, 0, 0, entry, 0).error, ALREADY_AVAILABLE);

  assertEquals(first.call(HSM, 0, 1, entry, 0x1234_5678_9abcn).error, SUCCESS);
  assertEquals(first.call(HSM, 2, 1).value, START_PENDING);
  assertEquals(first.call(HSM, 0, 1, entry, 0).error, ALREADY_AVAILABLE);
  second.instance.run(10);
  assertEquals([second.pc, second.x(A0), second.x(A1)], [entry, 1n, 0x1234_5678_9abcn]);
  assertEquals(first.call(HSM, 2, 1).value, STARTED);

  second.call(HSM, 1);
  assertEquals(first.call(HSM, 2, 1).value, STOPPED);
  assertEquals(second.instance.run(10), 3);
  assertEquals(first.call(HSM, 2, 2).error, INVALID_PARAM);
});

Deno.test("sbi: a retentive suspension goes on behind the call when an interrupt is pending", () => {
  const machine = createMachine(2);
  const hart = machine.hart();
  hart.setX(A0, BigInt(STIP));
  hart.execute(CSRW_SIE_A0);
  hart.call(TIME, 0, 500);
  hart.call(HSM, 3, 0, 0, 0);
  assertEquals(hart.state, layout.HART_WAITING);
  assertEquals(hart.instance.run(10), 1);
  machine.ticks = 500;
  assertEquals(hart.instance.run(10), 0);
  assertEquals(hart.x(A0), BigInt(SUCCESS));
  assertEquals(hart.call(HSM, 2, 0).value, STARTED);
});

Deno.test("sbi: a non-retentive suspension resumes at its address, with its opaque value", () => {
  const machine = createMachine(2);
  const [hart, other] = [machine.hart(0), machine.hart(1)];
  other.write(RAM + 0x3000, [SELF_JUMP]);
  hart.call(HSM, 0, 1, RAM + 0x3000, 0);
  other.instance.run(2);
  hart.setX(A0, BigInt(STIP));
  hart.execute(CSRW_SIE_A0);
  hart.call(TIME, 0, 500);
  assertEquals(hart.call(HSM, 3, 0x8000_0000, RAM - 2, 7).error, INVALID_ADDRESS);
  assertEquals(hart.call(HSM, 3, 1, 0, 0).error, INVALID_PARAM);
  assertEquals(hart.call(HSM, 3, 0x1000_0000, 0, 0).error, NOT_SUPPORTED);
  assertEquals(hart.call(HSM, 3, 0x9000_0000, 0, 0).error, NOT_SUPPORTED);
  hart.call(HSM, 3, 0x8000_0000, RAM + 0x3000, 7);
  assertEquals(other.call(HSM, 2, 0).value, SUSPENDED);
  machine.ticks = 500;
  hart.instance.run(10);
  assertEquals([hart.pc, hart.x(A0), hart.x(A1)], [RAM + 0x3000, 0n, 7n]);
  assertEquals(other.call(HSM, 2, 0).value, STARTED);
});

Deno.test("sbi: the debug console writes and reads RAM, and nothing else", () => {
  const machine = createMachine();
  const hart = machine.hart();
  const { memory } = machine;
  const buffer = RAM + 0x10_0000;
  const offset = layout.RAM_BASE + buffer - RAM;
  memory.bytes.set(new TextEncoder().encode("Hello, SBI"), offset);
  assertEquals(hart.call(DBCN, 0, 10, buffer, 0), { error: SUCCESS, value: 10n });
  assertEquals(hart.call(DBCN, 2, 0x21).error, SUCCESS);
  assertEquals(machine.takeOutput(), "Hello, SBI!");

  machine.type("typed");
  assertEquals(hart.call(DBCN, 1, 3, buffer, 0), { error: SUCCESS, value: 3n });
  assertEquals(hart.call(DBCN, 1, 100, buffer + 3, 0), { error: SUCCESS, value: 2n });
  assertEquals(new TextDecoder().decode(memory.bytes.slice(offset, offset + 6)), "typed,");
  assertEquals(hart.call(DBCN, 1, 100, buffer, 0), { error: SUCCESS, value: 0n });

  const bad: [number | bigint, number | bigint, number | bigint][] = [
    [1, 0, 0],
    [1, RAM - 1, 0],
    [1, RAM + BARE_RAM_BYTES, 0],
    [2, RAM + BARE_RAM_BYTES - 1, 0],
    [0xffff_ffff_ffff_ffffn, buffer, 0],
    [1, buffer, 1],
    [16, 0xffff_ffff_ffff_fff8n, 0],
  ];
  for (const [count, low, high] of bad) {
    assertEquals(hart.call(DBCN, 0, count, low, high), { error: INVALID_PARAM, value: 0n });
    assertEquals(hart.call(DBCN, 1, count, low, high), { error: INVALID_PARAM, value: 0n });
  }
});

Deno.test("sbi: the console takes what fits; a byte that never fits fails", () => {
  const machine = createMachine();
  const hart = machine.hart();
  const written = hart.call(DBCN, 0, BARE_RAM_BYTES, RAM, 0);
  assertEquals(written, { error: SUCCESS, value: BigInt(layout.CONSOLE_RING_BYTES) });
  assertEquals(hart.call(DBCN, 0, 1, RAM, 0), { error: SUCCESS, value: 0n });
  assertEquals(hart.call(DBCN, 2, 0x21).error, FAILED);
});

Deno.test("sbi: legacy console calls answer in a0 alone", () => {
  const machine = createMachine();
  const hart = machine.hart();
  hart.setX(A1, 77n);
  assertEquals(hart.call(1, 0, 0x41), { error: SUCCESS, value: 77n });
  assertEquals(machine.takeOutput(), "A");
  assertEquals(hart.call(2, 0).error, -1);
  machine.type("k");
  assertEquals(hart.call(2, 0), { error: 0x6b, value: 77n });
});

Deno.test("sbi: a reset ends the machine with its kind, and does not return", () => {
  const cases: [type: number, reason: number, exit: number, code: number][] = [
    [0, 0, layout.EXIT_SHUTDOWN, 0],
    [0, 1, layout.EXIT_SHUTDOWN, 1],
    [1, 0, layout.EXIT_REBOOT, 0],
    [2, 0, layout.EXIT_REBOOT, 0],
  ];
  for (const [type, reason, exit, code] of cases) {
    const machine = createMachine();
    const hart = machine.hart();
    hart.call(SRST, 0, type, reason);
    assertEquals(machine.memory.loadWord(layout.EXIT_WORD), exit);
    assertEquals(machine.memory.loadWord(layout.EXIT_CODE), code);
    assertEquals(hart.state, layout.HART_STOPPED);
  }
  const hart = createMachine().hart();
  assertEquals(hart.call(SRST, 0, 3, 0).error, INVALID_PARAM);
  assertEquals(hart.call(SRST, 0, 0, 2).error, INVALID_PARAM);
  assertEquals(hart.call(SRST, 0, 0xf000_0000, 0).error, INVALID_PARAM);
});
