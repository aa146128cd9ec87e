/**
 * The built-in SBI 2.0, for machines that start without a firmware: base, TIME, IPI, RFENCE, HSM,
 * SRST, DBCN and three legacy calls. The calling hart is in S mode: a7 names the extension, a6 the
 * function, a0.. are the arguments; a0 becomes the error and a1 the value (legacy calls: a0 alone).
 *
 * A call may stop or suspend its hart: then HART_STATE_WORD is no longer HART_RUNNING afterwards.
 */

import {
  EXIT_REBOOT,
  EXIT_SHUTDOWN,
  HART_MIP_WORD,
  REMOTE_FENCE_I,
  REMOTE_SFENCE,
} from "../layout";
import { getX, hartId, MIP_SSIP, setCsr, setX, STIMECMP } from "../state";
import { updateExternalInterrupts } from "./interrupts";
import { fenceRemotely } from "./remote";
import {
  readByteFromConsole,
  readDebugConsole,
  writeByteToConsole,
  writeDebugConsole,
} from "./sbi_console";
import { SBI_ERR_INVALID_PARAM, SBI_ERR_NOT_SUPPORTED, SBI_SUCCESS } from "./sbi_errors";
import {
  HSM_STARTED,
  HSM_SUSPENDED,
  readHartState,
  startHart,
  stopHart,
  suspendHart,
} from "./sbi_hsm";
import { addressOfHartWord, countHarts, requestExit, wakeHart } from "./signal";

const A0: u32 = 10;
const A1: u32 = 11;
const A2: u32 = 12;
const A6: u32 = 16;
const A7: u32 = 17;

// Extension numbers.
const SBI_LEGACY_PUTCHAR: u64 = 0x01;
const SBI_LEGACY_GETCHAR: u64 = 0x02;
const SBI_LEGACY_SHUTDOWN: u64 = 0x08;
const SBI_BASE_EXTENSION: u64 = 0x10;
const SBI_TIME: u64 = 0x54494d45;
const SBI_IPI: u64 = 0x735049;
const SBI_RFENCE: u64 = 0x52464e43;
const SBI_HSM: u64 = 0x48534d;
const SBI_SRST: u64 = 0x53525354;
const SBI_DBCN: u64 = 0x4442434e;

const SPEC_VERSION: u64 = 0x0200_0000; // 2.0
const IMPLEMENTATION_ID: u64 = 0x5349564f; // not a registered one: "OVIS"
const IMPLEMENTATION_VERSION: u64 = 1;

/** Answers the call that stands in the registers. */
export function sbiCall(): void {
  const extension: u64 = getX(A7);
  if (isLegacy(extension)) {
    setX(A0, <u64> callLegacy(extension));
    return;
  }
  // A call sets a1 where it has a value; errors have none.
  const first: u64 = getX(A0);
  const second: u64 = getX(A1);
  setX(A1, 0);
  setX(A0, <u64> callExtension(extension, getX(A6), first, second));
}

function callExtension(extension: u64, fid: u64, first: u64, second: u64): i64 {
  if (extension === SBI_BASE_EXTENSION) return callBase(fid, first);
  if (extension === SBI_TIME && fid === 0) return setTimer(first);
  if (extension === SBI_IPI && fid === 0) return sendIpis(first, second);
  if (extension === SBI_RFENCE) return callFence(fid, first, second);
  if (extension === SBI_HSM) return callHartState(fid, first, second, getX(A2));
  if (extension === SBI_SRST && fid === 0) return resetSystem(first, second);
  if (extension === SBI_DBCN) {
    if (fid === 0) return writeDebugConsole(first, second, getX(A2));
    if (fid === 1) return readDebugConsole(first, second, getX(A2));
    if (fid === 2) return writeByteToConsole(first);
  }
  return SBI_ERR_NOT_SUPPORTED;
}

function callBase(fid: u64, extension: u64): i64 {
  let value: u64 = 0; // also mvendorid, marchid and mimpid: the CSRs read 0
  if (fid === 0) value = SPEC_VERSION;
  else if (fid === 1) value = IMPLEMENTATION_ID;
  else if (fid === 2) value = IMPLEMENTATION_VERSION;
  else if (fid === 3) value = isExtension(extension) ? 1 : 0;
  else if (fid > 6) return SBI_ERR_NOT_SUPPORTED;
  setX(A1, value);
  return SBI_SUCCESS;
}

