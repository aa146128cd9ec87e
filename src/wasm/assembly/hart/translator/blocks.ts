/**
 * The code of one block, and of a region's function around all blocks.
 *
 * An exit in the middle of a block names its place by one constant, SITE: the distance from base of
 * where to go on, shifted left by 8, 2 * how many instructions of the block were counted but not
 * executed, and 1 if the turn is over there.
 */

import { HART_F, HART_PC } from "../layout";
import * as op from "../opcodes";
import {
  HART_EPOCH,
  HART_FLOAT,
  HART_JUMP_CACHE,
  HART_WHY,
  TLB_MASK,
  TLB_SHIFT,
  TLB_WRITE,
} from "../state";
import {
  blockAt,
  blockCount,
  blockEnd,
  blockFirst,
  blockLength,
  blockStart,
  hasCases,
  isBranch,
  isForInterpreter,
  lengthOf,
  NO_BLOCK,
  slotAt,
  slotDistance,
  slotPage,
  targetOf,
} from "./discover";
import { emitFloatCheck, isFloat } from "./float";
import { emitInstruction, emitX, noteUse, setXFromStack } from "./instructions";
import { emitCases } from "./indirect";
import * as l from "./locals";
import { JUMP_CACHE_FOLD, JUMP_CACHE_MASK } from "./jump_cache";
import { DATA_TLB, emitForgetPages } from "./memory_access";
import {
  IMPORT_FIND,
  IMPORT_LEAVE,
  IMPORT_READ_PAGE,
  IMPORT_WRITE_PAGE,
  REGION_TYPE,
} from "./module";
import { ENTRY_BITS } from "./regions";
import { emitEdge, emitStructure, isLoopHead } from "./structure";
import * as w from "./writer";

/** What a region's function returns. The instruction at pc is for the interpreter to execute. */
export const LEFT_TO_STEP: i32 = 0;
/** Go on at pc: it is not known here, or the budget is used up. */
export const LEFT_TO_JUMP: i32 = 1;
/** The turn is over at pc: interrupts, privilege or translation may have changed. */
export const LEFT_TO_END: i32 = 2;

let stepLabel: u32 = 0;
let jumpLabel: u32 = 0;

// ---- the function -------------------------------------------------------------------------------

export function emitFunction(): void {
  w.beginBody();
  l.beginUse();
  for (let block: u32 = 0; block < blockCount; block++) {
    const first = blockFirst(block);
    l.beginBlockUse();
    for (let i: u32 = 0; i < blockLength(block); i++) noteUse(first + i);
  }
  l.declareLocals();
  emitForgetPages();
  emitLoads();
  const out = w.block();
  const top = w.loop();
  jumpLabel = w.block();
  stepLabel = w.block();
  emitStructure(top);
  w.end();
  emitStepExit(out);
  w.end();
  emitJump(out, top);
  w.end();
  w.end();
  emitStores();
  emitLeave();
  w.end();
}

function emitLoads(): void {
  w.get(l.HANDLE);
  w.i32Const((1 << ENTRY_BITS) - 1);
  w.byte(w.I32_AND);
  w.set(l.SELECTOR);
  if (l.usedF === 0) return;
  loadField(w.I32_LOAD, HART_FLOAT);
  w.set(l.FLOAT);
  for (let rest = l.usedF; rest !== 0; rest &= rest - 1) {
    const register = ctz(rest);
    loadField(w.F64_LOAD, HART_F + (register << 3));
    w.set(l.localF(register));
  }
}

function loadField(opcode: u32, offset: u32): void {
  w.get(l.HART);
  w.access(opcode, offset);
}

function emitStores(): void {
  for (let rest = l.writtenF; rest !== 0; rest &= rest - 1) {
    const register = ctz(rest);
    w.get(l.HART);
    w.get(l.localF(register));
    w.access(w.F64_STORE, HART_F + (register << 3));
  }
}

