/**
 * SBI hart state management (SBI 2.0, 9), and what it means for the run loop.
 *
 *   STOPPED --start--> START_PENDING --target's resumeHart--> STARTED --stop--> STOPPED
 *   STARTED --suspend--> SUSPENDED --interrupt, resumeHart--> STARTED
 *
 * A hart's state is changed by itself alone, but for the step out of STOPPED, which the starter
 * takes with one compare-and-exchange and which goes through CLAIMED while the arguments are
 * written.
 */

import {
  HART_MIP_WORD,
  HART_REMOTE_WORD,
  HART_RUNNING,
  HART_STATE_WORD,
  HART_STOPPED,
  HART_WAITING,
  MAX_HARTS,
  RAM_BYTES,
  RAM_GPA,
  SBI_BASE,
  SBI_BUILT_IN,
} from "../layout";
import {
  flushTlb,
  getCsr,
  hart,
  hartId,
  MSTATUS,
  MSTATUS_SIE,
  PRIV_S,
  SATP,
  setCsr,
  setPc,
  setX,
} from "../state";
import { setPriv } from "../trap";
import {
  SBI_ERR_ALREADY_AVAILABLE,
  SBI_ERR_INVALID_ADDRESS,
  SBI_ERR_INVALID_PARAM,
  SBI_ERR_NOT_SUPPORTED,
  SBI_SUCCESS,
} from "./sbi_errors";
import { countHarts, wakeHart } from "./signal";

export const HSM_STARTED: u32 = 0;
export const HSM_STOPPED: u32 = 1;
export const HSM_START_PENDING: u32 = 2;
export const HSM_SUSPENDED: u32 = 4;
/** Ours: somebody is writing the arguments of a start. Others see START_PENDING. */
const HSM_CLAIMED: u32 = 0x100;

const SUSPEND_RETENTIVE: u32 = 0;
const SUSPEND_NON_RETENTIVE: u32 = 0x8000_0000;
const SUSPEND_PLATFORM: u32 = 0x1000_0000;

// Words of each hart in the device block.
const HSM_STRIDE: u32 = 0x20;
const HSM_STATE: u32 = 0x00;
/** The suspended hart goes on at HSM_ADDRESS, not behind its call. */
const HSM_IS_NON_RETENTIVE: u32 = 0x04;
const HSM_ADDRESS: u32 = 0x08; // u64
const HSM_OPAQUE: u32 = 0x10; // u64

/** The state that the SBI reports of hart `id`, which must exist. */
export function readHartState(id: u32): u32 {
  const state: u32 = atomic.load<u32>(addressOfState(id));
  return state === HSM_CLAIMED ? HSM_START_PENDING : state;
}

export function startHart(id: u64, address: u64, opaque: u64): i64 {
  if (id >= <u64> countHarts()) return SBI_ERR_INVALID_PARAM;
  if (!isInRam(address, 2)) return SBI_ERR_INVALID_ADDRESS;
  const block: u32 = addressOfState(<u32> id);
  if (atomic.cmpxchg<u32>(block, HSM_STOPPED, HSM_CLAIMED) !== HSM_STOPPED) {
    return SBI_ERR_ALREADY_AVAILABLE;
  }
  store<u64>(block, address, HSM_ADDRESS);
  store<u64>(block, opaque, HSM_OPAQUE);
  atomic.store<u32>(block, HSM_START_PENDING);
  wakeHart(<u32> id);
  return SBI_SUCCESS;
}

/** Stops this hart: it leaves its run loop and waits for a start. */
export function stopHart(): void {
  atomic.store<u32>(hart, HART_STOPPED, HART_STATE_WORD);
  atomic.store<u32>(addressOfState(hartId), HSM_STOPPED);
}

/** Suspends this hart until an interrupt is pending. */
export function suspendHart(type: u64, address: u64, opaque: u64): i64 {
  // The type is a uint32 (SBI 2.0, 9.4): the rest of the register does not count.
  const kind: u32 = <u32> type;
  const isNonRetentive: bool = (kind & SUSPEND_NON_RETENTIVE) !== 0;
  const rest: u32 = kind & ~SUSPEND_NON_RETENTIVE;
  if (rest >= SUSPEND_PLATFORM) return SBI_ERR_NOT_SUPPORTED;
  if (rest !== SUSPEND_RETENTIVE) return SBI_ERR_INVALID_PARAM;
  if (isNonRetentive && !isInRam(address, 2)) return SBI_ERR_INVALID_ADDRESS;
  const block: u32 = addressOfState(hartId);
  store<u32>(block, isNonRetentive ? 1 : 0, HSM_IS_NON_RETENTIVE);
  store<u64>(block, address, HSM_ADDRESS);
  store<u64>(block, opaque, HSM_OPAQUE);
  atomic.store<u32>(block, HSM_SUSPENDED);
  atomic.store<u32>(hart, HART_WAITING, HART_STATE_WORD);
  return SBI_SUCCESS;
}

/**
 * What a reset makes of this hart: with the built-in SBI only hart 0 runs until others are started.
 */
export function resetHartState(): void {
  const isStarted: bool = hartId === 0 || load<u32>(SBI_BUILT_IN) === 0;
  atomic.store<u32>(addressOfState(hartId), isStarted ? HSM_STARTED : HSM_STOPPED);
  atomic.store<u32>(hart, isStarted ? HART_RUNNING : HART_STOPPED, HART_STATE_WORD);
  atomic.store<u32>(hart, 0, HART_MIP_WORD);
  atomic.store<u32>(hart, 0, HART_REMOTE_WORD);
}

/** If somebody asked this hart to start: makes its state that of SBI 2.0, table 16. */
export function acceptStart(): void {
  const block: u32 = addressOfState(hartId);
  if (atomic.load<u32>(block) === HSM_START_PENDING) enter(block);
}

/** The wait of this hart is over: a suspended one goes on. */
export function endSuspension(): void {
  const block: u32 = addressOfState(hartId);
  if (atomic.load<u32>(block) !== HSM_SUSPENDED) return;
  if (load<u32>(block, HSM_IS_NON_RETENTIVE) !== 0) enter(block);
  else atomic.store<u32>(block, HSM_STARTED);
}

/** Whether `length` bytes at `gpa` are RAM. */
export function isInRam(gpa: u64, length: u64): bool {
  const ramBytes: u64 = load<u64>(RAM_BYTES);
  return gpa >= RAM_GPA && gpa - RAM_GPA <= ramBytes && length <= ramBytes - (gpa - RAM_GPA);
}

function enter(block: u32): void {
  setPc(load<u64>(block, HSM_ADDRESS) & ~1);
  setPriv(PRIV_S);
  setX(10, <u64> hartId);
  setX(11, load<u64>(block, HSM_OPAQUE));
  setCsr(SATP, 0);
  setCsr(MSTATUS, getCsr(MSTATUS) & ~MSTATUS_SIE);
  flushTlb();
  atomic.store<u32>(block, HSM_STARTED);
}

function addressOfState(id: u32): u32 {
  return SBI_BASE + min(id, MAX_HARTS - 1) * HSM_STRIDE + HSM_STATE;
}
