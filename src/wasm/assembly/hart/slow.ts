/**
 * A turn of the interpreter: the loop (interpreter.ts), and whatever it leaves to be done here:
 * jumps to pages it does not know, accesses that miss the TLB, atomics, CSRs, floating point that
 * needs a second look, privileged instructions, traps.
 *
 * pc and instret are in memory exactly when the turn is over and when an instruction runs that can
 * look at them.
 */

import * as atomics from "./atomics";
import { sbiCall } from "./board/sbi";
import { currentFetchTlb, decodeAt, decodeStraddling, dropStaleCode, findCode } from "./code";
import { executeCsr } from "./csr";
import {
  CAUSE_BREAKPOINT,
  CAUSE_ECALL_U,
  CAUSE_ILLEGAL_INSTRUCTION,
  clearEvent,
  event,
  EVENT_EXCEPTION,
  EVENT_NONE,
  raiseException,
} from "./event";
import { executeFloat, executeFma, isFloatOn, markFloatDirty } from "./float_ops";
import {
  beginTurn,
  continueAt,
  execute,
  pcOf,
  refreshFloat,
  STOP_JUMP,
  stopAt,
  stopLeft,
  stopSlot,
  stopTarget,
  uncount,
} from "./interpreter";
import { HART_F, HART_STATE_WORD, HART_WAITING, SBI_BUILT_IN } from "./layout";
import { currentTlb, loadSlow, storeSlow } from "./mmu";
import * as op from "./opcodes";
import {
  flushTlb,
  flushTlbPage,
  getCsr,
  getInstret,
  getPc,
  getPriv,
  getX,
  hart,
  MSTATUS,
  MSTATUS_TSR,
  MSTATUS_TVM,
  MSTATUS_TW,
  PRIV_M,
  PRIV_S,
  PRIV_U,
  setInstret,
  setPc,
  setX,
} from "./state";
import { returnFromMachine, returnFromSupervisor, takeException } from "./trap";

/** The budget is used up, or interrupts, privilege or translation may have changed. */
export const TURN_OVER: u32 = 0;
/** The hart waits or was stopped, or others want to be looked at: the slice is over too. */
export const SLICE_OVER: u32 = 1;

/** instret when stopLeft will be 0. */
let instretEnd: u64 = 0;
/** How the turn ends. */
let ending: u32 = 0;

const FLOAT_BOX: u64 = 0xffff_ffff_0000_0000;

/**
 * Executes about `budget` instructions from the pc in memory on; returns TURN_OVER or SLICE_OVER.
 */
export function runTurn(budget: i32): u32 {
  ending = TURN_OVER;
  instretEnd = getInstret() + <u64>budget;
  beginTurn(budget, currentTlb(), currentFetchTlb());
  let goesOn = jumpTo(getPc());
  while (goesOn) goesOn = execute() === STOP_JUMP ? jumpTo(stopTarget) : executeSlow();
  return ending;
}

// ---- ways to go on, and to end ------------------------------------------------------------------

/** Goes on at `pc`; false if the turn is over instead. */
function jumpTo(pc: u64): bool {
  if (stopLeft <= 0) return endAt(pc, TURN_OVER);
  const code = findCode(pc);
  if (code === 0) {
    setInstret(instretEnd - <i64>stopLeft);
    return endWithException(pc);
  }
  continueAt(code, pc);
  return true;
}

/** The next instruction, at `pc`, is for another turn. */
function endAt(pc: u64, how: u32): bool {
  clearEvent();
  setPc(pc);
  setInstret(instretEnd - <i64>stopLeft);
  ending = how;
  return false;
}

/** Takes the exception that was raised for the instruction at `pc`. */
function endWithException(pc: u64): bool {
  setPc(pc);
  takeException();
  return false;
}

/** The guest's address of what comes after the instruction at hand. */
function nextPc(): u64 {
  return pcOf + <u64>(stopAt >> 2);
}

