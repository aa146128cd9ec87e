/**
 * Samples for a profiler: where the hart is, and who called, whenever it has run for a period of
 * the host's time. They go into the ring HART_SAMPLES.
 *
 * While nobody looks (SAMPLE_PERIOD_WORD is 0) it costs a load a slice. Else slices are cut, and
 * the clock is read at each cut. Slices of translated code end where loops begin; so the hart takes
 * a few more steps before it is looked at, or nothing else would ever be seen. Time asleep does not
 * count.
 *
 * Nothing that the guest could notice is done to it: stacks are read through what is in the TLB,
 * without a walk, which would set A bits.
 */

import { hostTicks } from "./board/env";
import {
  HART_RUNNING,
  HART_SAMPLES,
  HART_STATE_WORD,
  SAMPLE_BYTES,
  SAMPLE_FRAME_COUNT,
  SAMPLE_FRAMES,
  SAMPLE_FRAMES_MAX,
  SAMPLE_PERIOD_WORD,
  SAMPLE_PRIV,
  SAMPLE_WEIGHT,
  SAMPLES_HEAD_WORD,
  SAMPLES_LOST_WORD,
  SAMPLES_RING,
  SAMPLES_SLOTS,
  SAMPLES_TAIL_WORD,
} from "./layout";
import { currentTlb } from "./mmu";
import { runTurn } from "./slow";
import { getInstret, getPc, getPriv, getX, hart, PRIV_S, TLB_MASK, TLB_SHIFT } from "./state";

/** Instructions between two looks at the clock: some ten microseconds. */
const LOOK_INSTRUCTIONS: i32 = 8192;
/** A sample is taken up to so many instructions after the look: a power of two - 1. */
const STEPS_MASK: u64 = 63;
/** No kernel's stack is larger. */
const STACK_BYTES: u64 = 0x10000;

/** Whether somebody looked when the last slice began. */
let isOn: bool = false;
/** Instructions until the next look. */
let left: i32 = 0;
/** Host time when the period began that is going on; while the hart sleeps, how much of it was. */
let since: f64 = 0;

/** To be called when the hart goes on after a sleep, and before it. */
export function wake(): void {
  if (isOn) since = hostTicks() - since;
}

export function sleep(): void {
  if (isOn) since = hostTicks() - since;
}

/** What of a slice's `budget` may be used before the next look. */
export function untilLook(budget: i32): i32 {
  if (atomic.load<u32>(SAMPLE_PERIOD_WORD) === 0) {
    isOn = false;
    return budget;
  }
  if (!isOn) {
    isOn = true;
    left = LOOK_INSTRUCTIONS;
    since = hostTicks();
  }
  return min(budget, left);
}

/** To be called after a slice that used so much. */
export function noteSlice(used: i32): void {
  if (!isOn) return;
  left -= used;
  if (left > 0) return;
  left = LOOK_INSTRUCTIONS;
  const period = atomic.load<u32>(SAMPLE_PERIOD_WORD);
  if (period === 0) return;
  const periods = Math.floor((hostTicks() - since) / period);
  if (periods < 1) return;
  since += periods * period;
  const steps = <i32> (((getInstret() * 0x9e3779b97f4a7c15) >> 32) & STEPS_MASK);
  if (steps > 0 && load<u32>(hart + HART_STATE_WORD) === HART_RUNNING) runTurn(steps, true);
  takeSample(<u32> min(periods, 0xffff));
}

function takeSample(weight: u32): void {
  const samples = hart + HART_SAMPLES;
  const head = load<u32>(samples, SAMPLES_HEAD_WORD);
  if (head - atomic.load<u32>(samples, SAMPLES_TAIL_WORD) >= SAMPLES_SLOTS) {
    atomic.add<u32>(samples, weight, SAMPLES_LOST_WORD);
    return;
  }
  const sample = samples + SAMPLES_RING + (head & (SAMPLES_SLOTS - 1)) * SAMPLE_BYTES;
  store<u32>(sample, weight, SAMPLE_WEIGHT);
  store<u32>(sample, getPriv(), SAMPLE_PRIV);
  store<u64>(sample, getPc(), SAMPLE_FRAMES);
  store<u32>(sample, getPriv() === PRIV_S ? walkStack(sample) : 1, SAMPLE_FRAME_COUNT);
  atomic.store<u32>(samples, head + 1, SAMPLES_HEAD_WORD);
}

/**
 * Stores the callers behind the first frame; the count of all frames. s0 points behind the return
 * address and the caller's s0, as the RISC-V ABI lays a frame out; a function that calls none may
 * have stored but the latter. Each frame must lie above the one before it, so this ends.
 */
function walkStack(sample: u32): u32 {
  const sp = getX(2);
  let below = sp;
  let frame = getX(8);
  let count: u32 = 1;
  while (count < SAMPLE_FRAMES_MAX && frame > below && frame - sp <= STACK_BYTES) {
    let returnAddress = peek(frame - 8);
    let next = peek(frame - 16);
    if (count === 1 && returnAddress > sp && returnAddress - sp <= STACK_BYTES) {
      next = returnAddress;
      returnAddress = getX(1);
    }
    if (returnAddress === 0) break;
    store<u64>(sample + (count << 3), returnAddress, SAMPLE_FRAMES);
    count++;
    below = frame;
    frame = next;
  }
  return count;
}

/** A doubleword that the hart could load without a walk; 0 where it could not. */
function peek(va: u64): u64 {
  const entry = currentTlb() + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
  if ((va & 7) !== 0 || load<u64>(entry) !== (va & ~0xfff)) return 0;
  return load<u64>(<u32> va + load<u32>(entry, 8));
}
