/**
 * The run loop of a hart: slices of the interpreter's loop, and between them whatever others want
 * of the hart.
 *
 *   run(budget)
 *     slice: stop word, machine's end, starts, other harts' requests, interrupt lines
 *       turn: take an interrupt if one may be taken; execute until the slice is used up or
 *             something happened that can change which interrupts may be taken
 *
 * A turn counts as one instruction beside those it retired, so that a guest that does nothing but
 * trap comes to the end of its slice too.
 */

import { hostTicks } from "./board/env";
import { resumeHart } from "./board/run_state";
import { resetHartState } from "./board/sbi_hsm";
import { dropAllCode } from "./code";
import { fflags, setFflags } from "./float/flags";
import {
  EXIT_NONE,
  EXIT_WORD,
  HART_CSR,
  HART_F,
  HART_PRIV,
  HART_STATE_WORD,
  HART_STOPPED,
  HART_WAKE_WORD,
  HART_X,
  SBI_BUILT_IN,
  STOP_WORD,
} from "./layout";
import { refreshPmp } from "./pmp";
import * as sampler from "./sampler";
import { runTurn, SLICE_OVER } from "./slow";
import * as s from "./state";
import { dropAllRegions } from "./translator/regions";
import { HOT_SAMPLES, SAMPLE_PERIOD, setCacheLimits, setPolicy } from "./translator/policy";
import { addStatistic, STAT_INSTRUCTIONS, STAT_RUN_TICKS } from "./translator/statistics";
import { setPriv, takeInterrupt } from "./trap";

/** Why `run` returned: hart.ts names them for the host. */
const RUN_SLICE_OVER: i32 = 0;
const RUN_WFI: i32 = 1;
const RUN_STOP: i32 = 2;
const RUN_STOPPED: i32 = 3;

/** Instructions between two looks at the outside: some 0.2 ms. */
const SLICE_INSTRUCTIONS: i32 = 32768;

/** HART_WAKE_WORD as it was before the hart last looked at what others want. */
export let wakeSeen: i32 = 0;

/** Ties the instance to a hart, whose state is in memory already or will be `reset`. */
export function bindHart(id: u32): void {
  s.bind(id);
  refreshPmp();
  s.flushTlb();
  // The functions of regions that another instance made are not in this one's table.
  dropAllRegions();
}

/**
 * The state after a reset (Priv 3.4): M mode, or what the built-in SBI hands to a kernel in S mode.
 * RAM was loaded anew, so nothing decoded is kept.
 */
export function reset(pc: u64): void {
  const hart = s.hart;
  memory.fill(hart + HART_X, 0, 256);
  memory.fill(hart + HART_F, 0, 256);
  memory.fill(hart + HART_CSR, 0, 0x400);
  s.setInstret(0);
  store<u64>(hart, s.NO_RESERVATION, s.HART_RESERVATION_ADDRESS);
  store<u32>(hart, s.codeWrites(), s.HART_CODE_WRITES_SEEN);
  s.setPc(pc);
  s.setCsr(s.STIMECMP, ~0);
  s.setCsr(s.MENVCFG, s.MENVCFG_ADUE);
  setPriv(s.PRIV_M);
  if (load<u32>(SBI_BUILT_IN) !== 0) {
    setPriv(s.PRIV_S);
    // Everything is the kernel's; there is no M mode to take anything.
    s.setCsr(s.MEDELEG, 0xb1ff);
    s.setCsr(s.MIDELEG, s.MIP_SSIP | s.MIP_STIP | s.MIP_SEIP);
    // A firmware opens the counters to every mode; Linux's vDSO relies on it.
    s.setCsr(s.MCOUNTEREN, 7);
    s.setCsr(s.SCOUNTEREN, 7);
    s.setCsr(s.MENVCFG, s.MENVCFG_ADUE | s.MENVCFG_STCE);
  }
  resetHartState();
  setFflags(0);
  refreshPmp();
  dropAllCode();
  s.resetEpoch();
  s.flushTlb();
}

/** Executes about `budget` instructions; returns why it stopped. */
export function run(budget: i32): i32 {
  setFflags(<u32> s.getCsr(s.FFLAGS));
  sampler.wake();
  const begin = hostTicks();
  const reason = runSlices(budget);
  addStatistic(STAT_RUN_TICKS, <u64> (hostTicks() - begin));
  sampler.sleep();
  s.setCsr(s.FFLAGS, fflags);
  return reason;
}

/**
 * Executes exactly `count` instructions in one slice, or fewer if that ends before; returns why it
 * stopped. An instruction that traps is none.
 */
export function runExactly(count: i32): i32 {
  setFflags(<u32> s.getCsr(s.FFLAGS));
  wakeSeen = atomic.load<i32>(s.hart + HART_WAKE_WORD);
  let reason = RUN_SLICE_OVER;
  if (atomic.load<i32>(STOP_WORD) !== 0 || atomic.load<u32>(EXIT_WORD) !== EXIT_NONE) {
    reason = RUN_STOP;
  } else if (!resumeHart()) {
    reason = atomic.load<u32>(s.hart + HART_STATE_WORD) === HART_STOPPED ? RUN_STOPPED : RUN_WFI;
  } else {
    const end = s.getInstret() + <u64> count;
    // A guest that does nothing but trap must come to an end too.
    for (let turns = count; turns > 0 && s.getInstret() < end; turns--) {
      takeInterrupt();
      if (runTurn(<i32> (end - s.getInstret()), true) === SLICE_OVER) break;
    }
  }
  s.setCsr(s.FFLAGS, fflags);
  return reason;
}

/**
 * Turns the translator on as a machine uses it, with so many regions and bytes of their modules at
 * most.
 */
export function startTranslator(regions: u32, bytes: u32): void {
  setCacheLimits(regions, bytes);
  setPolicy(SAMPLE_PERIOD, HOT_SAMPLES);
}

/**
 * Turns the translator on for tests: a place is translated when the interpreter was seen there
 * `samples` times, looking every `period` instructions; `period` 0 turns it off. 1 and 1 translate
 * all.
 */
export function setTranslator(period: i32, samples: u32): void {
  setPolicy(period, samples);
}

function runSlices(budget: i32): i32 {
  let rest = budget;
  while (true) {
    wakeSeen = atomic.load<i32>(s.hart + HART_WAKE_WORD);
    if (atomic.load<i32>(STOP_WORD) !== 0 || atomic.load<u32>(EXIT_WORD) !== EXIT_NONE) {
      return RUN_STOP;
    }
    if (!resumeHart()) {
      return atomic.load<u32>(s.hart + HART_STATE_WORD) === HART_STOPPED ? RUN_STOPPED : RUN_WFI;
    }
    if (rest <= 0) return RUN_SLICE_OVER;
    const used = runSlice(sampler.untilLook(min(rest, SLICE_INSTRUCTIONS)));
    sampler.noteSlice(used);
    rest -= used;
  }
}

/** Returns how much of the budget was used: a little more than `budget` at most. */
function runSlice(budget: i32): i32 {
  let rest = budget;
  while (rest > 0) {
    takeInterrupt();
    const before = s.getInstret();
    const ending = runTurn(rest, false);
    const retired = s.getInstret() - before;
    addStatistic(STAT_INSTRUCTIONS, retired);
    rest -= <i32> retired + 1;
    if (ending === SLICE_OVER) break;
  }
  return budget - rest;
}
