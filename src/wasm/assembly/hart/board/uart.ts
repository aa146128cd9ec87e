/**
 * A 16550A UART over the two console rings of the shared memory (layout.ts).
 *
 *   THR store -> output ring -> DOORBELL_CONSOLE -> I/O worker
 *   I/O worker -> input ring, harts woken -> RBR load
 *
 * Its receive FIFO is a view on the input ring: bytes that no load has fetched are still "on the
 * wire", so that clearing the FIFO loses nothing that somebody typed. The transmitter is empty
 * (LSR.THRE) while the output ring has room for a whole FIFO: that is the back-pressure. What is
 * stored in spite of a full ring is lost, as on the real part.
 *
 * The interrupt line is derived from registers and rings whenever somebody asks (uartLevel); only
 * "transmitter empty, not yet seen" needs a word of its own. Accesses are made one at a time, under
 * LOCK.
 */

import {
  CONSOLE_IN_HEAD_WORD,
  CONSOLE_IN_RING,
  CONSOLE_IN_TAIL_WORD,
  CONSOLE_OUT_HEAD_WORD,
  CONSOLE_OUT_RING,
  CONSOLE_OUT_TAIL_WORD,
  CONSOLE_RING_BYTES,
  DOORBELL_CONSOLE,
  UART_BASE,
} from "../layout";
import { updateLines } from "./interrupts";
import { acquireLock, releaseLock } from "./lock";
import { ringDoorbell } from "./signal";
import { TICKS_PER_MS } from "./time";

// Registers by offset; DLAB exchanges the first two for the divisor.
const UART_RBR_THR: u32 = 0;
const UART_IER: u32 = 1;
const UART_IIR_FCR: u32 = 2;
const UART_LCR: u32 = 3;
const UART_MCR: u32 = 4;
const UART_LSR: u32 = 5;
const UART_MSR: u32 = 6;
const UART_SCR: u32 = 7;

const IER_RDI: u32 = 0x01;
const IER_THRI: u32 = 0x02;
const IER_MASK: u32 = 0x0f;
const IIR_NONE: u32 = 0x01;
const IIR_THRI: u32 = 0x02;
const IIR_RDI: u32 = 0x04;
const IIR_TIMEOUT: u32 = 0x0c;
const IIR_FIFO: u32 = 0xc0;
const FCR_ENABLE: u32 = 0x01;
const LCR_DLAB: u32 = 0x80;
const MCR_MASK: u32 = 0x1f;
const MCR_LOOP: u32 = 0x10;
const LSR_DR: u32 = 0x01;
const LSR_THRE: u32 = 0x20;
const LSR_TEMT: u32 = 0x40;
/** Carrier, data set ready, clear to send: somebody is always connected. */
const MSR_CONNECTED: u32 = 0xb0;
const FIFO_BYTES: u32 = 16;

// Words in the device block; zero is the state after reset.
const LOCK: u32 = UART_BASE + 0x00;
const IER: u32 = UART_BASE + 0x04;
const FCR: u32 = UART_BASE + 0x08;
const LCR: u32 = UART_BASE + 0x0c;
const MCR: u32 = UART_BASE + 0x10;
const SCR: u32 = UART_BASE + 0x14;
const DIVISOR: u32 = UART_BASE + 0x18;
/** The transmitter became empty, or its interrupt was enabled, and IIR has not told so yet. */
const THRE_UNSEEN: u32 = UART_BASE + 0x1c;
/** In loop mode: 0x100 + the byte that was sent last and not fetched. */
const LOOP_BYTE: u32 = UART_BASE + 0x20;

/** How long a hart may sleep on a full output ring without looking again. */
const RETRY_TICKS: u64 = 10 * TICKS_PER_MS;

export function uartLoad(offset: u32): u64 {
  acquireLock(LOCK);
  const value: u32 = readRegister(offset);
  releaseLock(LOCK);
  updateLines();
  return <u64> value;
}

export function uartStore(offset: u32, value: u32): void {
  acquireLock(LOCK);
  writeRegister(offset, value & 0xff);
  releaseLock(LOCK);
  updateLines();
}

