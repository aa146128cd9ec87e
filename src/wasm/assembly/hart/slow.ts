/**
 * A turn of the interpreter: the loop (interpreter.ts), and whatever it leaves to be done here:
 * jumps to pages it does not know, accesses that miss the TLB, atomics, CSRs, floating point that
 * needs a second look, privileged instructions, traps.
 *
 * pc and instret are in memory exactly when the turn is over and when an instruction runs that can
 * look at them.
 */

import { executeAtomic } from "./atomics";
import { hostTicks } from "./board/env";
import { sbiCall } from "./board/sbi";
import { currentFetchTlb, decodeAt, decodeAlone, dropStaleCode, findCode } from "./code";
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
  setLeft,
  STOP_JUMP,
  stopAt,
  stopLeft,
  stopSlot,
  stopTarget,
} from "./interpreter";
import { HART_F, HART_STATE_WORD, HART_WAITING, SBI_BUILT_IN } from "./layout";
import { currentContext, currentTlb, loadSlow, storeSlow } from "./mmu";
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
  HART_DATA_TLB,
  HART_FLOAT,
  HART_HOPS,
  HART_JUMP_CACHE,
  HART_LAST_BASE,
  HART_LAST_HANDLE,
  HART_LEFT,
  MSTATUS,
  MSTATUS_TSR,
  MSTATUS_TVM,
  MSTATUS_TW,
  PRIV_M,
  PRIV_S,
  PRIV_U,
  setDataContext,
  setInstret,
  setPc,
  setX,
} from "./state";
import { LEFT_TO_END, LEFT_TO_JUMP } from "./translator/blocks";
import { callRegion } from "./translator/calls";
import { floatState } from "./translator/helpers";
import {
  HEAT_OF_A_MISS,
  HEAT_OF_A_SAMPLE,
  samplePeriod,
} from "./translator/policy";
import { jumpCache } from "./translator/jump_cache";
import { notePlace } from "./translator/profile";
import { rebuild } from "./translator/module";
import { enter, ENTRY_BITS, entryBase, hasPage, mayGrow, noteMiss } from "./translator/regions";
import {
  addStatistic,
  countStatistic,
  countStep,
  STAT_BUDGETS,
  STAT_ENTRIES,
  STAT_HOPS,
  STAT_JUMPS,
  STAT_REFUSED,
  STAT_RETIRED,
  STAT_TRANSLATED_TICKS,
} from "./translator/statistics";
import { returnFromMachine, returnFromSupervisor, takeException } from "./trap";

/** The budget is used up, or interrupts, privilege or translation may have changed. */
export const TURN_OVER: u32 = 0;
/** The hart waits or was stopped, or others want to be looked at: the slice is over too. */
export const SLICE_OVER: u32 = 1;

/** instret when stopLeft will be 0. */
let instretEnd: u64 = 0;
/** What the budget has beside stopLeft: the loop is stopped before its end. */
let heldBack: i32 = 0;
/** The most that is in stopLeft after a stop: 1 if the turn must not overrun, or until a sample. */
let stride: i32 = 0;
/** The turn ends exactly when the budget is used up. */
let isExact: bool = false;
/** How the turn ends. */
let ending: u32 = 0;

const FLOAT_BOX: u64 = 0xffff_ffff_0000_0000;

/**
 * Executes about `budget` instructions from the pc in memory on, or no more than that if `exactly`;
 * returns TURN_OVER or SLICE_OVER.
 */
export function runTurn(budget: i32, exactly: bool): u32 {
  ending = TURN_OVER;
  isExact = exactly;
  instretEnd = getInstret() + <u64>budget;
  heldBack = 0;
  const tlb = currentTlb();
  beginTurn(budget, tlb, currentFetchTlb());
  store<u32>(hart, tlb, HART_DATA_TLB);
  setDataContext(currentContext());
  store<u32>(hart, jumpCache(), HART_JUMP_CACHE);
  holdBack();
  let goesOn = jumpTo(getPc());
  while (goesOn) goesOn = execute() === STOP_JUMP ? jumpTo(stopTarget) : executeSlow();
  return ending;
}

// ---- the budget in parts ------------------------------------------------------------------------

/** The loop overruns its budget by less: a page of straight code, or a way through a region. */
const OVERRUN: i32 = 4096;

/** Leaves in stopLeft what may be executed before the next stop. */
function holdBack(): void {
  stride = i32.MAX_VALUE;
  if (isExact) stride = stopLeft > OVERRUN ? stopLeft - OVERRUN : 1;
  if (samplePeriod !== 0) stride = min(stride, samplePeriod);
  if (stopLeft <= stride) return;
  heldBack = stopLeft - stride;
  instretEnd -= heldBack;
  setLeft(stride);
}

/** Puts what was held back into stopLeft again. */
function release(): void {
  instretEnd += heldBack;
  setLeft(stopLeft + heldBack);
  heldBack = 0;
}

/** Whether the budget must not be overrun by the next instructions. */
function isNearEnd(): bool {
  return isExact && stopLeft + heldBack <= OVERRUN;
}

// ---- ways to go on, and to end ------------------------------------------------------------------

/** Goes on at `pc`; false if the turn is over instead. */
function jumpTo(pc: u64): bool {
  let isSample = false;
  if (stopLeft <= 0) {
    release();
    if (stopLeft <= 0) return endAt(pc, TURN_OVER);
    isSample = samplePeriod !== 0;
    holdBack();
  }
  if (isNearEnd()) return stepAt(pc);
  const code = findCode(pc);
  if (isSample && code !== 0 && !isTranslated(code)) notePlace(pc, HEAT_OF_A_SAMPLE);
  return goAt(pc, code);
}

