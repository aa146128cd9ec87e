import { assertEquals } from "@std/assert";
import { type BareHart, BareMachine, layout } from "../../support/bare_hart.ts";

const RBR_THR = 0;
const IER = 1;
const IIR_FCR = 2;
const LCR = 3;
const MCR = 4;
const LSR = 5;
const MSR = 6;
const SCR = 7;

const LSR_DR = 0x01;
const LSR_THRE = 0x20;
const LSR_TEMT = 0x40;
const SEIP = 1 << 9;

function get(hart: BareHart, register: number): number {
  return hart.read(layout.UART_GPA + register, 1);
}

function put(hart: BareHart, register: number, value: number): void {
  hart.put(layout.UART_GPA + register, value, 1);
}

Deno.test("uart: bytes go out through the ring, with a doorbell", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  for (const byte of new TextEncoder().encode("hello\n")) put(hart, RBR_THR, byte);
  assertEquals(machine.takeOutput(), "hello\n");
  assertEquals(machine.takeDoorbells(), layout.DOORBELL_CONSOLE);
});

Deno.test("uart: input is announced, read in order, and its end is told to the I/O worker", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  assertEquals(get(hart, LSR), LSR_THRE | LSR_TEMT);
  assertEquals(get(hart, RBR_THR), 0);
  machine.type("ab");
  assertEquals(get(hart, LSR), LSR_DR | LSR_THRE | LSR_TEMT);
  put(hart, IIR_FCR, 0x07); // clearing the FIFO loses nothing that was typed
  assertEquals(get(hart, RBR_THR), 0x61);
  assertEquals(machine.takeDoorbells(), 0);
  assertEquals(get(hart, RBR_THR), 0x62);
  assertEquals(machine.takeDoorbells(), layout.DOORBELL_CONSOLE);
  assertEquals(get(hart, LSR), LSR_THRE | LSR_TEMT);
});

Deno.test("uart: the transmitter is not empty while the ring has no room for a FIFO", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const { memory } = machine;
  memory.storeWord(layout.CONSOLE_OUT_TAIL_WORD, 0xffff_ff00); // free-running: about to wrap
  memory.storeWord(
    layout.CONSOLE_OUT_HEAD_WORD,
    (0xffff_ff00 + layout.CONSOLE_RING_BYTES - 17) >>> 0,
  );
  assertEquals(get(hart, LSR) & LSR_THRE, LSR_THRE);
  put(hart, RBR_THR, 1);
  assertEquals(get(hart, LSR) & LSR_THRE, LSR_THRE);
  put(hart, RBR_THR, 2);
  assertEquals(get(hart, LSR) & (LSR_THRE | LSR_TEMT), 0);
  for (let count = 0; count < 40; count++) put(hart, RBR_THR, 3); // the rest is lost
  const used = memory.loadWord(layout.CONSOLE_OUT_HEAD_WORD) -
    memory.loadWord(layout.CONSOLE_OUT_TAIL_WORD);
  assertEquals(used >>> 0, layout.CONSOLE_RING_BYTES);
});

Deno.test("uart: a hart that waits for a full ring looks again, and is interrupted when it drains", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  const { memory } = machine;
  enableUart(hart);
  memory.storeWord(layout.CONSOLE_OUT_HEAD_WORD, layout.CONSOLE_RING_BYTES);
  put(hart, IER, 0x02);
  assertEquals(hart.pending() & SEIP, 0);
  assertEquals(hart.instance.nextTimerTicks(), 100_000n);
  memory.storeWord(layout.CONSOLE_OUT_TAIL_WORD, layout.CONSOLE_RING_BYTES);
  assertEquals(hart.pending() & SEIP, SEIP);
  assertEquals(hart.instance.nextTimerTicks(), -1n);
});

Deno.test("uart: the transmit interrupt goes with IIR and comes back after the next byte", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  enableUart(hart);
  assertEquals(get(hart, IIR_FCR), 0x01);
  put(hart, IER, 0x02);
  assertEquals(hart.pending() & SEIP, SEIP);
  assertEquals(get(hart, IIR_FCR), 0x02);
  assertEquals(hart.pending() & SEIP, 0);
  assertEquals(get(hart, IIR_FCR), 0x01);
  put(hart, RBR_THR, 65);
  assertEquals(hart.pending() & SEIP, SEIP);
});

Deno.test("uart: receive interrupts stand before transmit ones and last until the data is read", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  enableUart(hart);
  put(hart, IER, 0x03);
  machine.type("xyz");
  assertEquals(get(hart, IIR_FCR), 0x04);
  put(hart, IIR_FCR, 0x41); // FIFO on, trigger at 4 bytes: 3 time out
  assertEquals(get(hart, IIR_FCR), 0xcc);
  machine.type("w");
  assertEquals(get(hart, IIR_FCR), 0xc4);
  for (let count = 0; count < 4; count++) get(hart, RBR_THR);
  assertEquals(get(hart, IIR_FCR), 0xc2);
  assertEquals(hart.pending() & SEIP, 0);
});

Deno.test("uart: divisor latch, scratch, modem lines and loop mode", () => {
  const machine = new BareMachine();
  const hart = machine.hart();
  put(hart, LCR, 0x83);
  put(hart, RBR_THR, 0x34);
  put(hart, IER, 0x12);
  assertEquals([get(hart, RBR_THR), get(hart, IER)], [0x34, 0x12]);
  put(hart, LCR, 0x03);
  assertEquals([get(hart, LCR), get(hart, IER)], [0x03, 0]);
  put(hart, SCR, 0xa5);
  assertEquals(get(hart, SCR), 0xa5);
  assertEquals(get(hart, MSR), 0xb0);
  put(hart, MCR, 0x1f);
  assertEquals(get(hart, MSR), 0xf0);
  put(hart, MCR, 0x1a); // what Linux's probe stores: it expects CTS and DCD
  assertEquals(get(hart, MSR), 0x90);
  put(hart, RBR_THR, 0x55);
  assertEquals(get(hart, LSR) & LSR_DR, LSR_DR);
  assertEquals(get(hart, RBR_THR), 0x55);
  assertEquals(get(hart, LSR) & LSR_DR, 0);
  assertEquals(machine.takeOutput(), "");
});

/** Source 10 to hart 0's S context. */
function enableUart(hart: BareHart): void {
  hart.put(layout.PLIC_GPA + 4 * layout.UART_IRQ, 1);
  hart.put(layout.PLIC_GPA + 0x2080, 1 << layout.UART_IRQ);
}
