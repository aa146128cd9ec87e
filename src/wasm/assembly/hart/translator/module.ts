/**
 * The module around a region's function, and the whole of a translation.
 *
 *   types     f: the region's function; and those of the helpers
 *   imports   memory, the table, the region's index in it (a constant), helpers
 *   globals   pages that are kept for accesses
 *   elements  f into the table at that index
 *   hints     branches that are hardly ever taken
 *   code      f
 *
 * Its bytes depend on nothing but the guest's code and the size of the memory, so V8, which keeps
 * compiled modules by their bytes, compiles what several harts or machines translate but once.
 */

import { hostTicks, installRegion } from "../board/env";
import { area, MODULE } from "./area";
import { emitFunction, emitLookup } from "./blocks";
import * as d from "./discover";
import { instructionLimit } from "./policy";
import {
  addEntry,
  addPage,
  beginRegion,
  generationOf,
  makeRoom,
  nextIndex,
  retireRegion,
  wantedCount,
  wantedPlace,
} from "./regions";
import { writeRegionType } from "./locals";
import { writePageGlobals } from "./memory_access";
import {
  addStatistic,
  countStatistic,
  STAT_COMPILE_US,
  STAT_FAILED,
  STAT_INSTRUCTIONS_MADE,
  STAT_MADE,
  STAT_MAKE_TICKS,
} from "./statistics";
import { hasFailed } from "./structure";
import * as w from "./writer";

// Functions by their index: imports in this order, then f. The host gives them under the names
// "a", "b", ... of the module "f": see translator.ts.
export const IMPORT_READ_PAGE: u32 = 0;
export const IMPORT_WRITE_PAGE: u32 = 1;
export const IMPORT_MULH: u32 = 2;
export const IMPORT_MULHSU: u32 = 3;
export const IMPORT_MULHU: u32 = 4;
export const IMPORT_OR_COMBINE: u32 = 5;
export const IMPORT_REVERSE_BYTES: u32 = 6;
export const IMPORT_FLOAT: u32 = 7;
export const IMPORT_FMA: u32 = 8;
export const IMPORT_ATOMIC: u32 = 9;
export const IMPORT_CSR: u32 = 10;
export const IMPORT_FIND: u32 = 11;
export const IMPORT_LEAVE: u32 = 12;
const IMPORT_COUNT: u32 = 13;
// The module's own functions.
export const LOOKUP_READ: u32 = IMPORT_COUNT;
export const LOOKUP_WRITE: u32 = IMPORT_COUNT + 1;
const REGION: u32 = IMPORT_COUNT + 2;

/** Globals that are imported: the region's index. */
export const GLOBAL_IMPORTS: u32 = 1;

/** Of the region's function. */
export const REGION_TYPE: u32 = 0;
const TYPE_PAGE: u32 = 1; // (i64, i32) -> i32
const TYPE_BINARY: u32 = 2; // (i64, i64) -> i64
const TYPE_UNARY: u32 = 3; // i64 -> i64
const TYPE_FLOAT: u32 = 4; // i32 -> i32
const TYPE_ATOMIC: u32 = 5; // (i32, i32) -> i32
const TYPE_FIND: u32 = 6; // i64 -> i32

/** Translates a region around `pc`, where code was just executed. */
export function translate(pc: u64): void {
  d.beginDiscovery(pc, instructionLimit(0));
  d.seed(pc);
  make(0, 0);
}

/**
 * Makes a region anew, at `base`, with all the places it was entered at and left for. Those that are
 * entries for other reasons are found again.
 */
export function rebuild(index: u32, base: u64): void {
  const count = wantedCount(index);
  const generation = generationOf(index) + 1;
  d.beginDiscovery(base + <u64><i64>wantedPlace(index, 0), instructionLimit(generation));
  // The last ones first: where not all of it fits, what is new is what is hot.
  for (let place = count; place > 0; place--) {
    d.seed(base + <u64><i64>wantedPlace(index, place - 1));
  }
  make(generation, index);
}

/** Makes what was seeded, in the place of the region `replaced`, if that is not 0. */
function make(generation: u32, replaced: u32): void {
  const begin = hostTicks();
  if (!makeRegion(generation, replaced)) countStatistic(STAT_FAILED);
  addStatistic(STAT_MAKE_TICKS, <u64> (hostTicks() - begin));
}

function makeRegion(generation: u32, replaced: u32): bool {
  if (!d.discover()) return false;
  emitFunction();
  if (hasFailed || !w.hasRoom()) return false;
  const length = writeModule();
  // Only now: an entry that is taken out looks as if nothing was ever executed there.
  if (replaced !== 0) retireRegion(replaced);
  makeRoom();
  const index = nextIndex();
  const us = installRegion(area() + MODULE, length, index);
  if (us < 0) return false;
  beginRegion(index, length, generation);
  for (let page: u32 = 0; page < d.pageCount; page++) {
    addPage(index, d.pageDistance(page), d.pageRam(page));
  }
  for (let block: u32 = 0; block < d.blockCount; block++) {
    if (d.blockEntry(block) >= 0) addEntry(index, d.blockStart(block));
  }
  countStatistic(STAT_MADE);
  addStatistic(STAT_INSTRUCTIONS_MADE, d.slotCount);
  addStatistic(STAT_COMPILE_US, us);
  return true;
}

// ---- sections -----------------------------------------------------------------------------------