function isExtension(id: u64): bool {
  return id === SBI_BASE_EXTENSION || id === SBI_TIME || id === SBI_IPI || id === SBI_RFENCE ||
    id === SBI_HSM || id === SBI_SRST || id === SBI_DBCN || isLegacy(id);
}

function isLegacy(id: u64): bool {
  return id === SBI_LEGACY_PUTCHAR || id === SBI_LEGACY_GETCHAR || id === SBI_LEGACY_SHUTDOWN;
}

function callLegacy(id: u64): i64 {
  if (id === SBI_LEGACY_PUTCHAR) return writeByteToConsole(getX(A0));
  if (id === SBI_LEGACY_GETCHAR) return readByteFromConsole();
  endMachine(EXIT_SHUTDOWN, 0);
  return SBI_SUCCESS;
}

/** The timer of S mode is stimecmp: with the built-in SBI menvcfg.STCE is always set. */
function setTimer(time: u64): i64 {
  setCsr(STIMECMP, time);
  updateExternalInterrupts();
  return SBI_SUCCESS;
}

function sendIpis(mask: u64, base: u64): i64 {
  const targets: i32 = selectHarts(mask, base);
  if (targets < 0) return SBI_ERR_INVALID_PARAM;
  for (let rest: u32 = targets; rest !== 0; rest &= rest - 1) {
    const id: u32 = ctz(rest);
    atomic.or<u32>(addressOfHartWord(id, HART_MIP_WORD), MIP_SSIP);
    if (id !== hartId) wakeHart(id);
  }
  return SBI_SUCCESS;
}

/** Fences are not narrowed by address or ASID: the whole TLB is cheap to refill. */
function callFence(fid: u64, mask: u64, base: u64): i64 {
  if (fid > 2) return SBI_ERR_NOT_SUPPORTED; // 3 to 6 are for the hypervisor extension
  const targets: i32 = selectHarts(mask, base);
  if (targets < 0) return SBI_ERR_INVALID_PARAM;
  fenceRemotely(targets, fid === 0 ? REMOTE_FENCE_I : REMOTE_SFENCE);
  return SBI_SUCCESS;
}

/**
 * The harts that a mask names and that execute S mode, one bit each; -1 if it names one that does
 * not exist. A base of -1 means all (SBI 2.0, 3.1).
 */
function selectHarts(mask: u64, base: u64): i32 {
  const count: u32 = countHarts();
  let named: u64 = (1 << count) - 1;
  if (base !== u64.MAX_VALUE) {
    if (base >= count || (mask & ~(named >> base)) !== 0) return -1;
    named = mask << base;
  }
  let targets: i32 = 0;
  for (let id: u32 = 0; id < count; id++) {
    const state: u32 = readHartState(id);
    const isStarted: bool = state === HSM_STARTED || state === HSM_SUSPENDED;
    if (isStarted && (named & (1 << id)) !== 0) targets |= 1 << id;
  }
  return targets;
}

function callHartState(fid: u64, first: u64, second: u64, third: u64): i64 {
  if (fid === 0) return startHart(first, second, third);
  if (fid === 1) {
    stopHart();
    return SBI_SUCCESS;
  }
  if (fid === 2) {
    if (first >= <u64> countHarts()) return SBI_ERR_INVALID_PARAM;
    setX(A1, readHartState(<u32> first));
    return SBI_SUCCESS;
  }
  return fid === 3 ? suspendHart(first, second, third) : SBI_ERR_NOT_SUPPORTED;
}

/** Type and reason are uint32 (SBI 2.0, 10.1). */
function resetSystem(type: u64, reason: u64): i64 {
  if (<u32> reason > 1) return SBI_ERR_INVALID_PARAM;
  if (<u32> type > 2) return SBI_ERR_INVALID_PARAM;
  // A guest that gives "system failure" as its reason is told apart by the exit code.
  endMachine(<u32> type === 0 ? EXIT_SHUTDOWN : EXIT_REBOOT, <u32> reason);
  return SBI_SUCCESS;
}

/** The call does not return to the guest: its hart stops as well. */
function endMachine(reason: u32, code: u32): void {
  requestExit(reason, code);
  stopHart();
}
