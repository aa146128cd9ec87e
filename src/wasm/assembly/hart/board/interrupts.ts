/**
 * The interrupt lines into a hart, as bits of HART_MIP_WORD. Each hart derives its own, from the
 * state of the devices and the clock, and nobody else writes these bits; others only wake it. SSIP
 * is not here: it is set by IPIs and cleared by the hart.
 *
 * To be called whenever HART_WAKE_WORD has changed, at the end of a slice, and before and after
 * WFI.
 */

import {
  getCsr,
  hartId,
  MENVCFG,
  MENVCFG_STCE,
  MIP_MEIP,
  MIP_MSIP,
  MIP_MTIP,
  MIP_SEIP,
  MIP_STIP,
  STIMECMP,
} from "../state";
import { HART_MIP_WORD } from "../layout";
import { isSoftwareInterruptSet, readTimeCompare } from "./clint";
import { isInterrupting, readLevels } from "./plic";
import { rtcTicksToAlarm } from "./rtc";
import { addressOfHartWord } from "./signal";
import { readTime } from "./time";
import { uartRetryTicks } from "./uart";

const LINE_BITS: u32 = MIP_MSIP | MIP_MEIP | MIP_SEIP;
const TIMER_BITS: u32 = MIP_MTIP | MIP_STIP;

/** Brings all of this hart's bits up to date. */
export function updateExternalInterrupts(): void {
  updateLines();
  const now: u64 = readTime();
  let bits: u32 = 0;
  if (now >= readTimeCompare(hartId)) bits |= MIP_MTIP;
  if (isStimecmpInUse() && now >= getCsr(STIMECMP)) bits |= MIP_STIP;
  publishBits(TIMER_BITS, bits);
}

/** The same for the lines alone, without a look at the clock: after an access to a device. */
export function updateLines(): void {
  const levels: u32 = readLevels();
  let bits: u32 = 0;
  if (levels !== 0) {
    if (isInterrupting(2 * hartId, levels)) bits |= MIP_MEIP;
    if (isInterrupting(2 * hartId + 1, levels)) bits |= MIP_SEIP;
  }
  if (isSoftwareInterruptSet(hartId)) bits |= MIP_MSIP;
  publishBits(LINE_BITS, bits);
}

function publishBits(mask: u32, bits: u32): void {
  const word: usize = addressOfHartWord(hartId, HART_MIP_WORD);
  const changed: u32 = (atomic.load<u32>(word) ^ bits) & mask;
  if ((changed & bits) !== 0) atomic.or<u32>(word, changed & bits);
  if ((changed & ~bits) !== 0) atomic.and<u32>(word, ~(changed & ~bits));
}

/**
 * Ticks until time alone may raise another interrupt of this hart, u64.MAX_VALUE if it never will.
 * What has expired already does not count: it is pending.
 */
export function nextTimerTicks(): u64 {
  const now: u64 = readTime();
  let ticks: u64 = min(rtcTicksToAlarm(), uartRetryTicks());
  const mtimecmp: u64 = readTimeCompare(hartId);
  if (mtimecmp > now) ticks = min(ticks, mtimecmp - now);
  const stimecmp: u64 = getCsr(STIMECMP);
  if (isStimecmpInUse() && stimecmp > now) ticks = min(ticks, stimecmp - now);
  return ticks;
}

/** STIP follows stimecmp only under menvcfg.STCE (Sstc 2.2); otherwise software sets it. */
function isStimecmpInUse(): bool {
  return (getCsr(MENVCFG) & MENVCFG_STCE) !== 0;
}
