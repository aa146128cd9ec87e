/**
 * What a region is made of. From its first place on, decoded code is followed over jumps, calls and
 * both ways of branches; code that was never executed is not decoded and stays outside, and so do
 * pages that the fetch TLB does not know.
 *
 *   seed(pc) ... discover() -> blocks, in the order of their addresses, each with
 *     its distance from base (the page of the first seed), its instructions, one slot each,
 *     and whether it is an entry
 *
 * Entries are the seeds, what comes after a call, and what comes after an instruction that the
 * interpreter must execute.
 *
 * SCRATCH holds
 *   MARKS     u8 a half-word of each page: VISITED, LEADER, ENTRY, SEED, BEHIND
 *   BLOCK_OF  u16 a half-word of each page: number of the block that begins there + 1
 *   PAGES     {i32 distance from base in pages, u32 RAM page, u32 decoded code}
 *   CASES     u32: blocks that jumps to a register's value are expected to go to
 *   QUEUE     i32: distances to be followed
 *   BLOCKS    see block*() below
 *   SLOTS     {u64 slot, i32 distance, u32 page of its access}
 */

import { decodedSlot, knownCode, NO_PAGE, ramPageOf, straddlingSlot } from "../code";
import * as op from "../opcodes";
import { area, SCRATCH } from "./area";
import {
  BLOCK_INSTRUCTIONS,
  REGION_BLOCKS,
  REGION_CASES,
  REGION_ENTRIES,
  REGION_INSTRUCTIONS,
  REGION_PAGES,
} from "./policy";

const MARKS: u32 = SCRATCH;
const MARKS_STRIDE: u32 = 2048;
const BLOCK_OF: u32 = MARKS + REGION_PAGES * MARKS_STRIDE;
const BLOCK_OF_STRIDE: u32 = 4096;
const PAGES: u32 = BLOCK_OF + REGION_PAGES * BLOCK_OF_STRIDE;
const PAGE_STRIDE: u32 = 16;
const CASES: u32 = PAGES + 0x200;
const QUEUE: u32 = PAGES + 0x400;
const QUEUE_LIMIT: u32 = 4096;
const BLOCKS: u32 = QUEUE + 4 * QUEUE_LIMIT;
const BLOCK_STRIDE: u32 = 32;
const BLOCK_LIMIT: u32 = 1024;
const SLOTS: u32 = BLOCKS + BLOCK_LIMIT * BLOCK_STRIDE;
const SLOT_STRIDE: u32 = 16;
/** The first byte of SCRATCH that is not used here. */
export const DISCOVER_END: u32 = SLOTS + 2 * REGION_INSTRUCTIONS * SLOT_STRIDE;

const VISITED: u32 = 1;
const LEADER: u32 = 2;
const ENTRY: u32 = 4;
/** It was seeded. */
const SEED: u32 = 8;
/** It comes after a call, or after an instruction that the interpreter executes. */
const BEHIND: u32 = 16;

const NONE: u32 = ~0;

let base: u64 = 0;
let scratch: u32 = 0;
let queueCount: u32 = 0;
let instructionTotal: u32 = 0;
let instructionLimit: u32 = 0;
let leaderTotal: u32 = 0;

export let pageCount: u32 = 0;
export let blockCount: u32 = 0;
export let slotCount: u32 = 0;
export let entryCount: u32 = 0;
/** Blocks that were seeded since control came there: the likely targets of indirect jumps. */
export let caseCount: u32 = 0;

// ---- what was found -----------------------------------------------------------------------------

export function pageDistance(page: u32): i32 {
  return load<i32>(scratch + PAGES + page * PAGE_STRIDE);
}

export function pageRam(page: u32): u32 {
  return load<u32>(scratch + PAGES + page * PAGE_STRIDE, 4);
}

function pageCode(page: u32): u32 {
  return load<u32>(scratch + PAGES + page * PAGE_STRIDE, 8);
}

function blockAddress(block: u32): u32 {
  return scratch + BLOCKS + block * BLOCK_STRIDE;
}

/** Where a block begins, from base. */
export function blockStart(block: u32): i32 {
  return load<i32>(blockAddress(block));
}

/** Its first instruction among all, and how many it has. */
export function blockFirst(block: u32): u32 {
  return load<u32>(blockAddress(block), 4);
}

export function blockLength(block: u32): u32 {
  return load<u32>(blockAddress(block), 8);
}

