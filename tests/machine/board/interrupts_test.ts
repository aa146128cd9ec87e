import { assertEquals } from "@std/assert";
import { type BareHart, BareMachine, layout } from "../../support/bare_hart.ts";

const MSIP = 1 << 3;
const MTIP = 1 << 7;
const SEIP = 1 << 9;
const MEIP = 1 << 11;
/** A source that no device of ours derives: driven through IRQ_LEVEL_WORD. */
const SOURCE = 20;

const PRIORITY = layout.PLIC_GPA;
const PENDING = layout.PLIC_GPA + 0x1000;

function enableOf(context: number): number {
  return layout.PLIC_GPA + 0x2000 + 0x80 * context;
}

function thresholdOf(context: number): number {
  return layout.PLIC_GPA + 0x20_0000 + 0x1000 * context;
}

function claimOf(context: number): number {
  return thresholdOf(context) + 4;
}

function drive(machine: BareMachine, source: number, level: boolean): void {
  const { words } = machine.memory;
  const index = layout.IRQ_LEVEL_WORD >>> 2;
  if (level) Atomics.or(words, index, 1 << source);
  else Atomics.and(words, index, ~(1 << source));
}

function enable(hart: BareHart, context: number, sources: number[]): void {
  for (const source of sources) hart.put(PRIORITY + 4 * source, 1);
  hart.put(enableOf(context), sources.reduce((bits, source) => bits | (1 << source), 0));
}

Deno.test("plic: a source interrupts the contexts that enable it, by their mode", () => {
  const machine = new BareMachine({ hartCount: 2 });
  const [first, second] = [machine.hart(0), machine.hart(1)];
  enable(first, 0, [SOURCE]); // hart 0, M
  enable(first, 3, [SOURCE]); // hart 1, S
  drive(machine, SOURCE, true);
  assertEquals(first.pending() & (MEIP | SEIP), MEIP);
  assertEquals(second.pending() & (MEIP | SEIP), SEIP);
  drive(machine, SOURCE, false);
  assertEquals(first.pending() & MEIP, 0);
  assertEquals(second.pending() & SEIP, 0);
});

Deno.test("plic: a claimed source is pending for nobody until it is completed", () => {
  const machine = new BareMachine({ hartCount: 2 });
  const [first, second] = [machine.hart(0), machine.hart(1)];
  enable(first, 1, [SOURCE]);
  enable(first, 3, [SOURCE]);
  drive(machine, SOURCE, true);
  assertEquals(first.read(PENDING), 1 << SOURCE);
  assertEquals(first.read(claimOf(1)), SOURCE);
  assertEquals(first.read(PENDING), 0);
  assertEquals(second.read(claimOf(3)), 0);
  assertEquals(first.pending() & SEIP, 0);
  assertEquals(second.pending() & SEIP, 0);

  // Completed while the line is still high: it interrupts again, and the other hart is woken.
  const wake = (second.base + layout.HART_WAKE_WORD) >>> 2;
  const before = Atomics.load(machine.memory.words, wake);
  first.put(claimOf(1), SOURCE);
  assertEquals(Atomics.load(machine.memory.words, wake) > before, true);
  assertEquals(first.pending() & SEIP, SEIP);
  assertEquals(second.pending() & SEIP, SEIP);
});

Deno.test("plic: completion counts only from a context that enables the source", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  enable(hart, 1, [SOURCE]);
  drive(machine, SOURCE, true);
  assertEquals(hart.read(claimOf(1)), SOURCE);
  hart.put(claimOf(0), SOURCE);
  for (const nonsense of [0, 31, 32, 0xffff_ffff]) hart.put(claimOf(1), nonsense);
  assertEquals(hart.read(PENDING), 0);
  hart.put(claimOf(1), SOURCE);
  assertEquals(hart.read(PENDING), 1 << SOURCE);
});

Deno.test("plic: the highest priority is claimed first, the lowest number among equals", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const sources = [17, 18, 19, 20, 31];
  enable(hart, 1, sources);
  hart.put(PRIORITY + 4 * 19, 7);
  hart.put(PRIORITY + 4 * 31, 7);
  hart.put(PRIORITY + 4 * 18, 0); // never interrupts
  for (const source of sources) drive(machine, source, true);
  const claimed = [];
  for (let source = hart.read(claimOf(1)); source !== 0; source = hart.read(claimOf(1))) {
    claimed.push(source);
  }
  assertEquals(claimed, [19, 31, 17, 20]);
});

Deno.test("plic: the threshold masks interrupts but not claims", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  enable(hart, 1, [SOURCE]);
  hart.put(PRIORITY + 4 * SOURCE, 3);
  hart.put(thresholdOf(1), 3);
  drive(machine, SOURCE, true);
  assertEquals(hart.pending() & SEIP, 0);
  hart.put(thresholdOf(1), 2);
  assertEquals(hart.pending() & SEIP, SEIP);
  hart.put(thresholdOf(1), 0xffff_ffff);
  assertEquals(hart.read(thresholdOf(1)), 7);
  assertEquals(hart.read(claimOf(1)), SOURCE);
});

