/**
 * Control and status registers: access rules and legal values (WARL), one function to read, one to
 * write, one for the six instructions.
 *
 * A CSR that is not here, or not for this mode, raises an illegal instruction exception. After a
 * write that can change interrupts, privilege or translation, the loop is left (EVENT_LEAVE).
 */

import { readTime } from "./board/time";
import { updateExternalInterrupts } from "./board/interrupts";
import {
  CAUSE_ILLEGAL_INSTRUCTION,
  event,
  EVENT_NONE,
  raiseException,
  requestLeave,
} from "./event";
import { fflags, setFflags } from "./float/flags";
import { HART_MIP_WORD } from "./layout";
import { readPmpAddress, readPmpConfig, writePmpAddress, writePmpConfig } from "./pmp";
import * as s from "./state";
import { readMip } from "./trap";

/** RV64, I M A F D C S U, and B for Zba, Zbb, Zbs: fixed (WARL with one legal value). */
const MISA: u64 = (<u64> 2 << 62) | (1 << 0) | (1 << 1) | (1 << 2) | (1 << 3) | (1 << 5) |
  (1 << 8) |
  (1 << 12) | (1 << 18) | (1 << 20);

const MSTATUS_WRITABLE: u64 = s.MSTATUS_SIE | s.MSTATUS_MIE | s.MSTATUS_SPIE | s.MSTATUS_MPIE |
  s.MSTATUS_SPP | s.MSTATUS_MPP | s.MSTATUS_FS | s.MSTATUS_MPRV | s.MSTATUS_SUM | s.MSTATUS_MXR |
  s.MSTATUS_TVM | s.MSTATUS_TW | s.MSTATUS_TSR;
const SSTATUS_WRITABLE: u64 = s.MSTATUS_SIE | s.MSTATUS_SPIE | s.MSTATUS_SPP | s.MSTATUS_FS |
  s.MSTATUS_SUM | s.MSTATUS_MXR;
const SSTATUS_READABLE: u64 = SSTATUS_WRITABLE | s.MSTATUS_UXL | s.MSTATUS_SD;

/** Exceptions that S mode can be given: all but ECALL from M, and the reserved numbers. */
const MEDELEG_WRITABLE: u64 = 0xb3ff;
const MIDELEG_WRITABLE: u64 = s.MIP_SSIP | s.MIP_STIP | s.MIP_SEIP;
const MIE_WRITABLE: u64 = MIDELEG_WRITABLE | s.MIP_MSIP | s.MIP_MTIP | s.MIP_MEIP;

const COUNTER_CYCLE: u32 = 0;
const COUNTER_TIME: u32 = 1;
const COUNTER_INSTRET: u32 = 2;

/** The instruction that runs, for tval. */
let instruction: u32 = 0;

function illegal(): u64 {
  raiseException(CAUSE_ILLEGAL_INSTRUCTION, instruction);
  return 0;
}

/**
 * CSRRW, CSRRS, CSRRC and their immediate forms. `bits` is the instruction; pc and instret are
 * stored (instret without this instruction). Writes rd unless an exception is raised.
 */
export function executeCsr(bits: u32): void {
  instruction = bits;
  const csr = bits >> 20;
  const funct3 = (bits >> 12) & 7;
  const rs1 = (bits >> 15) & 31;
  const rd = (bits >> 7) & 31;
  const isWrite = (funct3 & 3) === 1 || rs1 !== 0;
  if (((csr >> 8) & 3) > s.getPriv() || (isWrite && csr >> 10 === 3)) {
    illegal();
    return;
  }
  const operand: u64 = (funct3 & 4) !== 0 ? <u64> rs1 : s.getX(rs1);
  const old = readCsr(csr);
  if (event !== EVENT_NONE) return;
  if (isWrite) {
    // The interrupt controller's SEIP is not part of a read-modify-write (Priv 3.1.9).
    const base = csr === 0x344
      ? (old & ~(<u64> s.MIP_SEIP)) | (s.getCsr(s.MIP_SOFT) & s.MIP_SEIP)
      : old;
    const value = (funct3 & 3) === 1
      ? operand
      : (funct3 & 3) === 2
      ? base | operand
      : base & ~operand;
    writeCsr(csr, value);
    if (event === 1) return;
  }
  s.setX(rd, old);
}

// ---- reads --------------------------------------------------------------------------------------