/** Number among the entries, or -1. */
export function blockEntry(block: u32): i32 {
  return load<i32>(blockAddress(block), 12);
}

/** Blocks where control may go from a block: successorCount of them. */
export function successor(block: u32, which: u32): u32 {
  if (hasCases(block)) return caseBlock(which);
  return load<u32>(blockAddress(block) + (which << 2), 16);
}

export function successorCount(block: u32): u32 {
  if (hasCases(block)) return caseCount;
  return load<u32>(blockAddress(block), 24);
}

/** Whether it ends with an indirect jump that may go to any of the cases. */
export function hasCases(block: u32): bool {
  return load<u32>(blockAddress(block), 28) !== 0;
}

export function caseBlock(which: u32): u32 {
  return load<u32>(scratch + CASES + (which << 2));
}

export function slotAt(index: u32): u64 {
  return load<u64>(scratch + SLOTS + index * SLOT_STRIDE);
}

export function slotDistance(index: u32): i32 {
  return load<i32>(scratch + SLOTS + index * SLOT_STRIDE, 8);
}

/** The page that is kept for an access: see locals.ts. */
export function slotPage(index: u32): u32 {
  return load<u32>(scratch + SLOTS + index * SLOT_STRIDE, 12);
}

export function setSlotPage(index: u32, page: u32): void {
  store<u32>(scratch + SLOTS + index * SLOT_STRIDE, page, 12);
}

/** The block that begins at `distance`, or NO_BLOCK. */
export const NO_BLOCK: u32 = NONE;

export function blockAt(distance: i32): u32 {
  const page = findPage(distance >> 12);
  if (page === NONE) return NO_BLOCK;
  const place = scratch + BLOCK_OF + page * BLOCK_OF_STRIDE + (<u32>distance & 0xffe);
  return <u32>load<u16>(place) - 1;
}

// ---- instructions -------------------------------------------------------------------------------

export function lengthOf(slot: u64): i32 {
  return <i32>slot & 6;
}

export function isNearBranch(opcode: u32): bool {
  return opcode >= op.OP_BEQ && opcode <= op.OP_BGEU;
}

export function isBranch(opcode: u32): bool {
  return opcode >= op.OP_BEQ && opcode <= op.OP_BGEU_FAR;
}

/** Where a branch or jump at `distance` goes. */
export function targetOf(slot: u64, distance: i32): i32 {
  const opcode = <u32>slot >>> 24;
  const imm = <i32>(slot >> 32);
  const isNear = isNearBranch(opcode) || opcode === op.OP_J || opcode === op.OP_JAL;
  return isNear ? distance + lengthOf(slot) + (imm >> 2) : distance + imm;
}

/**
 * Whether the interpreter must execute it: most CSRs, privileged instructions, traps, FENCE.I,
 * loads to x0.
 */
export function isForInterpreter(opcode: u32): bool {
  return opcode >= op.OP_FIRST_SLOW && opcode !== op.OP_CSR_INLINE &&
    (opcode < op.OP_LR_W || opcode > op.OP_FMA);
}

/**
 * CSRs that change neither what memory is mapped to nor how it may be accessed, and need neither pc
 * nor instret: fflags, frm, fcsr, sstatus, sie, stvec, sscratch .. sip, stimecmp, time.
 */
function isInlineCsr(csr: u32): bool {
  return (csr >= 1 && csr <= 3) || csr === 0x100 || csr === 0x104 || csr === 0x105 ||
    (csr >= 0x140 && csr <= 0x144) || csr === 0x14d || csr === 0xc01;
}

/** A decoded instruction as the translator sees it. */
function viewed(slot: u64): u64 {
  if (<u32>slot >>> 24 !== op.OP_CSR || !isInlineCsr(<u32>(slot >> 52))) return slot;
  return (slot & ~0xff00_0000) | (op.OP_CSR_INLINE << 24);
}

// ---- finding it ---------------------------------------------------------------------------------

/** Begins a region around the page of `pc`, of at most so many instructions. */
export function beginDiscovery(pc: u64, limit: u32): void {
  instructionLimit = limit;
  base = pc & ~0xfff;
  scratch = area();
  queueCount = 0;
  instructionTotal = 0;
  leaderTotal = 0;
  pageCount = 0;
  blockCount = 0;
  slotCount = 0;
  entryCount = 0;
  caseCount = 0;
  memory.fill(scratch + MARKS, 0, PAGES - MARKS);
}

