/**
 * The CLINT (sifive,clint0): machine software interrupts and machine timers of every hart.
 *
 *   0x0000 + 4 * hart  msip
 *   0x4000 + 8 * hart  mtimecmp
 *   0xbff8             mtime
 *
 * Its words in the device block: msip and mtimecmp a hart. mtimecmp is kept complemented, so that a
 * cleared block is the state after reset: no timer.
 */

import { CLINT_BASE, MAX_HARTS } from "../layout";
import { hartId } from "../state";
import { refuseAccess } from "./fault";
import { updateExternalInterrupts } from "./interrupts";
import { countHarts, wakeHart } from "./signal";
import { readTime, writeTime } from "./time";

const CLINT_MTIMECMP: u32 = 0x4000;
const CLINT_MTIME: u32 = 0xbff8;

const MSIP_WORDS: u32 = CLINT_BASE;
const MTIMECMP_WORDS: u32 = CLINT_BASE + 4 * MAX_HARTS;

export function isSoftwareInterruptSet(hart: u32): bool {
  return atomic.load<u32>(MSIP_WORDS + 4 * hart) !== 0;
}

export function readTimeCompare(hart: u32): u64 {
  return ~atomic.load<u64>(MTIMECMP_WORDS + 8 * hart);
}

export function clintLoad(offset: u32, size: u32): u64 {
  if (size !== 4 && size !== 8) return refuseAccess();
  const lowWord: u64 = readRegister(offset & ~7);
  // msip registers are 32 bits apart: a doubleword holds two of them.
  return size === 8 ? lowWord : <u64> (<u32> (lowWord >> ((offset & 4) * 8)));
}

export function clintStore(offset: u32, value: u64, size: u32): void {
  if (size !== 4 && size !== 8) {
    refuseAccess();
    return;
  }
  if (offset < CLINT_MTIMECMP) {
    storeSoftwareInterrupt(offset / 4, <u32> value);
    if (size === 8) storeSoftwareInterrupt(offset / 4 + 1, <u32> (value >> 32));
    return;
  }
  const register: u32 = offset & ~7;
  if (size === 4) {
    const shift: u64 = (offset & 4) * 8;
    const kept: u64 = readRegister(register) & ~(<u64> 0xffffffff << shift);
    value = kept | (<u64> (<u32> value) << shift);
  }
  if (register === CLINT_MTIME) {
    writeTime(value);
    updateExternalInterrupts();
    for (let hart: u32 = 0; hart < countHarts(); hart++) wakeHart(hart);
    return;
  }
  const hart: u32 = (register - CLINT_MTIMECMP) / 8;
  if (hart >= countHarts()) return;
  atomic.store<u64>(MTIMECMP_WORDS + 8 * hart, ~value);
  if (hart === hartId) updateExternalInterrupts();
  else wakeHart(hart);
}

/** The doubleword at `offset`, a multiple of 8. What does not exist reads as zero. */
function readRegister(offset: u32): u64 {
  if (offset === CLINT_MTIME) return readTime();
  if (offset < CLINT_MTIMECMP) {
    const hart: u32 = offset / 4;
    return readSoftwareInterrupt(hart) | (readSoftwareInterrupt(hart + 1) << 32);
  }
  const hart: u32 = (offset - CLINT_MTIMECMP) / 8;
  return hart < countHarts() ? readTimeCompare(hart) : 0;
}

function readSoftwareInterrupt(hart: u32): u64 {
  return hart < countHarts() && isSoftwareInterruptSet(hart) ? 1 : 0;
}

function storeSoftwareInterrupt(hart: u32, value: u32): void {
  if (hart >= countHarts()) return;
  atomic.store<u32>(MSIP_WORDS + 4 * hart, value & 1);
  if (hart === hartId) updateExternalInterrupts();
  else wakeHart(hart);
}