/** To another region, or back to the interpreter. */
function emitLeave(): void {
  w.get(l.NEXT);
  w.ifThen();
  w.get(l.HART);
  w.get(l.NEXT);
  w.get(l.nextBase());
  emitRegisters();
  w.get(l.HOPS);
  w.i32Const(1);
  w.byte(w.I32_ADD);
  w.get(l.NEXT);
  w.i32Const(ENTRY_BITS);
  w.byte(w.I32_SHR_U);
  w.byte(0x13); // return_call_indirect
  w.unsigned(REGION_TYPE);
  w.unsigned(0);
  w.end();
  storeField(l.PC, w.I64_STORE, HART_PC);
  storeField(l.WHY, w.I32_STORE, HART_WHY);
  w.get(l.HART);
  w.get(l.HANDLE);
  w.get(l.BASE);
  emitRegisters();
  w.get(l.HOPS);
  w.byte(0x12); // return_call
  w.unsigned(IMPORT_LEAVE);
}

/** LEFT and the x registers, as parameters. */
function emitRegisters(): void {
  w.get(l.LEFT);
  for (let register: u32 = 1; register < 32; register++) w.get(l.localX(register));
}

function storeField(local: u32, opcode: u32, offset: u32): void {
  w.get(l.HART);
  w.get(local);
  w.access(opcode, offset);
}

/** pc, LEFT out of SITE: the instruction there is for the interpreter. */
function emitStepExit(out: u32): void {
  w.get(l.BASE);
  w.get(l.site());
  w.i64Const(8);
  w.byte(w.I64_SHR_S);
  w.byte(w.I64_ADD);
  w.set(l.PC);
  w.get(l.LEFT);
  w.get(l.site());
  w.byte(w.I32_WRAP);
  w.i32Const(0xff);
  w.byte(w.I32_AND);
  w.i32Const(1);
  w.byte(w.I32_SHR_U);
  w.byte(w.I32_ADD);
  w.set(l.LEFT);
  // The lowest bit tells LEFT_TO_END from LEFT_TO_STEP.
  w.get(l.site());
  w.byte(w.I32_WRAP);
  w.i32Const(1);
  w.byte(w.I32_AND);
  w.i32Const(1);
  w.byte(w.I32_SHL);
  w.set(l.WHY);
  w.i32Const(0);
  w.set(l.NEXT);
  w.branch(out);
}

/** Goes on at PC: in this region, in another one that is known, or in the interpreter. */
function emitJump(out: u32, top: u32): void {
  w.i32Const(LEFT_TO_JUMP);
  w.set(l.WHY);
  w.i32Const(0);
  w.set(l.NEXT);
  w.get(l.LEFT);
  w.i32Const(0);
  w.byte(w.I32_LE_S);
  w.branchIfUnlikely(out);
  const found = w.block();
  const miss = w.block();
  loadField(w.I32_LOAD, HART_JUMP_CACHE);
  w.get(l.PC);
  w.byte(w.I32_WRAP);
  w.i32Const(4);
  w.byte(w.I32_SHL);
  w.get(l.PC);
  w.byte(w.I32_WRAP);
  w.i32Const(JUMP_CACHE_FOLD);
  w.byte(w.I32_SHR_U);
  w.byte(w.I32_XOR);
  w.i32Const(JUMP_CACHE_MASK);
  w.byte(w.I32_AND);
  w.byte(w.I32_ADD);
  w.tee(l.ADDRESS);
  w.access(w.I64_LOAD, 0);
  w.get(l.PC);
  w.byte(w.I64_NE);
  w.branchIfUnlikely(miss);
  w.get(l.ADDRESS);
  w.access(w.I32_LOAD, 16);
  loadField(w.I32_LOAD, HART_EPOCH);
  w.byte(w.I32_EQ);
  w.branchIf(found);
  w.end();
  w.get(l.PC);
  w.call(IMPORT_FIND);
  w.byte(w.I32_EQZ);
  w.branchIfUnlikely(out);
  w.end();
  w.get(l.ADDRESS);
  w.access(w.I64_LOAD, 8);
  w.set(l.nextBase());
  w.get(l.ADDRESS);
  w.access(w.I32_LOAD, 20);
  w.tee(l.NEXT);
  w.get(l.HANDLE);
  w.byte(w.I32_XOR);
  w.i32Const(ENTRY_BITS);
  w.byte(w.I32_SHR_U);
  w.branchIf(out);
  w.get(l.NEXT);
  w.i32Const((1 << ENTRY_BITS) - 1);
  w.byte(w.I32_AND);
  w.set(l.SELECTOR);
  w.get(l.nextBase());
  w.set(l.BASE);
  w.branch(top);
}