/** After an instruction that may have raised an exception or asked to leave. */
function goOn(): bool {
  if (event === EVENT_NONE) return true;
  if (event !== EVENT_EXCEPTION) return endAt(nextPc(), TURN_OVER);
  setInstret(instretEnd - <i64>stopLeft - 1);
  return endWithException(nextPc() - <u64>(<u32>stopSlot & 6));
}

/** Raises an illegal instruction exception of the instruction at hand. */
function goOnIllegal(bits: u32): bool {
  raiseException(CAUSE_ILLEGAL_INSTRUCTION, bits);
  return goOn();
}

/** Stores pc and instret as the instruction at hand finds them. */
function storePosition(): void {
  setPc(nextPc() - <u64>(<u32>stopSlot & 6));
  setInstret(instretEnd - <i64>stopLeft - 1);
}

// ---- what the loop left -------------------------------------------------------------------------

/** Executes stopSlot; false if the turn is over. */
function executeSlow(): bool {
  const low = <u32>stopSlot;
  const opcode = low >>> 24;
  const bits = <u32>(stopSlot >> 32);
  if (opcode === op.OP_UNDECODED) return decodeNext();
  if (opcode >= op.OP_LB && opcode <= op.OP_SD) return accessMemory(opcode, low);
  if (opcode >= op.OP_FLW && opcode <= op.OP_FSD) return accessMemoryFloat(opcode, low);
  if (isFmaOpcode(opcode) || opcode === op.OP_FLOAT || opcode < op.OP_FIRST_SLOW) {
    if (isFmaOpcode(opcode)) executeFma(bits);
    else executeFloat(bits);
    refreshFloat();
    return goOn();
  }
  if (opcode >= op.OP_LR_W && opcode <= op.OP_AMO_D) return executeAtomic(opcode, low, bits);
  return executeRare(opcode, low, bits);
}

function isFmaOpcode(opcode: u32): bool {
  return opcode === op.OP_FMA || (opcode >= op.OP_FMADD_D && opcode <= op.OP_FNMADD_D);
}

/** Nothing was executed: decodes what is at stopAt. */
function decodeNext(): bool {
  uncount();
  const pc = nextPc();
  const pageOffset = <u32>pc & 0xffe;
  if (decodeAt(stopAt - (pageOffset << 2), pageOffset) !== 0) return true;
  const lone = decodeStraddling(pc);
  if (lone === 0) {
    setInstret(instretEnd - <i64>stopLeft);
    return endWithException(pc);
  }
  continueAt(lone, pc);
  return true;
}

function addressOf(low: u32): u64 {
  return getX((low >> 11) & 31) + <u64>(<i64>stopSlot >> 32);
}

/**
 * Loads and stores of integer registers. Opcodes are in the order of funct3: log2 of the size,
 * sign.
 */
function accessMemory(opcode: u32, low: u32): bool {
  const va = addressOf(low);
  if (opcode >= op.OP_SB) {
    storeSlow(va, getX((low >> 19) & 31), <u32>1 << (opcode - op.OP_SB));
    return goOn();
  }
  const funct3 = opcode - op.OP_LB;
  const size = <u32>1 << (funct3 & 3);
  let value = loadSlow(va, size);
  if (event === EVENT_EXCEPTION) return goOn();
  if (funct3 < 3) {
    const unused: u64 = 64 - ((<u64>size) << 3);
    value = <u64>(<i64>(value << unused) >> <i64>unused);
  }
  setX((low >> 3) & 31, value);
  return goOn();
}

function accessMemoryFloat(opcode: u32, low: u32): bool {
  if (!isFloatOn(0)) return goOn();
  const va = addressOf(low);
  const size: u32 = opcode === op.OP_FLW || opcode === op.OP_FSW ? 4 : 8;
  if (opcode >= op.OP_FSW) {
    storeSlow(va, load<u64>(hart + ((low >> 16) & 0xf8), HART_F), size);
    return goOn();
  }
  const value = loadSlow(va, size);
  if (event === EVENT_EXCEPTION) return goOn();
  store<u64>(hart + (low & 0xf8), size === 4 ? FLOAT_BOX | value : value, HART_F);
  markFloatDirty();
  refreshFloat();
  return goOn();
}