function readCsr(csr: u32): u64 {
  switch (csr) {
    case 0x001:
      return hasFloat() ? fflags : illegal();
    case 0x002:
      return hasFloat() ? s.getCsr(s.FRM) : illegal();
    case 0x003:
      return hasFloat() ? (s.getCsr(s.FRM) << 5) | fflags : illegal();
    case 0xc00:
      return isCounterAllowed(COUNTER_CYCLE) ? readCycle() : illegal();
    case 0xc01:
      return isCounterAllowed(COUNTER_TIME) ? readTime() : illegal();
    case 0xc02:
      return isCounterAllowed(COUNTER_INSTRET) ? readInstret() : illegal();
    case 0xb00:
      return readCycle();
    case 0xb02:
      return readInstret();
    default:
      break;
  }
  const level = (csr >> 8) & 3;
  if (level === 1) return readSupervisorCsr(csr);
  if (level === 3) return readMachineCsr(csr);
  // hpmcounter3..31 read zero
  if (csr >= 0xc03 && csr <= 0xc1f) return isCounterAllowed(csr & 31) ? 0 : illegal();
  return illegal();
}

function readSupervisorCsr(csr: u32): u64 {
  switch (csr) {
    case 0x100:
      return readMstatus() & SSTATUS_READABLE;
    case 0x104:
      return s.getCsr(s.MIE) & s.getCsr(s.MIDELEG);
    case 0x105:
      return s.getCsr(s.STVEC);
    case 0x106:
      return s.getCsr(s.SCOUNTEREN);
    case 0x10a:
      return s.getCsr(s.SENVCFG);
    case 0x140:
      return s.getCsr(s.SSCRATCH);
    case 0x141:
      return s.getCsr(s.SEPC);
    case 0x142:
      return s.getCsr(s.SCAUSE);
    case 0x143:
      return s.getCsr(s.STVAL);
    case 0x144:
      return readMip() & s.getCsr(s.MIDELEG);
    case 0x14d:
      return isStimecmpAllowed() ? s.getCsr(s.STIMECMP) : illegal();
    case 0x180:
      return isSatpAllowed() ? s.getCsr(s.SATP) : illegal();
    default:
      return illegal();
  }
}

function readMachineCsr(csr: u32): u64 {
  switch (csr) {
    case 0xf11: // mvendorid: not a commercial implementation
    case 0xf12: // marchid
    case 0xf13: // mimpid
    case 0xf15: // mconfigptr
      return 0;
    case 0xf14:
      return s.hartId;
    case 0x300:
      return readMstatus();
    case 0x301:
      return MISA;
    case 0x302:
      return s.getCsr(s.MEDELEG);
    case 0x303:
      return s.getCsr(s.MIDELEG);
    case 0x304:
      return s.getCsr(s.MIE);
    case 0x305:
      return s.getCsr(s.MTVEC);
    case 0x306:
      return s.getCsr(s.MCOUNTEREN);
    case 0x30a:
      return s.getCsr(s.MENVCFG);
    case 0x320:
      return s.getCsr(s.MCOUNTINHIBIT);
    case 0x340:
      return s.getCsr(s.MSCRATCH);
    case 0x341:
      return s.getCsr(s.MEPC);
    case 0x342:
      return s.getCsr(s.MCAUSE);
    case 0x343:
      return s.getCsr(s.MTVAL);
    case 0x344:
      return readMip();
    case 0x3a0:
      return readPmpConfig(0);
    case 0x3a2:
      return readPmpConfig(8);
    default:
      break;
  }
  if (csr >= 0x3b0 && csr <= 0x3bf) return readPmpAddress(csr & 15);
  if (isHardwiredZero(csr)) return 0;
  return illegal();
}

/**
 * mhpmcounter3..31, mhpmevent3..31; tselect and tdata1..3 of a hart without triggers (Sdtrig 5.7).
 */
function isHardwiredZero(csr: u32): bool {
  return (csr >= 0xb03 && csr <= 0xb1f) || (csr >= 0x323 && csr <= 0x33f) ||
    (csr >= 0x7a0 && csr <= 0x7a3);
}

function readMstatus(): u64 {
  const mstatus = s.getCsr(s.MSTATUS) | s.MSTATUS_UXL | s.MSTATUS_SXL;
  return (mstatus & s.MSTATUS_FS) === s.MSTATUS_FS ? mstatus | s.MSTATUS_SD : mstatus;
}

function hasFloat(): bool {
  return (s.getCsr(s.MSTATUS) & s.MSTATUS_FS) !== 0;
}

/** cycle, time, instret and hpmcounters for lower modes (Priv 3.1.11, 10.1.5). */
function isCounterAllowed(index: u32): bool {
  const priv = s.getPriv();
  if (priv === s.PRIV_M) return true;
  if (((s.getCsr(s.MCOUNTEREN) >> index) & 1) === 0) return false;
  return priv === s.PRIV_S || ((s.getCsr(s.SCOUNTEREN) >> index) & 1) !== 0;
}