/** Level of the interrupt line. */
export function uartLevel(): bool {
  return load<u32>(IER) !== 0 && identifyInterrupt() !== IIR_NONE;
}

/** Ticks until a hart that waits for the transmitter looks again, u64.MAX_VALUE if none waits. */
export function uartRetryTicks(): u64 {
  const isWaiting: bool = (load<u32>(IER) & IER_THRI) !== 0 && load<u32>(THRE_UNSEEN) !== 0;
  return isWaiting && !isTransmitterEmpty() ? RETRY_TICKS : u64.MAX_VALUE;
}

/**
 * Puts `count` bytes at `source`, an address of this memory, on the console; returns how many
 * fitted.
 */
export function writeConsole(source: usize, count: u32): u32 {
  acquireLock(LOCK);
  const written: u32 = min(count, outputRoom());
  for (let index: u32 = 0; index < written; index++) pushOutput(load<u8>(source + index));
  releaseLock(LOCK);
  if (written !== 0) ringDoorbell(DOORBELL_CONSOLE);
  return written;
}

/** Puts one byte on the console; false when there is no room. */
export function writeConsoleByte(byte: u32): bool {
  acquireLock(LOCK);
  const hasRoom: bool = outputRoom() !== 0;
  if (hasRoom) pushOutput(byte);
  releaseLock(LOCK);
  if (hasRoom) ringDoorbell(DOORBELL_CONSOLE);
  return hasRoom;
}

/** Takes up to `count` bytes of input to `target`, an address of this memory; returns how many. */
export function readConsole(target: usize, count: u32): u32 {
  acquireLock(LOCK);
  const taken: u32 = min(count, inputCount());
  for (let index: u32 = 0; index < taken; index++) store<u8>(target + index, popInput());
  releaseLock(LOCK);
  return taken;
}

/** Takes one byte of input, -1 when there is none. */
export function readConsoleByte(): i32 {
  acquireLock(LOCK);
  const byte: i32 = inputCount() !== 0 ? <i32> popInput() : -1;
  releaseLock(LOCK);
  return byte;
}

function readRegister(offset: u32): u32 {
  switch (offset & 7) {
    case UART_RBR_THR:
      return isDivisorVisible() ? load<u32>(DIVISOR) & 0xff : receiveByte();
    case UART_IER:
      return isDivisorVisible() ? load<u32>(DIVISOR) >> 8 : load<u32>(IER);
    case UART_IIR_FCR: {
      const identity: u32 = identifyInterrupt();
      if (identity === IIR_THRI) store<u32>(THRE_UNSEEN, 0);
      return identity | (isFifoEnabled() ? IIR_FIFO : 0);
    }
    case UART_LCR:
      return load<u32>(LCR);
    case UART_MCR:
      return load<u32>(MCR);
    case UART_LSR:
      return (hasInput() ? LSR_DR : 0) | (isTransmitterEmpty() ? LSR_THRE | LSR_TEMT : 0);
    case UART_MSR:
      return isLooping() ? readLoopedModem() : MSR_CONNECTED;
    default:
      return load<u32>(SCR);
  }
}

function writeRegister(offset: u32, value: u32): void {
  switch (offset & 7) {
    case UART_RBR_THR:
      if (isDivisorVisible()) store<u32>(DIVISOR, (load<u32>(DIVISOR) & 0xff00) | value);
      else transmitByte(value);
      break;
    case UART_IER:
      if (isDivisorVisible()) {
        store<u32>(DIVISOR, (load<u32>(DIVISOR) & 0xff) | (value << 8));
      } else {
        // Enabling it while the transmitter is empty interrupts at once.
        if ((value & ~load<u32>(IER) & IER_THRI) !== 0) store<u32>(THRE_UNSEEN, 1);
        store<u32>(IER, value & IER_MASK);
      }
      break;
    case UART_IIR_FCR:
      store<u32>(FCR, value & 0xff);
      break;
    case UART_LCR:
      store<u32>(LCR, value);
      break;
    case UART_MCR:
      store<u32>(MCR, value & MCR_MASK);
      break;
    case UART_SCR:
      store<u32>(SCR, value);
      break;
    default: // LSR and MSR are read-only
      break;
  }
}