const CUSTOM: u32 = 0;
const TYPES: u32 = 1;
const IMPORTS: u32 = 2;
const FUNCTIONS: u32 = 3;
const GLOBALS: u32 = 6;
const ELEMENTS: u32 = 9;
const CODE: u32 = 10;

/** Begins a section; where its size goes. */
function beginSection(id: u32): u32 {
  w.byte(id);
  const size = w.at;
  w.writeAt(size + 5);
  return size;
}

function endSection(size: u32): void {
  w.unsignedPadded(size, w.at - size - 5);
}

function writeModule(): u32 {
  const bodyLength = w.bodyLength();
  const start = area() + MODULE;
  w.writeAt(start);
  store<u64>(start, 0x0000_0001_6d73_6100); // \0asm, version 1
  w.writeAt(start + 8);
  writeTypes();
  writeImports();
  const functions = beginSection(FUNCTIONS);
  w.unsigned(3);
  w.unsigned(TYPE_PAGE);
  w.unsigned(TYPE_PAGE);
  w.unsigned(REGION_TYPE);
  endSection(functions);
  const globals = beginSection(GLOBALS);
  writePageGlobals();
  endSection(globals);
  writeElements();
  writeHints();
  const code = beginSection(CODE);
  w.unsigned(3);
  // The region's body is where all bodies are made: it is moved behind first.
  const region = w.at + LOOKUP_ROOM;
  memory.copy(region, w.bodyAddress(), bodyLength);
  writeLookup(false);
  writeLookup(true);
  w.unsigned(bodyLength);
  memory.copy(w.at, region, bodyLength);
  w.writeAt(w.at + bodyLength);
  endSection(code);
  return w.at - start;
}

/** More than two lookups take. */
const LOOKUP_ROOM: u32 = 512;

function writeLookup(isWrite: bool): void {
  const place = w.at;
  emitLookup(isWrite);
  const length = w.bodyLength();
  w.writeAt(place);
  w.unsigned(length);
  memory.copy(w.at, w.bodyAddress(), length);
  w.writeAt(w.at + length);
}

function writeTypes(): void {
  const size = beginSection(TYPES);
  w.unsigned(7);
  writeRegionType();
  writeType(2, w.I64, w.I32, w.I32);
  writeType(2, w.I64, w.I64, w.I64);
  writeType(1, w.I64, 0, w.I64);
  writeType(1, w.I32, 0, w.I32);
  writeType(2, w.I32, w.I32, w.I32);
  writeType(1, w.I64, 0, w.I32);
  endSection(size);
}

function writeType(count: u32, first: u32, second: u32, result: u32): void {
  w.byte(0x60);
  w.unsigned(count);
  w.byte(first);
  if (count > 1) w.byte(second);
  w.unsigned(1);
  w.byte(result);
}

function writeImports(): void {
  const size = beginSection(IMPORTS);
  w.unsigned(3 + IMPORT_COUNT);
  writeName(0x65, 0x6d); // "e" "m": memory, shared
  w.byte(2);
  w.byte(3);
  // It never grows, and V8 keeps a size that can't change in a register.
  w.unsigned(memory.size());
  w.unsigned(memory.size());
  writeName(0x65, 0x74); // "e" "t": table of functions
  w.byte(1);
  w.byte(0x70);
  w.byte(0);
  w.unsigned(0);
  writeName(0x65, 0x69); // "e" "i": index
  w.byte(3);
  w.byte(w.I32);
  w.byte(0);
  for (let index: u32 = 0; index < IMPORT_COUNT; index++) {
    writeName(0x66, 0x61 + index); // "f" "a" ...
    w.byte(0);
    w.unsigned(typeOfImport(index));
  }
  endSection(size);
}

function typeOfImport(index: u32): u32 {
  if (index <= IMPORT_WRITE_PAGE) return TYPE_PAGE;
  if (index <= IMPORT_MULHU) return TYPE_BINARY;
  if (index <= IMPORT_REVERSE_BYTES) return TYPE_UNARY;
  if (index === IMPORT_FIND) return TYPE_FIND;
  if (index === IMPORT_LEAVE) return REGION_TYPE;
  return index === IMPORT_ATOMIC ? TYPE_ATOMIC : TYPE_FLOAT;
}

/** Names of one character each. */
function writeName(module: u32, name: u32): void {
  w.byte(1);
  w.byte(module);
  w.byte(1);
  w.byte(name);
}

function writeElements(): void {
  const size = beginSection(ELEMENTS);
  w.unsigned(1);
  w.unsigned(0); // active, table 0
  w.byte(0x23); // global.get
  w.unsigned(0);
  w.byte(0x0b);
  w.unsigned(1);
  w.unsigned(REGION);
  endSection(size);
}

/** "metadata.code.branch_hint" (WebAssembly, branch hinting): offsets in the body, 0 for unlikely. */
function writeHints(): void {
  const count = w.hintCount();
  if (count === 0) return;
  const size = beginSection(CUSTOM);
  w.unsigned(25);
  store<u64>(w.at, 0x617461_646174656d); // "metadata"
  store<u64>(w.at + 8, 0x72622e65_646f632e); // ".code.br"
  store<u64>(w.at + 16, 0x6e69685f_68636e61); // "anch_hin"
  store<u8>(w.at + 24, 0x74);
  w.writeAt(w.at + 25);
  w.unsigned(1);
  w.unsigned(REGION);
  w.unsigned(count);
  for (let index: u32 = 0; index < count; index++) {
    w.unsigned(w.hintOffset(index));
    w.unsigned(1);
    w.unsigned(0);
  }
  endSection(size);
}