/** Sstc 2.1: below M, stimecmp needs menvcfg.STCE and mcounteren.TM. */
function isStimecmpAllowed(): bool {
  if (s.getPriv() === s.PRIV_M) return true;
  return (s.getCsr(s.MENVCFG) & s.MENVCFG_STCE) !== 0 &&
    ((s.getCsr(s.MCOUNTEREN) >> COUNTER_TIME) & 1) !== 0;
}

function isSatpAllowed(): bool {
  return s.getPriv() === s.PRIV_M || (s.getCsr(s.MSTATUS) & s.MSTATUS_TVM) === 0;
}

// ---- counters: cycle counts instructions too ----------------------------------------------------

function readCycle(): u64 {
  return readCounter(COUNTER_CYCLE, s.MCYCLE_OFFSET);
}

function readInstret(): u64 {
  return readCounter(COUNTER_INSTRET, s.MINSTRET_OFFSET);
}

/** `field` is the counter's offset; its held value follows it. */
function readCounter(index: u32, field: u32): u64 {
  if (((s.getCsr(s.MCOUNTINHIBIT) >> index) & 1) !== 0) return s.getCsr(field + 8);
  return s.getInstret() + s.getCsr(field);
}

/** The next instruction reads `value`: this one's own count is suppressed (Zicntr, Priv 3.1.10). */
function writeCounter(index: u32, field: u32, value: u64): void {
  if (((s.getCsr(s.MCOUNTINHIBIT) >> index) & 1) !== 0) s.setCsr(field + 8, value);
  else s.setCsr(field, value - (s.getInstret() + 1));
}

/** A counter that stops keeps its value, one that starts goes on from it. */
function writeCountInhibit(value: u64): void {
  const old = s.getCsr(s.MCOUNTINHIBIT);
  const next = value & 5;
  for (let index: u32 = 0; index <= 2; index += 2) {
    if ((((old ^ next) >> index) & 1) === 0) continue;
    const field = index === COUNTER_CYCLE ? s.MCYCLE_OFFSET : s.MINSTRET_OFFSET;
    if (((next >> index) & 1) !== 0) s.setCsr(field + 8, s.getInstret() + s.getCsr(field));
    else s.setCsr(field, s.getCsr(field + 8) - s.getInstret());
  }
  s.setCsr(s.MCOUNTINHIBIT, next);
}

// ---- writes -------------------------------------------------------------------------------------

function writeCsr(csr: u32, value: u64): void {
  if (csr <= 0x003) {
    if (csr !== 0x002) setFflags(<u32> value & 31);
    if (csr === 0x002) s.setCsr(s.FRM, value & 7);
    if (csr === 0x003) s.setCsr(s.FRM, (value >> 5) & 7);
    s.setCsr(s.MSTATUS, s.getCsr(s.MSTATUS) | s.MSTATUS_FS);
  } else if (((csr >> 8) & 3) === 1) {
    writeSupervisorCsr(csr, value);
  } else {
    writeMachineCsr(csr, value);
  }
}

function writeSupervisorCsr(csr: u32, value: u64): void {
  switch (csr) {
    case 0x100:
      writeMstatus((s.getCsr(s.MSTATUS) & ~SSTATUS_WRITABLE) | (value & SSTATUS_WRITABLE));
      break;
    case 0x104: {
      const mideleg = s.getCsr(s.MIDELEG);
      s.setCsr(s.MIE, (s.getCsr(s.MIE) & ~mideleg) | (value & mideleg));
      requestLeave();
      break;
    }
    case 0x105:
      writeTvec(s.STVEC, value);
      break;
    case 0x106:
      s.setCsr(s.SCOUNTEREN, value & 0xffff_ffff);
      break;
    case 0x10a:
      s.setCsr(s.SENVCFG, value & s.ENVCFG_FIOM);
      break;
    case 0x140:
      s.setCsr(s.SSCRATCH, value);
      break;
    case 0x141:
      s.setCsr(s.SEPC, value & ~1);
      break;
    case 0x142:
      s.setCsr(s.SCAUSE, value);
      break;
    case 0x143:
      s.setCsr(s.STVAL, value);
      break;
    case 0x144:
      // Of sip only SSIP is writable, where it is delegated (Priv 10.1.3).
      if ((s.getCsr(s.MIDELEG) & s.MIP_SSIP) !== 0) {
        s.driveMip(s.MIP_SSIP, (value & s.MIP_SSIP) !== 0);
      }
      requestLeave();
      break;
    case 0x14d:
      s.setCsr(s.STIMECMP, value);
      updateExternalInterrupts();
      requestLeave();
      break;
    default: // satp
      writeSatp(value);
      break;
  }
}

