/**
 * Indirect jumps within a region. The places that control came to by surprise are mostly the cases
 * of a switch: a jump to a register's value that is no return looks for its target among them
 * before it looks into the jump cache. Each has its comparisons, or its jump table, for itself, so
 * that the host predicts each for itself; and since they are edges of the graph, a loop around a
 * switch is a loop.
 */

import { blockStart, caseBlock, caseCount } from "./discover";
import * as l from "./locals";
import { emitEdge } from "./structure";
import * as w from "./writer";

/** Up to so many cases are compared one after the other. */
const COMPARED_CASES: u32 = 4;
const TABLE_BITS: u32 = 6;

/** Goes on at PC, if that is one of the cases; else behind. */
export function emitCases(): void {
  w.get(l.PC);
  w.get(l.BASE);
  w.byte(w.I64_SUB);
  w.set(l.site());
  if (caseCount <= COMPARED_CASES) {
    for (let which: u32 = 0; which < caseCount; which++) emitCase(which);
    return;
  }
  for (let bits: u32 = 32 - clz(caseCount - 1); bits <= TABLE_BITS; bits++) {
    for (let factor: u32 = 0x9e3779b1; factor !== 0x9e3779b1 + (64 << 8); factor += 1 << 8) {
      if (!isPerfect(factor, bits)) continue;
      emitCaseTable(factor, bits);
      return;
    }
  }
}

function emitCase(which: u32): void {
  const block = caseBlock(which);
  w.get(l.site());
  w.i64Const(blockStart(block));
  w.byte(w.I64_EQ);
  w.ifThen();
  emitEdge(block);
  w.end();
}

function hashOf(which: u32, factor: u32, bits: u32): u32 {
  return (<u32>blockStart(caseBlock(which)) * factor) >>> (32 - bits);
}

function isPerfect(factor: u32, bits: u32): bool {
  let seen: u64 = 0;
  for (let which: u32 = 0; which < caseCount; which++) {
    const bit = <u64>1 << hashOf(which, factor, bits);
    if ((seen & bit) !== 0) return false;
    seen |= bit;
  }
  return true;
}

/** A jump table of this jump alone, by a hash that tells all cases apart. */
function emitCaseTable(factor: u32, bits: u32): void {
  const none = w.block();
  // The first case's label is the innermost.
  for (let which: u32 = 0; which < caseCount; which++) w.block();
  w.get(l.site());
  w.byte(w.I32_WRAP);
  w.i32Const(<i32>factor);
  w.byte(w.I32_MUL);
  w.i32Const(32 - bits);
  w.byte(w.I32_SHR_U);
  w.byte(0x0e); // br_table
  w.unsigned((1 << bits) - 1);
  for (let hash: u32 = 0; hash < 1 << bits; hash++) {
    let which: u32 = 0;
    while (which < caseCount && hashOf(which, factor, bits) !== hash) which++;
    w.unsigned(which < caseCount ? which : w.depth - 1 - none);
  }
  for (let which: u32 = 0; which < caseCount; which++) {
    w.end();
    emitCase(which);
    w.branch(none);
  }
  w.end();
}