/** A place where the region is to be entered. */
export function seed(pc: u64): void {
  const distance = pc - base;
  if (<i64>distance < -0x4000_0000 || <i64>distance > 0x4000_0000) return;
  follow(<i32>distance, ENTRY | SEED);
}

/** Whether there is anything to be translated. */
export function discover(): bool {
  for (let next: u32 = 0; next < queueCount; next++) {
    walk(load<i32>(scratch + QUEUE + (next << 2)));
  }
  for (let page: u32 = 0; page < pageCount; page++) makeBlocks(page);
  // Where there are too many, they are hardly those of one switch.
  if (caseCount > REGION_CASES) caseCount = 0;
  for (let block: u32 = 0; block < blockCount; block++) addSuccessors(block);
  return entryCount > 0;
}

function findPage(distance: i32): u32 {
  for (let page: u32 = 0; page < pageCount; page++) {
    if (pageDistance(page) === distance) return page;
  }
  return NONE;
}

/** The page at `distance` from base, taken into the region if it may be. */
function wantPage(distance: i32): u32 {
  const known = findPage(distance);
  if (known !== NONE || pageCount === REGION_PAGES) return known;
  const va = base + (<u64><i64>distance << 12);
  const code = knownCode(va);
  if (code === 0) return NONE;
  const ramPage = ramPageOf(va);
  if (ramPage === NO_PAGE) return NONE;
  const place = scratch + PAGES + pageCount * PAGE_STRIDE;
  store<i32>(place, distance);
  store<u32>(place, ramPage, 4);
  store<u32>(place, code, 8);
  return pageCount++;
}

function markAddress(page: u32, distance: i32): u32 {
  return scratch + MARKS + page * MARKS_STRIDE + ((<u32>distance & 0xffe) >> 1);
}

function mark(place: u32, bits: u32): void {
  store<u8>(place, <u32>load<u8>(place) | bits);
}

/** `distance` begins a block; it is followed later. */
function follow(distance: i32, bits: u32): void {
  const page = wantPage(distance >> 12);
  if (page === NONE) return;
  const place = markAddress(page, distance);
  const known = <u32>load<u8>(place);
  if ((known & LEADER) === 0) {
    if (leaderTotal >= REGION_BLOCKS || queueCount >= QUEUE_LIMIT) return;
    leaderTotal++;
    if ((known & VISITED) === 0) {
      store<i32>(scratch + QUEUE + (queueCount << 2), distance);
      queueCount++;
    }
  }
  mark(place, LEADER | bits);
}

/** The decoded instruction at `distance`; 0 if it was never executed. */
function fetch(page: u32, distance: i32): u64 {
  const pageOffset = <u32>distance & 0xffe;
  const slot = decodedSlot(pageCode(page), pageRam(page), pageOffset);
  if (slot !== 0 || pageOffset !== 0xffe) return viewed(slot);
  const next = wantPage((distance >> 12) + 1);
  return next === NONE ? 0 : viewed(straddlingSlot(pageRam(page), pageRam(next)));
}

/** Follows straight code from `start` on, and takes note of where else it goes. */
function walk(start: i32): void {
  let distance = start;
  for (let length: u32 = 0; instructionTotal < instructionLimit; length++) {
    const page = wantPage(distance >> 12);
    if (page === NONE) return;
    const place = markAddress(page, distance);
    if ((<u32>load<u8>(place) & VISITED) !== 0) return;
    const slot = fetch(page, distance);
    if (slot === 0) return;
    instructionTotal++;
    mark(place, VISITED);
    if (length === BLOCK_INSTRUCTIONS) {
      mark(place, LEADER);
      length = 0;
    }
    const opcode = <u32>slot >>> 24;
    const next = distance + lengthOf(slot);
    if (endsBlock(opcode)) {
      followEnd(slot, opcode, distance, next);
      return;
    }
    distance = next;
  }
}

function endsBlock(opcode: u32): bool {
  return isBranch(opcode) || (opcode >= op.OP_J && opcode <= op.OP_JALR) ||
    isForInterpreter(opcode);
}

function followEnd(slot: u64, opcode: u32, distance: i32, next: i32): void {
  if (isBranch(opcode)) {
    follow(targetOf(slot, distance), 0);
    follow(next, 0);
  } else if (opcode === op.OP_J || opcode === op.OP_J_FAR) {
    follow(targetOf(slot, distance), 0);
  } else if (opcode === op.OP_JAL || opcode === op.OP_JAL_FAR) {
    follow(targetOf(slot, distance), 0);
    follow(next, ENTRY | BEHIND);
  } else if (opcode === op.OP_JALR) {
    follow(next, ENTRY | BEHIND);
  } else if (opcode !== op.OP_JR && !isReturn(opcode)) {
    follow(next, ENTRY | BEHIND);
  }
}