/** The cause of highest priority that is enabled; IIR_NONE without one. */
function identifyInterrupt(): u32 {
  const enabled: u32 = load<u32>(IER);
  if ((enabled & IER_RDI) !== 0 && hasInput()) {
    return isFifoEnabled() && inputCount() < readTriggerLevel() ? IIR_TIMEOUT : IIR_RDI;
  }
  if ((enabled & IER_THRI) !== 0 && load<u32>(THRE_UNSEEN) !== 0 && isTransmitterEmpty()) {
    return IIR_THRI;
  }
  return IIR_NONE;
}

function transmitByte(byte: u32): void {
  store<u32>(THRE_UNSEEN, 1);
  if (isLooping()) {
    store<u32>(LOOP_BYTE, 0x100 | byte);
  } else if (outputRoom() !== 0) {
    pushOutput(byte);
    ringDoorbell(DOORBELL_CONSOLE);
  }
}

function receiveByte(): u32 {
  if (isLooping()) {
    const byte: u32 = load<u32>(LOOP_BYTE) & 0xff;
    store<u32>(LOOP_BYTE, 0);
    return byte;
  }
  return inputCount() !== 0 ? popInput() : 0;
}

function hasInput(): bool {
  return isLooping() ? load<u32>(LOOP_BYTE) !== 0 : inputCount() !== 0;
}

/** In loop mode RTS, DTR, OUT1 and OUT2 are seen as CTS, DSR, RI and DCD. */
function readLoopedModem(): u32 {
  const control: u32 = load<u32>(MCR);
  return ((control & 2) << 3) | ((control & 1) << 5) | ((control & 0x0c) << 4);
}

function isDivisorVisible(): bool {
  return (load<u32>(LCR) & LCR_DLAB) !== 0;
}

function isFifoEnabled(): bool {
  return (load<u32>(FCR) & FCR_ENABLE) !== 0;
}

function isLooping(): bool {
  return (load<u32>(MCR) & MCR_LOOP) !== 0;
}

/** 1, 4, 8 or 14 bytes. */
function readTriggerLevel(): u32 {
  return (0x0e080401 >> ((load<u32>(FCR) >> 6) * 8)) & 0xff;
}

function isTransmitterEmpty(): bool {
  return outputRoom() >= FIFO_BYTES;
}

function outputRoom(): u32 {
  const used: u32 = atomic.load<u32>(CONSOLE_OUT_HEAD_WORD) -
    atomic.load<u32>(CONSOLE_OUT_TAIL_WORD);
  return CONSOLE_RING_BYTES - min(used, CONSOLE_RING_BYTES);
}

function pushOutput(byte: u32): void {
  const head: u32 = atomic.load<u32>(CONSOLE_OUT_HEAD_WORD);
  store<u8>(CONSOLE_OUT_RING + (head & (CONSOLE_RING_BYTES - 1)), <u8> byte);
  atomic.store<u32>(CONSOLE_OUT_HEAD_WORD, head + 1);
}

function inputCount(): u32 {
  const count: u32 = atomic.load<u32>(CONSOLE_IN_HEAD_WORD) -
    atomic.load<u32>(CONSOLE_IN_TAIL_WORD);
  return min(count, CONSOLE_RING_BYTES);
}

/** Takes a byte; the I/O worker hears when it may have waited for room, and when all is read. */
function popInput(): u8 {
  const count: u32 = inputCount();
  const tail: u32 = atomic.load<u32>(CONSOLE_IN_TAIL_WORD);
  const byte: u8 = load<u8>(CONSOLE_IN_RING + (tail & (CONSOLE_RING_BYTES - 1)));
  atomic.store<u32>(CONSOLE_IN_TAIL_WORD, tail + 1);
  if (count === CONSOLE_RING_BYTES || count === 1) ringDoorbell(DOORBELL_CONSOLE);
  return byte;
}
