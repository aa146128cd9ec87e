/** What the tiers did, as figures in the hart block that anybody may read. */

import { HART_STATISTICS } from "../layout";
import * as op from "../opcodes";
import { hart } from "../state";

/** Regions that exist, and bytes of their modules. */
export const STAT_REGIONS: u32 = 0;
export const STAT_BYTES: u32 = 1;
/** Regions made and dropped since the start; instructions in those made. */
export const STAT_MADE: u32 = 2;
export const STAT_DROPPED: u32 = 3;
export const STAT_INSTRUCTIONS_MADE: u32 = 4;
/** Time of the host's compiler before the code could run, and of all of a translation, in us. */
export const STAT_COMPILE_US: u32 = 5;
/** Instructions retired in translated code. */
export const STAT_RETIRED: u32 = 6;
/** Entries from the interpreter; ways back: one instruction is for it, or a jump, or the budget. */
export const STAT_ENTRIES: u32 = 7;
export const STAT_STEPS: u32 = 8;
export const STAT_JUMPS: u32 = 9;
export const STAT_BUDGETS: u32 = 10;
/** Entries that could not be taken, as memory is mapped. */
export const STAT_REFUSED: u32 = 11;
/** Places that were hot, of which nothing could be made. */
export const STAT_FAILED: u32 = 12;
/** Instructions of the hart, in whichever tier. */
export const STAT_INSTRUCTIONS: u32 = 13;
/** Host time, in ticks: of the hart's run, in translated code (of one entry in 16), for making it. */
export const STAT_RUN_TICKS: u32 = 14;
export const STAT_TRANSLATED_TICKS: u32 = 15;
export const STAT_MAKE_TICKS: u32 = 16;
/** Of STAT_STEPS, by what the instruction is; the rest is of other kinds. */
export const STAT_STEP_MEMORY: u32 = 17;
export const STAT_STEP_CSR: u32 = 18;
export const STAT_STEP_FLOAT: u32 = 19;
export const STAT_STEP_ATOMIC: u32 = 20;
export const STAT_STEP_TRAP: u32 = 21;
export const STAT_STEP_RETURN: u32 = 22;
export const STAT_STEP_WAIT: u32 = 23;
export const STAT_STEP_FENCE: u32 = 24;
/** Times that translated code went on in another region, without the interpreter. */
export const STAT_HOPS: u32 = 25;

function addressOf(index: u32): u32 {
  return hart + HART_STATISTICS + (index << 3);
}

export function countStatistic(index: u32): void {
  addStatistic(index, 1);
}

export function addStatistic(index: u32, value: u64): void {
  store<u64>(addressOf(index), load<u64>(addressOf(index)) + value);
}

export function setStatistic(index: u32, value: u64): void {
  store<u64>(addressOf(index), value);
}

/** Counts an instruction that translated code left to the interpreter. */
export function countStep(opcode: u32): void {
  countStatistic(STAT_STEPS);
  if ((opcode >= op.OP_LB && opcode <= op.OP_SD) || opcode === op.OP_LOAD_X0) {
    countStatistic(STAT_STEP_MEMORY);
  } else if (opcode >= op.OP_FLW && opcode <= op.OP_FSD) countStatistic(STAT_STEP_MEMORY);
  else if (opcode === op.OP_CSR || opcode === op.OP_CSR_INLINE) countStatistic(STAT_STEP_CSR);
  else if (opcode >= op.OP_FADD_D && opcode <= op.OP_FCVT_D_W) countStatistic(STAT_STEP_FLOAT);
  else if (opcode === op.OP_FLOAT || opcode === op.OP_FMA) countStatistic(STAT_STEP_FLOAT);
  else if (opcode >= op.OP_LR_W && opcode <= op.OP_AMO_D) countStatistic(STAT_STEP_ATOMIC);
  else if (opcode === op.OP_ECALL || opcode === op.OP_EBREAK || opcode === op.OP_ILLEGAL) {
    countStatistic(STAT_STEP_TRAP);
  } else if (opcode === op.OP_MRET || opcode === op.OP_SRET) countStatistic(STAT_STEP_RETURN);
  else if (opcode === op.OP_WFI) countStatistic(STAT_STEP_WAIT);
  else if (isFence(opcode)) countStatistic(STAT_STEP_FENCE);
}

function isFence(opcode: u32): bool {
  return opcode === op.OP_FENCE_I || opcode === op.OP_SFENCE_VMA ||
    opcode === op.OP_SFENCE_INVAL;
}