// ---- looking for a page -------------------------------------------------------------------------

/**
 * The body of (va, size) -> address in this memory, or 0: a look into the TLB, then the core's
 * helper.
 */
export function emitLookup(isWrite: bool): void {
  const entry: u32 = 2;
  w.beginBody();
  w.unsigned(1);
  w.unsigned(1);
  w.byte(w.I32);
  w.globalGet(DATA_TLB);
  w.get(0);
  w.byte(w.I32_WRAP);
  w.i32Const(TLB_SHIFT);
  w.byte(w.I32_SHR_U);
  w.i32Const(TLB_MASK);
  w.byte(w.I32_AND);
  w.byte(w.I32_ADD);
  w.tee(entry);
  w.access(w.I64_LOAD, isWrite ? TLB_WRITE : 0);
  w.get(0);
  w.get(1);
  w.byte(w.I64_EXTEND_U);
  w.i64Const(1);
  w.byte(w.I64_SUB);
  w.i64Const(~0xfff);
  w.byte(w.I64_OR);
  w.byte(w.I64_AND);
  w.byte(w.I64_NE);
  w.ifUnlikely();
  w.get(0);
  w.get(1);
  w.call(isWrite ? IMPORT_WRITE_PAGE : IMPORT_READ_PAGE);
  w.byte(0x0f); // return
  w.end();
  w.get(0);
  w.byte(w.I32_WRAP);
  w.get(entry);
  w.access(w.I32_LOAD, (isWrite ? TLB_WRITE : 0) + 8);
  w.byte(w.I32_ADD);
  w.end();
}

// ---- blocks -------------------------------------------------------------------------------------

/** Instructions of the block that were counted, but come after the one that is emitted. */
let notExecuted: u32 = 0;
let currentDistance: i32 = 0;
/** The page that is kept for the access of the instruction that is emitted. */
export let currentPage: u32 = 0;

export function emitBlock(block: u32): void {
  const length = blockLength(block);
  const first = blockFirst(block);
  if (isLoopHead(block)) emitPoll(blockStart(block));
  const last = slotAt(first + length - 1);
  const counted = isForInterpreter(<u32>last >>> 24) ? length - 1 : length;
  if (counted > 0) {
    w.get(l.LEFT);
    w.i32Const(counted);
    w.byte(w.I32_SUB);
    w.set(l.LEFT);
  }
  let isFloatChecked = false;
  for (let i: u32 = 0; i < length; i++) {
    const slot = slotAt(first + i);
    currentDistance = slotDistance(first + i);
    notExecuted = counted - i;
    if (!isFloatChecked && isFloat(<u32>slot >>> 24)) {
      emitFloatCheck();
      isFloatChecked = true;
    }
    currentPage = slotPage(first + i);
    if (i + 1 < length || !emitEnd(block, slot)) emitInstruction(slot, currentDistance);
  }
  if (!endsItself(<u32>last >>> 24)) emitGoto(blockEnd(block));
}

function endsItself(opcode: u32): bool {
  return isBranch(opcode) || (opcode >= op.OP_J && opcode <= op.OP_JALR) ||
    isForInterpreter(opcode);
}

