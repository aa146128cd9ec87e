/**
 * The PLIC (sifive,plic-1.0.0): sources 1 to 31, context 2 * hart for M and 2 * hart + 1 for S.
 *
 *   0x000000 + 4 * source         priority, 0 (never interrupts) to 7
 *   0x001000                      pending bits
 *   0x002000 + 0x80 * context     enable bits
 *   0x200000 + 0x1000 * context   threshold; + 4: claim (load), complete (store)
 *
 * Every source is level-triggered. A source is pending while its line is high and no context has
 * claimed it: pending is never stored, only the set of claimed sources is, so that nobody who
 * raises or lowers a line has to tell the PLIC, and no edge can be lost. A claim takes a source by
 * one atomic or; the hart that set the bit has it. There is no lock.
 *
 * A hart derives its own MEIP and SEIP (interrupts.ts). Whoever makes a source pending for another
 * hart wakes it *after* the change, and that hart then looks at what is true by then.
 */

import {
  IRQ_LEVEL_WORD,
  MAX_HARTS,
  PLIC_BASE,
  PLIC_SOURCE_COUNT,
  RTC_IRQ,
  UART_IRQ,
} from "../layout";
import { hartId } from "../state";
import { refuseAccess } from "./fault";
import { updateLines } from "./interrupts";
import { rtcLevel } from "./rtc";
import { countHarts, wakeHart } from "./signal";
import { uartLevel } from "./uart";
import { VIRTIO_IRQ_MASK, virtioLevels } from "./virtio_mmio";

const PLIC_PENDING: u32 = 0x1000;
const PLIC_ENABLE: u32 = 0x2000;
const PLIC_ENABLE_STRIDE: u32 = 0x80;
const PLIC_CONTEXT: u32 = 0x200000;
const PLIC_CONTEXT_STRIDE: u32 = 0x1000;
const PLIC_CLAIM: u32 = 4;

const PRIORITY_MASK: u32 = 7;

// Words in the device block.
const PRIORITIES: u32 = PLIC_BASE;
const CLAIMED: u32 = PLIC_BASE + 0x80;
const ENABLES: u32 = PLIC_BASE + 0x100;
const THRESHOLDS: u32 = ENABLES + 4 * 2 * MAX_HARTS;

/** Lines whose level is read from their device's registers, not from IRQ_LEVEL_WORD. */
const DERIVED_LINES: u32 = VIRTIO_IRQ_MASK | (1 << UART_IRQ) | (1 << RTC_IRQ);

/** Whether something interrupts `context`, given the lines' `levels`. */
export function isInterrupting(context: u32, levels: u32): bool {
  return bestSource(context, levels, atomic.load<u32>(THRESHOLDS + 4 * context)) !== 0;
}

/** The level of every line, one bit a source. */
export function readLevels(): u32 {
  let levels: u32 = atomic.load<u32>(IRQ_LEVEL_WORD) & ~DERIVED_LINES & ~1;
  levels |= virtioLevels();
  if (uartLevel()) levels |= 1 << UART_IRQ;
  if (rtcLevel()) levels |= 1 << RTC_IRQ;
  return levels;
}

export function plicLoad(offset: u32, size: u32): u64 {
  if (size !== 4) return refuseAccess();
  if (offset < 4 * PLIC_SOURCE_COUNT) return <u64> atomic.load<u32>(PRIORITIES + offset);
  if (offset === PLIC_PENDING) return <u64> (readLevels() & ~atomic.load<u32>(CLAIMED));
  if (offset >= PLIC_CONTEXT) {
    const context: u32 = (offset - PLIC_CONTEXT) / PLIC_CONTEXT_STRIDE;
    if (context >= 2 * countHarts()) return 0;
    const register: u32 = offset & (PLIC_CONTEXT_STRIDE - 1);
    if (register === 0) return <u64> atomic.load<u32>(THRESHOLDS + 4 * context);
    return register === PLIC_CLAIM ? <u64> claim(context) : 0;
  }
  if (offset < PLIC_ENABLE) return 0;
  const context: u32 = (offset - PLIC_ENABLE) / PLIC_ENABLE_STRIDE;
  if (context >= 2 * countHarts() || offset % PLIC_ENABLE_STRIDE !== 0) return 0;
  return <u64> atomic.load<u32>(ENABLES + 4 * context);
}

export function plicStore(offset: u32, value: u32, size: u32): void {
  if (size !== 4) {
    refuseAccess();
    return;
  }
  if (offset < 4 * PLIC_SOURCE_COUNT) {
    if (offset !== 0) atomic.store<u32>(PRIORITIES + offset, value & PRIORITY_MASK);
  } else if (offset >= PLIC_CONTEXT) {
    const context: u32 = (offset - PLIC_CONTEXT) / PLIC_CONTEXT_STRIDE;
    if (context >= 2 * countHarts()) return;
    const register: u32 = offset & (PLIC_CONTEXT_STRIDE - 1);
    if (register === 0) atomic.store<u32>(THRESHOLDS + 4 * context, value & PRIORITY_MASK);
    else if (register === PLIC_CLAIM) complete(context, value);
  } else if (offset >= PLIC_ENABLE) {
    const context: u32 = (offset - PLIC_ENABLE) / PLIC_ENABLE_STRIDE;
    if (context >= 2 * countHarts() || offset % PLIC_ENABLE_STRIDE !== 0) return;
    atomic.store<u32>(ENABLES + 4 * context, value & ~1);
  }
  publishChange();
}

function claim(context: u32): u32 {
  // A lost race means that another hart has got a source: no more of them than there are.
  for (let attempt: u32 = 0; attempt < PLIC_SOURCE_COUNT; attempt++) {
    // A claim ignores the threshold (PLIC 1.0.0, 7).
    const source: u32 = bestSource(context, readLevels(), 0);
    if (source === 0) break;
    if ((atomic.or<u32>(CLAIMED, 1 << source) & (1 << source)) === 0) {
      updateLines();
      return source;
    }
  }
  updateLines();
  return 0;
}

/** The pending and enabled source of the highest priority above `floor`; 0: none. */
function bestSource(context: u32, levels: u32, floor: u32): u32 {
  let candidates: u32 = levels & ~atomic.load<u32>(CLAIMED) &
    atomic.load<u32>(ENABLES + 4 * context);
  let best: u32 = 0;
  while (candidates !== 0) {
    const source: u32 = ctz(candidates);
    candidates &= candidates - 1;
    // Sources come in rising order: the lowest of equal priority wins (PLIC 1.0.0, 4).
    const priority: u32 = atomic.load<u32>(PRIORITIES + 4 * source);
    if (priority > floor) {
      best = source;
      floor = priority;
    }
  }
  return best;
}

/** Completing what the context has not enabled is ignored (PLIC 1.0.0, 9). */
function complete(context: u32, source: u32): void {
  if (source === 0 || source >= PLIC_SOURCE_COUNT) return;
  const bit: u32 = 1 << source;
  if ((atomic.load<u32>(ENABLES + 4 * context) & bit) !== 0) atomic.and<u32>(CLAIMED, ~bit);
}

/** After a change: this hart looks at once, others for which something is pending are woken. */
function publishChange(): void {
  updateLines();
  const levels: u32 = readLevels();
  if (levels === 0) return;
  for (let id: u32 = 0; id < countHarts(); id++) {
    if (id === hartId) continue;
    if (isInterrupting(2 * id, levels) || isInterrupting(2 * id + 1, levels)) wakeHart(id);
  }
}
