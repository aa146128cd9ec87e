/**
 * The A extension. With one hart plain accesses do; with several, WebAssembly's atomics, which are
 * sequentially consistent: more than any acquire or release asks for.
 *
 * LR remembers the address and the value. SC stores only if it names that address and the value is
 * still there, which with several harts one compare-exchange decides. (A value that changed and
 * changed back passes; QEMU does the same.)
 */

import { event, EVENT_EXCEPTION } from "./event";
import { atomicAddress } from "./mmu";
import * as op from "./opcodes";
import {
  getX,
  hart,
  HART_RESERVATION_ADDRESS,
  HART_RESERVATION_VALUE,
  isSmp,
  NO_RESERVATION,
  setX,
} from "./state";

/** Executes a decoded instruction: `low` is the low half of its slot. */
export function executeAtomic(opcode: u32, low: u32, funct5: u32): void {
  const rd = (low >> 3) & 31;
  const rs1 = (low >> 11) & 31;
  const rs2 = (low >> 19) & 31;
  if (opcode === op.OP_LR_W) loadReservedWord(rd, rs1);
  else if (opcode === op.OP_LR_D) loadReservedDouble(rd, rs1);
  else if (opcode === op.OP_SC_W) storeConditionalWord(rd, rs1, rs2);
  else if (opcode === op.OP_SC_D) storeConditionalDouble(rd, rs1, rs2);
  else if (opcode === op.OP_AMO_W) amoWord(funct5, rd, rs1, rs2);
  else amoDouble(funct5, rd, rs1, rs2);
}

const AMO_ADD: u32 = 0;
const AMO_SWAP: u32 = 1;
const AMO_XOR: u32 = 4;
const AMO_OR: u32 = 8;
const AMO_AND: u32 = 12;
const AMO_MIN: u32 = 16;
const AMO_MAX: u32 = 20;
const AMO_MINU: u32 = 24;

function loadReservedWord(rd: u32, rs1: u32): void {
  const address = atomicAddress(getX(rs1), 4, true);
  if (event === EVENT_EXCEPTION) return;
  // Shifts and no cast: the compiler's optimizer folds a sign extension into the atomic load, which
  // has no sign-extending form, and so loses it.
  const value = <i64> (<u64> atomic.load<u32>(address) << 32) >> 32;
  reserve(rd, address, <u64> value);
}

function loadReservedDouble(rd: u32, rs1: u32): void {
  const address = atomicAddress(getX(rs1), 8, true);
  if (event === EVENT_EXCEPTION) return;
  reserve(rd, address, atomic.load<u64>(address));
}

/** The reservation's address is one of this memory: aliases of a page are the same there. */
function reserve(rd: u32, address: u32, value: u64): void {
  store<u64>(hart, address, HART_RESERVATION_ADDRESS);
  store<u64>(hart, value, HART_RESERVATION_VALUE);
  setX(rd, value);
}

/** Whether the reservation is for `address`; it is gone now in any case. */
function takeReservation(address: u32): bool {
  const isReserved = load<u64>(hart, HART_RESERVATION_ADDRESS) === <u64> address;
  store<u64>(hart, NO_RESERVATION, HART_RESERVATION_ADDRESS);
  return isReserved;
}

function storeConditionalWord(rd: u32, rs1: u32, rs2: u32): void {
  const address = atomicAddress(getX(rs1), 4, false);
  if (event === EVENT_EXCEPTION) return;
  let isDone = takeReservation(address);
  if (isDone) {
    const expected = <u32> load<u64>(hart, HART_RESERVATION_VALUE);
    isDone = atomic.cmpxchg<u32>(address, expected, <u32> getX(rs2)) === expected;
  }
  setX(rd, isDone ? 0 : 1);
}

function storeConditionalDouble(rd: u32, rs1: u32, rs2: u32): void {
  const address = atomicAddress(getX(rs1), 8, false);
  if (event === EVENT_EXCEPTION) return;
  let isDone = takeReservation(address);
  if (isDone) {
    const expected = load<u64>(hart, HART_RESERVATION_VALUE);
    isDone = atomic.cmpxchg<u64>(address, expected, getX(rs2)) === expected;
  }
  setX(rd, isDone ? 0 : 1);
}

function amoWord(funct5: u32, rd: u32, rs1: u32, rs2: u32): void {
  const address = atomicAddress(getX(rs1), 4, false);
  if (event === EVENT_EXCEPTION) return;
  const operand = <u32> getX(rs2);
  const old = isSmp()
    ? amoWordShared(funct5, address, operand)
    : amoWordPlain(funct5, address, operand);
  setX(rd, <u64> <i64> <i32> old);
}

function amoDouble(funct5: u32, rd: u32, rs1: u32, rs2: u32): void {
  const address = atomicAddress(getX(rs1), 8, false);
  if (event === EVENT_EXCEPTION) return;
  const operand = getX(rs2);
  const old = isSmp()
    ? amoDoubleShared(funct5, address, operand)
    : amoDoublePlain(funct5, address, operand);
  setX(rd, old);
}

/** What an AMO stores, given what was there. T is u32 or u64, S its signed twin. */

function combine<T, S>(funct5: u32, old: T, operand: T): T {
  switch (funct5) {
    case AMO_ADD:
      return <T> (old + operand);
    case AMO_SWAP:
      return operand;
    case AMO_XOR:
      return <T> (old ^ operand);
    case AMO_OR:
      return <T> (old | operand);
    case AMO_AND:
      return <T> (old & operand);
    case AMO_MIN:
      return <S> old < <S> operand ? old : operand;
    case AMO_MAX:
      return <S> old > <S> operand ? old : operand;
    case AMO_MINU:
      return old < operand ? old : operand;
    default:
      return old > operand ? old : operand;
  }
}

function amoWordPlain(funct5: u32, address: u32, operand: u32): u32 {
  const old = load<u32>(address);
  store<u32>(address, combine<u32, i32>(funct5, old, operand));
  return old;
}

function amoDoublePlain(funct5: u32, address: u32, operand: u64): u64 {
  const old = load<u64>(address);
  store<u64>(address, combine<u64, i64>(funct5, old, operand));
  return old;
}

function amoWordShared(funct5: u32, address: u32, operand: u32): u32 {
  let old = atomic.load<u32>(address);
  while (true) {
    const seen = atomic.cmpxchg<u32>(address, old, combine<u32, i32>(funct5, old, operand));
    if (seen === old) return old;
    old = seen;
  }
}

function amoDoubleShared(funct5: u32, address: u32, operand: u64): u64 {
  let old = atomic.load<u64>(address);
  while (true) {
    const seen = atomic.cmpxchg<u64>(address, old, combine<u64, i64>(funct5, old, operand));
    if (seen === old) return old;
    old = seen;
  }
}