function writeMachineCsr(csr: u32, value: u64): void {
  switch (csr) {
    case 0x300:
      writeMstatus((s.getCsr(s.MSTATUS) & ~MSTATUS_WRITABLE) | (value & MSTATUS_WRITABLE));
      break;
    case 0x302:
      s.setCsr(s.MEDELEG, value & MEDELEG_WRITABLE);
      break;
    case 0x303:
      s.setCsr(s.MIDELEG, value & MIDELEG_WRITABLE);
      requestLeave();
      break;
    case 0x304:
      s.setCsr(s.MIE, value & MIE_WRITABLE);
      requestLeave();
      break;
    case 0x305:
      writeTvec(s.MTVEC, value);
      break;
    case 0x306:
      s.setCsr(s.MCOUNTEREN, value & 0xffff_ffff);
      break;
    case 0x30a:
      writeMenvcfg(value);
      break;
    case 0x320:
      writeCountInhibit(value);
      break;
    case 0x340:
      s.setCsr(s.MSCRATCH, value);
      break;
    case 0x341:
      s.setCsr(s.MEPC, value & ~1);
      break;
    case 0x342:
      s.setCsr(s.MCAUSE, value);
      break;
    case 0x343:
      s.setCsr(s.MTVAL, value);
      break;
    case 0x344:
      writeMip(value);
      break;
    case 0xb00:
      writeCounter(COUNTER_CYCLE, s.MCYCLE_OFFSET, value);
      break;
    case 0xb02:
      writeCounter(COUNTER_INSTRET, s.MINSTRET_OFFSET, value);
      break;
    case 0x3a0:
    case 0x3a2:
      writePmpConfig((csr & 2) << 2, value);
      translationChanged();
      break;
    default:
      if (csr >= 0x3b0 && csr <= 0x3bf) {
        writePmpAddress(csr & 15, value);
        translationChanged();
      }
      break; // misa and what is hardwired
  }
}

function translationChanged(): void {
  s.flushTlb();
  requestLeave();
}

/** `value` has only writable bits changed. */
function writeMstatus(value: u64): void {
  const old = s.getCsr(s.MSTATUS);
  let next = value;
  // MPP: 2 is no mode; keep what was.
  if ((next & s.MSTATUS_MPP) === <u64> 2 << s.MSTATUS_MPP_SHIFT) {
    next = (next & ~s.MSTATUS_MPP) | (old & s.MSTATUS_MPP);
  }
  s.setCsr(s.MSTATUS, next);
  // TLBs are kept apart by privilege and SUM, not by MXR.
  if (((old ^ next) & s.MSTATUS_MXR) !== 0) s.flushTlb();
  requestLeave();
}

/** Direct and vectored are the modes; the base is a multiple of 4. */
function writeTvec(field: u32, value: u64): void {
  s.setCsr(field, value & ~2);
}

function writeMip(value: u64): void {
  let writable: u64 = s.MIP_SEIP;
  if ((s.getCsr(s.MENVCFG) & s.MENVCFG_STCE) === 0) writable |= s.MIP_STIP;
  s.setCsr(s.MIP_SOFT, (s.getCsr(s.MIP_SOFT) & ~writable) | (value & writable));
  s.driveMip(s.MIP_SSIP, (value & s.MIP_SSIP) !== 0);
  requestLeave();
}

function writeMenvcfg(value: u64): void {
  const old = s.getCsr(s.MENVCFG);
  const next = value & (s.ENVCFG_FIOM | s.MENVCFG_ADUE | s.MENVCFG_STCE);
  s.setCsr(s.MENVCFG, next);
  if ((next & s.MENVCFG_STCE) !== 0) {
    s.setCsr(s.MIP_SOFT, s.getCsr(s.MIP_SOFT) & ~(<u64> s.MIP_STIP));
  }
  if (((old ^ next) & s.MENVCFG_ADUE) !== 0) s.flushTlb();
  updateExternalInterrupts();
  requestLeave();
}

/** Bare, Sv39 and Sv48; another mode leaves satp as it is (Priv 10.1.11). No ASIDs. */
function writeSatp(value: u64): void {
  const mode = value >> 60;
  if (mode !== 0 && mode !== 8 && mode !== 9) return;
  s.setCsr(s.SATP, value & 0xf000_0fff_ffff_ffff);
  translationChanged();
}