/** The last instruction of a block, if it is one that goes elsewhere. */
function emitEnd(block: u32, slot: u64): bool {
  const opcode = <u32>slot >>> 24;
  if (isForInterpreter(opcode)) {
    emitStep();
  } else if (isBranch(opcode)) {
    emitBranch(block, slot, opcode);
  } else if (opcode === op.OP_J || opcode === op.OP_J_FAR) {
    emitGoto(targetOf(slot, currentDistance));
  } else if (opcode === op.OP_JAL || opcode === op.OP_JAL_FAR) {
    emitLink(slot);
    emitGoto(targetOf(slot, currentDistance));
  } else if (opcode === op.OP_JR || opcode === op.OP_JALR) {
    emitX(fieldRs1(slot));
    w.i64Const(<i64>slot >> 32);
    w.byte(w.I64_ADD);
    w.i64Const(-2);
    w.byte(w.I64_AND);
    w.set(l.PC);
    if (opcode === op.OP_JALR) emitLink(slot);
    if (hasCases(block)) emitCases();
    w.branch(jumpLabel);
  } else {
    return false;
  }
  return true;
}

function fieldRd(slot: u64): u32 {
  return (<u32>slot >> 3) & 31;
}

function fieldRs1(slot: u64): u32 {
  return (<u32>slot >> 11) & 31;
}

function fieldRs2(slot: u64): u32 {
  return (<u32>slot >> 19) & 31;
}

function emitLink(slot: u64): void {
  emitAddress(currentDistance + lengthOf(slot));
  setXFromStack(fieldRd(slot));
}

/** The guest's address of `distance`. */
export function emitAddress(distance: i32): void {
  w.get(l.BASE);
  w.i64Const(distance);
  w.byte(w.I64_ADD);
}

/** Goes on at `distance`, whether it is in the region or not. */
function emitGoto(distance: i32): void {
  const target = blockAt(distance);
  if (target !== NO_BLOCK) {
    emitEdge(target);
    return;
  }
  emitAddress(distance);
  w.set(l.PC);
  w.branch(jumpLabel);
}

function emitBranch(block: u32, slot: u64, opcode: u32): void {
  const distance = targetOf(slot, currentDistance);
  emitX(fieldRs1(slot));
  emitX(fieldRs2(slot));
  const kind = opcode >= op.OP_BEQ_FAR ? opcode - op.OP_BEQ_FAR : opcode - op.OP_BEQ;
  if (kind === 0) w.byte(w.I64_EQ);
  else if (kind === 1) w.byte(w.I64_NE);
  else if (kind === 2) w.byte(w.I64_LT_S);
  else if (kind === 3) w.byte(w.I64_GE_S);
  else if (kind === 4) w.byte(w.I64_LT_U);
  else w.byte(w.I64_GE_U);
  // What was never executed is outside the region, and hardly ever is.
  if (blockAt(distance) === NO_BLOCK) w.ifUnlikely();
  else w.ifThen();
  emitGoto(distance);
  w.end();
  emitGoto(blockEnd(block));
}

/** Leaves the region at a loop's head when the budget is used up. */
function emitPoll(distance: i32): void {
  w.get(l.LEFT);
  w.i32Const(0);
  w.byte(w.I32_LE_S);
  w.ifUnlikely();
  emitAddress(distance);
  w.set(l.PC);
  w.branch(jumpLabel);
  w.end();
}

/** Leaves the region: the instruction at hand is for the interpreter. */
export function emitStep(): void {
  w.i64Const((<i64>currentDistance << 8) | (<i64>notExecuted << 1));
  w.set(l.site());
  w.branch(stepLabel);
}

/** Leaves the region behind the instruction at hand, which is `length` bytes long; ends the turn. */
export function emitEndOfTurn(length: i32): void {
  w.i64Const((<i64>(currentDistance + length) << 8) | (<i64>(notExecuted - 1) << 1) | 1);
  w.set(l.site());
  w.branch(stepLabel);
}