function executeAtomic(opcode: u32, low: u32, funct5: u32): bool {
  const rd = (low >> 3) & 31;
  const rs1 = (low >> 11) & 31;
  const rs2 = (low >> 19) & 31;
  if (opcode === op.OP_LR_W) atomics.loadReservedWord(rd, rs1);
  else if (opcode === op.OP_LR_D) atomics.loadReservedDouble(rd, rs1);
  else if (opcode === op.OP_SC_W) atomics.storeConditionalWord(rd, rs1, rs2);
  else if (opcode === op.OP_SC_D) atomics.storeConditionalDouble(rd, rs1, rs2);
  else if (opcode === op.OP_AMO_W) atomics.amoWord(funct5, rd, rs1, rs2);
  else atomics.amoDouble(funct5, rd, rs1, rs2);
  return goOn();
}

/** `bits` is the instruction itself, but for LOAD_X0. */
function executeRare(opcode: u32, low: u32, bits: u32): bool {
  switch (opcode) {
    case op.OP_CSR:
      storePosition();
      executeCsr(bits);
      refreshFloat();
      return goOn();
    case op.OP_LOAD_X0:
      loadSlow(addressOf(low), <u32>1 << ((low >> 19) & 3));
      return goOn();
    case op.OP_FENCE_I:
      dropStaleCode();
      return jumpTo(nextPc());
    case op.OP_ECALL:
      return executeEcall();
    case op.OP_EBREAK:
      raiseException(CAUSE_BREAKPOINT, nextPc() - <u64>(low & 6));
      return goOn();
    case op.OP_MRET:
    case op.OP_SRET:
      return executeReturn(opcode === op.OP_MRET, bits);
    case op.OP_WFI:
      return executeWfi(bits);
    case op.OP_SFENCE_VMA:
      return executeSfence(bits);
    case op.OP_SFENCE_INVAL:
      return getPriv() === PRIV_U ? goOnIllegal(bits) : true;
    default:
      return goOnIllegal(bits);
  }
}

// ---- privileged instructions --------------------------------------------------------------------

/** From S mode the built-in SBI answers, where there is one: then ECALL retires. */
function executeEcall(): bool {
  const priv = getPriv();
  if (priv === PRIV_S && load<u32>(SBI_BUILT_IN) !== 0) {
    endAt(nextPc(), SLICE_OVER);
    sbiCall();
    return false;
  }
  raiseException(CAUSE_ECALL_U + priv, 0);
  return goOn();
}

function executeReturn(isMachine: bool, bits: u32): bool {
  const priv = getPriv();
  if (isMachine ? priv !== PRIV_M : !isSretAllowed(priv)) return goOnIllegal(bits);
  endAt(0, TURN_OVER);
  if (isMachine) returnFromMachine();
  else returnFromSupervisor();
  return false;
}

function isSretAllowed(priv: u32): bool {
  return priv === PRIV_M || (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_TSR) === 0);
}

/** Priv 3.1.6.6, 3.3.3. */
function executeWfi(bits: u32): bool {
  const priv = getPriv();
  if (priv === PRIV_U || (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_TW) !== 0)) {
    return goOnIllegal(bits);
  }
  atomic.store<u32>(hart + HART_STATE_WORD, HART_WAITING);
  return endAt(nextPc(), SLICE_OVER);
}

/** SFENCE.VMA and SINVAL.VMA. */
function executeSfence(bits: u32): bool {
  const priv = getPriv();
  if (priv === PRIV_U || (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_TVM) !== 0)) {
    return goOnIllegal(bits);
  }
  const rs1 = (bits >> 15) & 31;
  if (rs1 === 0) flushTlb();
  else flushTlbPage(getX(rs1), 0);
  return jumpTo(nextPc());
}