function isReturn(opcode: u32): bool {
  return opcode === op.OP_MRET || opcode === op.OP_SRET || opcode === op.OP_ILLEGAL;
}

/** Makes the blocks that begin on a page, in order. */
function makeBlocks(page: u32): void {
  const marks = scratch + MARKS + page * MARKS_STRIDE;
  for (let half: u32 = 0; half < 2048; half++) {
    const bits = <u32>load<u8>(marks + half);
    if ((bits & (VISITED | LEADER)) !== (VISITED | LEADER)) continue;
    const distance = (pageDistance(page) << 12) + <i32>(half << 1);
    makeBlock(page, distance, bits);
  }
}

function makeBlock(page: u32, start: i32, marks: u32): void {
  if (blockCount === BLOCK_LIMIT || slotCount >= 2 * REGION_INSTRUCTIONS - 64) return;
  const address = blockAddress(blockCount);
  memory.fill(address, 0, BLOCK_STRIDE);
  store<i32>(address, start);
  store<u32>(address, slotCount, 4);
  const isEntry = (marks & ENTRY) !== 0 && entryCount < REGION_ENTRIES;
  store<i32>(address, isEntry ? entryCount++ : -1, 12);
  if ((marks & (SEED | BEHIND)) === SEED) addCase(blockCount);
  let distance = start;
  let length: u32 = 0;
  while (true) {
    const here = findPage(distance >> 12);
    if (here === NONE) break;
    const bits = <u32>load<u8>(markAddress(here, distance));
    if ((bits & VISITED) === 0 || (length > 0 && (bits & LEADER) !== 0)) break;
    const slot = fetch(here, distance);
    const place = scratch + SLOTS + slotCount * SLOT_STRIDE;
    store<u64>(place, slot);
    store<i32>(place, distance, 8);
    slotCount++;
    length++;
    distance += lengthOf(slot);
    if (endsBlock(<u32>slot >>> 24) || length > BLOCK_INSTRUCTIONS) break;
  }
  store<u32>(address, length, 8);
  blockCount++;
  const place = scratch + BLOCK_OF + page * BLOCK_OF_STRIDE + (<u32>start & 0xffe);
  store<u16>(place, <u16>blockCount);
}

function addCase(block: u32): void {
  if (caseCount <= REGION_CASES) store<u32>(scratch + CASES + (caseCount++ << 2), block);
}

/** Where the block ends, from base: where control goes if nothing else is said. */
export function blockEnd(block: u32): i32 {
  const last = blockFirst(block) + blockLength(block) - 1;
  return slotDistance(last) + lengthOf(slotAt(last));
}

/** Edges within the region; jumps to places outside it have none. */
function addSuccessors(block: u32): void {
  const last = blockFirst(block) + blockLength(block) - 1;
  const slot = slotAt(last);
  const opcode = <u32>slot >>> 24;
  const distance = slotDistance(last);
  if (isBranch(opcode)) {
    addSuccessor(block, targetOf(slot, distance));
    addSuccessor(block, blockEnd(block));
  } else if (opcode >= op.OP_J && opcode <= op.OP_JAL_FAR) {
    addSuccessor(block, targetOf(slot, distance));
  } else if (isSwitch(slot, opcode)) {
    store<u32>(blockAddress(block), caseCount > 0 ? 1 : 0, 28);
  } else if (!endsBlock(opcode)) {
    addSuccessor(block, blockEnd(block));
  }
}

/** A jump to what is in a register, and no return. */
function isSwitch(slot: u64, opcode: u32): bool {
  const rs1 = (<u32>slot >> 11) & 31;
  return opcode === op.OP_JR && rs1 !== 1 && rs1 !== 5;
}

function addSuccessor(block: u32, distance: i32): void {
  const target = blockAt(distance);
  if (target === NO_BLOCK) return;
  const address = blockAddress(block);
  const count = load<u32>(address, 24);
  if (count === 1 && load<u32>(address, 16) === target) return;
  store<u32>(address + (count << 2), target, 16);
  store<u32>(address, count + 1, 24);
}
