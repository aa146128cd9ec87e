/**
 * Traps and returns from them (Priv 3.1.6.1, 3.3.2, 10.1.1): which mode takes a trap, what it
 * finds.
 *
 * All of these work on the state in memory: whoever calls has stored pc and instret.
 */

import { cause, clearEvent, tval } from "./event";
import { HART_MIP_WORD, HART_PRIV } from "./layout";
import {
  getCsr,
  getPc,
  getPriv,
  hart,
  MCAUSE,
  MEDELEG,
  MEPC,
  MIDELEG,
  MIE,
  MIP_MEIP,
  MIP_MSIP,
  MIP_MTIP,
  MIP_SEIP,
  MIP_SOFT,
  MIP_SSIP,
  MIP_STIP,
  MSTATUS,
  MSTATUS_MIE,
  MSTATUS_MPIE,
  MSTATUS_MPP,
  MSTATUS_MPP_SHIFT,
  MSTATUS_MPRV,
  MSTATUS_SIE,
  MSTATUS_SPIE,
  MSTATUS_SPP,
  MTVAL,
  MTVEC,
  PRIV_M,
  PRIV_S,
  PRIV_U,
  SCAUSE,
  SEPC,
  setCsr,
  setPc,
  STVAL,
  STVEC,
} from "./state";

const INTERRUPT: u64 = 1 << 63;

/** Changes the privilege mode. */
export function setPriv(priv: u32): void {
  store<u32>(hart, priv, HART_PRIV);
}

/** Takes the exception that was raised (event.ts). pc is the instruction's that raised it. */
export function takeException(): void {
  clearEvent();
  const isDelegated = getPriv() !== PRIV_M && ((getCsr(MEDELEG) >> cause) & 1) !== 0;
  if (isDelegated) enterSupervisor(cause, tval);
  else enterMachine(cause, tval);
}

function enterSupervisor(trapCause: u64, trapTval: u64): void {
  let mstatus = getCsr(MSTATUS);
  setCsr(SCAUSE, trapCause);
  setCsr(SEPC, getPc());
  setCsr(STVAL, trapTval);
  mstatus &= ~(MSTATUS_SPIE | MSTATUS_SPP);
  if ((mstatus & MSTATUS_SIE) !== 0) mstatus |= MSTATUS_SPIE;
  if (getPriv() !== PRIV_U) mstatus |= MSTATUS_SPP;
  setCsr(MSTATUS, mstatus & ~MSTATUS_SIE);
  setPriv(PRIV_S);
  setPc(trapVector(getCsr(STVEC), trapCause));
}

function enterMachine(trapCause: u64, trapTval: u64): void {
  let mstatus = getCsr(MSTATUS);
  setCsr(MCAUSE, trapCause);
  setCsr(MEPC, getPc());
  setCsr(MTVAL, trapTval);
  mstatus &= ~(MSTATUS_MPIE | MSTATUS_MPP);
  if ((mstatus & MSTATUS_MIE) !== 0) mstatus |= MSTATUS_MPIE;
  mstatus |= <u64> getPriv() << MSTATUS_MPP_SHIFT;
  setCsr(MSTATUS, mstatus & ~MSTATUS_MIE);
  setPriv(PRIV_M);
  setPc(trapVector(getCsr(MTVEC), trapCause));
}

/** Vectored mode: interrupts go to base + 4 * cause, exceptions to base (Priv 3.1.7). */
function trapVector(tvec: u64, trapCause: u64): u64 {
  const base: u64 = tvec & ~3;
  if ((tvec & 1) !== 0 && (trapCause & INTERRUPT) !== 0) return base + ((trapCause & 63) << 2);
  return base;
}

/** mip: what is driven from outside, and what software owns. */
export function readMip(): u64 {
  return <u64> atomic.load<u32>(hart + HART_MIP_WORD) | getCsr(MIP_SOFT);
}

/** Whether WFI goes on at once: anything enabled is pending, wherever it would go (Priv 3.3.3). */
export function isInterruptPending(): bool {
  return (readMip() & getCsr(MIE)) !== 0;
}

/**
 * Takes the interrupt of the highest priority that may be taken now; returns whether there was one.
 */
export function takeInterrupt(): bool {
  const pending = readMip() & getCsr(MIE);
  if (pending === 0) return false;
  const priv = getPriv();
  const mstatus = getCsr(MSTATUS);
  const mideleg = getCsr(MIDELEG);
  if (priv !== PRIV_M || (mstatus & MSTATUS_MIE) !== 0) {
    const forMachine = pending & ~mideleg;
    if (forMachine !== 0) {
      enterMachine(INTERRUPT | highestInterrupt(forMachine), 0);
      return true;
    }
  }
  if (priv === PRIV_U || (priv === PRIV_S && (mstatus & MSTATUS_SIE) !== 0)) {
    const forSupervisor = pending & mideleg;
    if (forSupervisor !== 0) {
      enterSupervisor(INTERRUPT | highestInterrupt(forSupervisor), 0);
      return true;
    }
  }
  return false;
}

/** Whether takeInterrupt would take one. */
export function canTakeInterrupt(): bool {
  const pending = readMip() & getCsr(MIE);
  if (pending === 0) return false;
  const priv = getPriv();
  const mstatus = getCsr(MSTATUS);
  const mideleg = getCsr(MIDELEG);
  if ((pending & ~mideleg) !== 0 && (priv !== PRIV_M || (mstatus & MSTATUS_MIE) !== 0)) return true;
  return (pending & mideleg) !== 0 &&
    (priv === PRIV_U || (priv === PRIV_S && (mstatus & MSTATUS_SIE) !== 0));
}

/** MEI, MSI, MTI, SEI, SSI, STI (Priv 3.1.9). */
function highestInterrupt(pending: u64): u64 {
  if ((pending & MIP_MEIP) !== 0) return 11;
  if ((pending & MIP_MSIP) !== 0) return 3;
  if ((pending & MIP_MTIP) !== 0) return 7;
  if ((pending & MIP_SEIP) !== 0) return 9;
  if ((pending & MIP_SSIP) !== 0) return 1;
  return 5;
}

/** MRET, in M mode. */
export function returnFromMachine(): void {
  let mstatus = getCsr(MSTATUS);
  const priv = <u32> (mstatus >> MSTATUS_MPP_SHIFT) & 3;
  mstatus &= ~(MSTATUS_MIE | MSTATUS_MPP);
  if ((mstatus & MSTATUS_MPIE) !== 0) mstatus |= MSTATUS_MIE;
  if (priv !== PRIV_M) mstatus &= ~MSTATUS_MPRV;
  setCsr(MSTATUS, mstatus | MSTATUS_MPIE);
  setPriv(priv);
  setPc(getCsr(MEPC));
}

/** SRET, where it is allowed. */
export function returnFromSupervisor(): void {
  let mstatus = getCsr(MSTATUS);
  const priv = (mstatus & MSTATUS_SPP) !== 0 ? PRIV_S : PRIV_U;
  mstatus &= ~(MSTATUS_SIE | MSTATUS_SPP | MSTATUS_MPRV);
  if ((mstatus & MSTATUS_SPIE) !== 0) mstatus |= MSTATUS_SIE;
  setCsr(MSTATUS, mstatus | MSTATUS_SPIE);
  setPriv(priv);
  setPc(getCsr(SEPC));
}