Deno.test("plic: source 0 and contexts of harts that do not exist stay zero", () => {
  const hart = new BareMachine().hart();
  hart.put(PRIORITY, 7);
  hart.put(enableOf(1), 0xffff_ffff);
  hart.put(enableOf(2), 0xffff_ffff);
  hart.put(thresholdOf(2), 7);
  assertEquals(hart.read(PRIORITY), 0);
  assertEquals(hart.read(enableOf(1)), 0xffff_fffe);
  assertEquals(hart.read(enableOf(2)), 0);
  assertEquals(hart.read(thresholdOf(2)), 0);
});

Deno.test("clint: msip reaches its hart and wakes it", () => {
  const machine = new BareMachine({ hartCount: 2 });
  const [first, second] = [machine.hart(0), machine.hart(1)];
  const wake = (second.base + layout.HART_WAKE_WORD) >>> 2;
  const before = Atomics.load(machine.memory.words, wake);
  first.put(layout.CLINT_GPA + 4, 0xffff_ffff);
  assertEquals(first.read(layout.CLINT_GPA + 4), 1);
  assertEquals(Atomics.load(machine.memory.words, wake) > before, true);
  assertEquals(second.pending() & MSIP, MSIP);
  assertEquals(first.pending() & MSIP, 0);
  first.put(layout.CLINT_GPA + 4, 0);
  assertEquals(second.pending() & MSIP, 0);
  first.put(layout.CLINT_GPA + 8, 1); // no such hart
  assertEquals(first.read(layout.CLINT_GPA + 8), 0);
});

Deno.test("clint: mtime runs with the clock and mtimecmp interrupts when it is reached", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const compare = layout.CLINT_GPA + 0x4000;
  const time = layout.CLINT_GPA + 0xbff8;
  assertEquals(hart.load(compare, 8), 0xffff_ffff_ffff_ffffn);
  assertEquals(hart.instance.nextTimerTicks(), -1n);
  machine.ticks = 0x1_2345_6789;
  assertEquals(hart.load(time, 8), 0x1_2345_6789n);
  assertEquals(hart.read(time), 0x2345_6789);
  assertEquals(hart.read(time + 4), 1);

  hart.store(compare, 0x1_2345_6789n + 100n, 8);
  assertEquals(hart.pending() & MTIP, 0);
  assertEquals(hart.instance.nextTimerTicks(), 100n);
  machine.ticks += 99;
  assertEquals(hart.pending() & MTIP, 0);
  machine.ticks += 1;
  assertEquals(hart.pending() & MTIP, MTIP);
  // What has expired must not make a sleeping hart spin.
  assertEquals(hart.instance.nextTimerTicks(), -1n);

  hart.put(compare + 4, 2); // halves, as 32-bit code does it
  assertEquals(hart.load(compare, 8), 0x2_2345_67edn);
  assertEquals(hart.pending() & MTIP, 0);
});

Deno.test("clint: a store to mtime moves the clock", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const time = layout.CLINT_GPA + 0xbff8;
  machine.ticks = 5000;
  hart.store(time, 100n, 8);
  machine.ticks += 7;
  assertEquals(hart.load(time, 8), 107n);
});

Deno.test("rtc: the time is the host's, may be set, and the alarm interrupts once", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const epochNs = 1_700_000_000_123_456_789n;
  machine.memory.view.setBigUint64(layout.RTC_EPOCH_NS, epochNs, true);
  machine.ticks = 3;
  const readTime = () => {
    const low = BigInt(hart.read(layout.RTC_GPA));
    return (BigInt(hart.read(layout.RTC_GPA + 4)) << 32n) | low;
  };
  assertEquals(readTime(), epochNs + 300n);
  hart.put(layout.RTC_GPA + 4, 1);
  hart.put(layout.RTC_GPA, 1000);
  assertEquals(readTime(), (1n << 32n) + 1000n);

  enable(hart, 1, [layout.RTC_IRQ]);
  hart.put(layout.RTC_GPA + 0x10, 1); // interrupt on
  hart.put(layout.RTC_GPA + 0x0c, 1);
  hart.put(layout.RTC_GPA + 0x08, 2000); // in 1000 ns, 10 ticks
  assertEquals(hart.read(layout.RTC_GPA + 0x18), 1);
  assertEquals(hart.instance.nextTimerTicks(), 11n);
  assertEquals(hart.pending() & SEIP, 0);
  machine.ticks += 10;
  assertEquals(hart.pending() & SEIP, SEIP);
  assertEquals(hart.read(layout.RTC_GPA + 0x18), 0);
  hart.put(layout.RTC_GPA + 0x1c, 1);
  assertEquals(hart.pending() & SEIP, 0);
});