/** Whether at a decoded place stands an entry of translated code. */
function isTranslated(code: u32): bool {
  return load<u8>(code + 3) === op.OP_TRANSLATED;
}

/** Goes on at `code`, decoded for `pc`; without code, takes the exception. */
function goAt(pc: u64, code: u32): bool {
  if (code === 0) {
    setInstret(instretEnd - <i64>stopLeft);
    return endWithException(pc);
  }
  continueAt(code, pc);
  return true;
}

/** Executes the one instruction at `pc` in the loop, and then goes on. */
function stepAt(pc: u64): bool {
  return goAt(pc, decodeAlone(pc));
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
  if (opcode === op.OP_TRANSLATED) return enterTranslated(bits);
  if (opcode === op.OP_UNDECODED) return decodeNext();
  if (opcode >= op.OP_LB && opcode <= op.OP_SD) return accessMemory(opcode, low);
  if (opcode >= op.OP_FLW && opcode <= op.OP_FSD) return accessMemoryFloat(opcode, low);
  if (isFmaOpcode(opcode) || opcode === op.OP_FLOAT || opcode < op.OP_FIRST_SLOW) {
    if (isFmaOpcode(opcode)) executeFma(bits);
    else executeFloat(bits);
    refreshFloat();
    return goOn();
  }
  if (opcode >= op.OP_LR_W && opcode <= op.OP_AMO_D) {
    executeAtomic(opcode, low, bits);
    return goOn();
  }
  return executeRare(opcode, low, bits);
}

function isFmaOpcode(opcode: u32): bool {
  return opcode === op.OP_FMA || (opcode >= op.OP_FMADD_D && opcode <= op.OP_FNMADD_D);
}

/** Nothing was executed: decodes what is at stopAt. */
function decodeNext(): bool {
  setLeft(stopLeft + 1);
  const pc = nextPc();
  const pageOffset = <u32>pc & 0xffe;
  if (decodeAt(stopAt - (pageOffset << 2), pageOffset) !== 0) return true;
  return stepAt(pc);
}

/**
 * Nothing was executed: at stopAt stands an entry of translated code. What it leaves is executed
 * here; and all of it, if it is not for this place or would overrun the budget.
 */
function enterTranslated(handle: u32): bool {
  setLeft(stopLeft + 1);
  const pc = nextPc();
  const left = stopLeft + heldBack;
  if (left <= 0 || isNearEnd()) return left <= 0 ? jumpTo(pc) : stepAt(pc);
  if (!enter(handle, pc)) {
    countStatistic(STAT_REFUSED);
    return stepAt(pc);
  }
  const rest = stopLeft;
  const budget = isExact ? left - OVERRUN : left;
  release();
  store<u32>(hart, floatState(), HART_FLOAT);
  countStatistic(STAT_ENTRIES);
  const begin = isTimed() ? hostTicks() : 0;
  const why = callRegion(handle >> ENTRY_BITS, handle, entryBase, budget);
  if (begin > 0) {
    addStatistic(STAT_TRANSLATED_TICKS, <u64> (hostTicks() - begin) * ENTRIES_OF_A_TIMED_ONE);
  }
  const retired = budget - load<i32>(hart, HART_LEFT);
  addStatistic(STAT_RETIRED, <u64><i64>retired);
  addStatistic(STAT_HOPS, load<u32>(hart, HART_HOPS));
  setLeft(left - retired);
  keepSample(rest);
  refreshFloat();
  const next = getPc();
  if (why === LEFT_TO_JUMP) {
    if (budget > retired) noteJump(next);
    else countStatistic(STAT_BUDGETS);
    return jumpTo(next);
  }
  if (why === LEFT_TO_END) return endAt(next, TURN_OVER);
  return left - retired <= 0 ? jumpTo(next) : leftAt(next);
}

/** The clock is read for one entry in so many, at random: reading it takes as long as some take. */
const ENTRIES_OF_A_TIMED_ONE: u64 = 16;
let timing: u32 = 1;

function isTimed(): bool {
  timing = timing * 1664525 + 1013904223;
  return timing >>> 28 === 0;
}

/** Translated code was left for `pc`, which it knows no entry at. */
function noteJump(pc: u64): void {
  countStatistic(STAT_JUMPS);
  const code = findCode(pc);
  if (code === 0) {
    clearEvent();
    return;
  }
  if (isTranslated(code)) return;
  // Where nothing was executed yet there is nothing to translate. What straddles two pages has no
  // decoded code.
  const straddles = (<u32>pc & 0xffe) === 0xffe;
  if (load<u64>(code) === 0 && !straddles) return;
  const index = load<u32>(hart, HART_LAST_HANDLE) >> ENTRY_BITS;
  const base = load<u64>(hart, HART_LAST_BASE);
  if (!hasPage(index, base, pc) || !mayGrow(index)) notePlace(pc, HEAT_OF_A_MISS);
  else if (noteMiss(index, base, pc)) rebuild(index, base);
}

/** The next sample is due after `rest` more instructions of the interpreter, or at once. */
function keepSample(rest: i32): void {
  if (samplePeriod === 0) return;
  let next = max(rest, 1);
  if (isExact) next = min(next, max(stopLeft - OVERRUN, 1));
  if (stopLeft <= next) return;
  heldBack = stopLeft - next;
  instretEnd -= heldBack;
  setLeft(next);
}

/** Executes the instruction at `pc` in the loop, whatever stands there. */
function leftAt(pc: u64): bool {
  let code = isNearEnd() ? decodeAlone(pc) : findCode(pc);
  if (code !== 0 && isTranslated(code)) code = decodeAlone(pc);
  if (code !== 0) countStep(load<u8>(code + 3));
  return goAt(pc, code);
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
