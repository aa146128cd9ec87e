/**
 * The regions that exist: which pages they are made of, where they may be entered, when they go.
 *
 * A region is one WebAssembly function
 *
 *   f(hart: i32, handle: i32, base: i64, left: i32, x1 ... x31: i64, hops: i32): i32
 *
 * in the module's table at its index; it returns LEFT_*. Nothing in it depends on the hart, on where
 * the code lies in memory, nor on the guest's address of it: `base` is the guest's address of its
 * first page, and all else is relative to that. A handle is (index << 12) | number of the entry.
 *
 *   free --create--> live --drop--> free
 *                    live --retire--> retired --next epoch--> free
 *
 * A live region stands in the list of each of its RAM pages, and its entries are patched into the
 * decoded code of those pages (OP_TRANSLATED), where the interpreter finds them. A region is
 * dropped when FENCE.I finds one of its pages written, with all others when the cache is full, and
 * when decoded code is dropped altogether: never while one runs, since none of that happens in
 * generated code. The last validation of a region (its pages are where its base says) holds for an
 * epoch (state.ts).
 */

import { patchSlot, ramPageOf, unpatchSlot } from "../code";
import { bumpEpoch, getPriv, hart, HART_EPOCH } from "../state";
import { removeRegion } from "../board/env";
import { forgetJump, rememberJump } from "./jump_cache";
import { area, HEAT, PAGE_HEADS, PAGE_LIST, REGIONS, STATE } from "./area";
import {
  codeBytesLimit,
  MISSED_PLACES,
  MISSES_GROW,
  MISSES_OF_A_REBUILD,
  REBUILDS,
  REGION_ENTRIES,
  REGION_SLOTS,
  REGION_PAGES,
  regionLimit,
  RETIRED_LIMIT,
} from "./policy";
import { countStatistic, setStatistic, STAT_BYTES, STAT_DROPPED, STAT_REGIONS } from "./statistics";

/** The first index: below are the module's own functions. */
export const FIRST_INDEX: u32 = 64;
export const ENTRY_BITS: u32 = 12;

const REGION_STRIDE: u32 = 1024;
/** FREE, LIVE or RETIRED. */
const LIFE: u32 = 0;
const PAGE_COUNT: u32 = 4;
const BYTES: u32 = 8;
const ENTRY_COUNT: u32 = 12;
const VERIFIED_EPOCH: u32 = 16;
const VERIFIED_PRIV: u32 = 20;
const VERIFIED_BASE: u32 = 24;
/** {i32 distance from base in pages, u32 RAM page} */
const PAGES: u32 = 32;
/** u32: the next link of that page's list. Link (index - FIRST_INDEX) * REGION_PAGES + page + 1. */
const LINKS: u32 = PAGES + REGION_PAGES * 8;
/** i32: guest's distance of the entry from base. */
const ENTRIES: u32 = LINKS + REGION_PAGES * 4;
/** i32: places that it was left for, distances from base. */
const MISSED: u32 = ENTRIES + REGION_ENTRIES * 4;
const MISSED_COUNT: u32 = MISSED + MISSED_PLACES * 4;
/** How often it was left for such a place; how many regions it replaces. */
const MISSES: u32 = MISSED_COUNT + 4;
const GENERATION: u32 = MISSED_COUNT + 8;

const FREE: u32 = 0;
const LIVE: u32 = 1;
/** Replaced, but generated code may know its entries for the rest of the epoch: they still work. */
const RETIRED: u32 = 2;

// Words of STATE.
const LIVE_COUNT: u32 = 0;
const CODE_BYTES: u32 = 4;
const PAGE_LIST_COUNT: u32 = 8;
const CURSOR: u32 = 12;
/** Retired regions, and their indices. */
const RETIRED_COUNT: u32 = 20;
/** The epoch that they belong to. */
const RETIRED_EPOCH: u32 = 24;
const RETIRED_LIST: u32 = 0x100;

const PAGE_LIST_LIMIT: u32 = 16384;

/** What `enter` found: the base to call the region with. */
export let entryBase: u64 = 0;

function recordOf(index: u32): u32 {
  return area() + REGIONS + (index - FIRST_INDEX) * REGION_STRIDE;
}

function stateWord(offset: u32): u32 {
  return load<u32>(area() + STATE + offset);
}

function setStateWord(offset: u32, value: u32): void {
  store<u32>(area() + STATE + offset, value);
}

function headAddress(ramPage: u32): u32 {
  return area() + PAGE_HEADS + (ramPage << 2);
}

function recordOfLink(link: u32): u32 {
  return area() + REGIONS + (link - 1) / REGION_PAGES * REGION_STRIDE;
}

function nextLink(link: u32): u32 {
  return recordOfLink(link) + LINKS + ((link - 1) % REGION_PAGES << 2);
}

function pageOf(record: u32, page: u32): u32 {
  return record + PAGES + (page << 3);
}

// ---- making one ---------------------------------------------------------------------------------

/** Room for one more region: drops all if there is none. */
export function makeRoom(): void {
  releaseRetired();
  if (
    stateWord(LIVE_COUNT) >= regionLimit || stateWord(CODE_BYTES) >= codeBytesLimit ||
    stateWord(PAGE_LIST_COUNT) >= PAGE_LIST_LIMIT - REGION_PAGES
  ) {
    dropAllRegions();
  }
}

/** A free index. */
export function nextIndex(): u32 {
  let index = stateWord(CURSOR);
  do {
    index = index + 1 < REGION_SLOTS ? index + 1 : 0;
  } while (load<u32>(recordOf(index + FIRST_INDEX), LIFE) !== FREE);
  setStateWord(CURSOR, index);
  return index + FIRST_INDEX;
}

/**
 * Begins the record of a region, the `generation`th of its kind; its pages and entries are added
 * next.
 */
export function beginRegion(index: u32, bytes: u32, generation: u32): void {
  const record = recordOf(index);
  memory.fill(record, 0, REGION_STRIDE);
  store<u32>(record, LIVE, LIFE);
  store<u32>(record, bytes, BYTES);
  store<u32>(record, generation, GENERATION);
  setStateWord(LIVE_COUNT, stateWord(LIVE_COUNT) + 1);
  setStateWord(CODE_BYTES, stateWord(CODE_BYTES) + bytes);
  publishSizes();
}

export function addPage(index: u32, distance: i32, ramPage: u32): void {
  const record = recordOf(index);
  const page = load<u32>(record, PAGE_COUNT);
  store<u32>(record, page + 1, PAGE_COUNT);
  store<i32>(pageOf(record, page), distance);
  store<u32>(pageOf(record, page), ramPage, 4);
  const head = headAddress(ramPage);
  if (load<u32>(head) === 0) {
    const count = stateWord(PAGE_LIST_COUNT);
    store<u32>(area() + PAGE_LIST + (count << 2), ramPage);
    setStateWord(PAGE_LIST_COUNT, count + 1);
  }
  const link = (index - FIRST_INDEX) * REGION_PAGES + page + 1;
  store<u32>(nextLink(link), load<u32>(head));
  store<u32>(head, link);
}

/** Adds the entry at `distance` from the base; entries are numbered in this order. */
export function addEntry(index: u32, distance: i32): void {
  const record = recordOf(index);
  const entry = load<u32>(record, ENTRY_COUNT);
  store<u32>(record, entry + 1, ENTRY_COUNT);
  store<i32>(record + (entry << 2), distance, ENTRIES);
  patchSlot(ramPageAt(record, distance), <u32>distance & 0xffe, (index << ENTRY_BITS) | entry);
}

function ramPageAt(record: u32, distance: i32): u32 {
  const count = load<u32>(record, PAGE_COUNT);
  for (let page: u32 = 0; page < count; page++) {
    if (load<i32>(pageOf(record, page)) === distance >> 12) {
      return load<u32>(pageOf(record, page), 4);
    }
  }
  return ~0;
}

// ---- finding one --------------------------------------------------------------------------------

/** Whether any region is made of this RAM page. */
export function hasRegions(ramPage: u32): bool {
  return load<u32>(headAddress(ramPage)) !== 0;
}

/** The handle of an entry at that place, 0 if there is none. */
export function findEntry(ramPage: u32, pageOffset: u32): u32 {
  for (let link = load<u32>(headAddress(ramPage)); link !== 0; link = load<u32>(nextLink(link))) {
    const record = recordOfLink(link);
    const page = (link - 1) % REGION_PAGES;
    const distance = load<i32>(pageOf(record, page)) * 4096 + <i32>pageOffset;
    const count = load<u32>(record, ENTRY_COUNT);
    for (let entry: u32 = 0; entry < count; entry++) {
      if (load<i32>(record + (entry << 2), ENTRIES) === distance) {
        return (((link - 1) / REGION_PAGES + FIRST_INDEX) << ENTRY_BITS) | entry;
      }
    }
  }
  return 0;
}

/**
 * Whether the entry may be taken for code at `pc`, in this privilege, as memory is mapped now. Then
 * entryBase is set, and generated code will find the entry by itself.
 */
export function enter(handle: u32, pc: u64): bool {
  const record = recordOf(handle >> ENTRY_BITS);
  const entry = handle & ((1 << ENTRY_BITS) - 1);
  const base = pc - <u64><i64>load<i32>(record + (entry << 2), ENTRIES);
  const epoch = load<u32>(hart, HART_EPOCH);
  if (
    load<u32>(record, VERIFIED_EPOCH) !== epoch || load<u64>(record, VERIFIED_BASE) !== base ||
    load<u32>(record, VERIFIED_PRIV) !== getPriv()
  ) {
    if (!verify(record, base)) return false;
    store<u32>(record, epoch, VERIFIED_EPOCH);
    store<u64>(record, base, VERIFIED_BASE);
    store<u32>(record, getPriv(), VERIFIED_PRIV);
  }
  rememberJump(pc, base, handle);
  entryBase = base;
  return true;
}

function verify(record: u32, base: u64): bool {
  const count = load<u32>(record, PAGE_COUNT);
  for (let page: u32 = 0; page < count; page++) {
    const va = base + (<u64><i64>load<i32>(pageOf(record, page)) << 12);
    if (ramPageOf(va) !== load<u32>(pageOf(record, page), 4)) return false;
  }
  return true;
}

// ---- growing ------------------------------------------------------------------------------------

/** Takes note that a region, which may grow, was left for `pc`; whether to make it anew now. */
export function noteMiss(index: u32, base: u64, pc: u64): bool {
  const record = recordOf(index);
  const distance = <i64>(pc - base);
  if (distance < -0x100000 || distance > 0x100000) return false;
  const count = load<u32>(record, MISSED_COUNT);
  let place: u32 = 0;
  while (place < count && load<i32>(record + (place << 2), MISSED) !== <i32>distance) place++;
  if (place === count && count < MISSED_PLACES) {
    store<i32>(record + (count << 2), <i32>distance, MISSED);
    store<u32>(record, count + 1, MISSED_COUNT);
  }
  const misses = load<u32>(record, MISSES) + 1;
  store<u32>(record, misses, MISSES);
  return misses >= MISSES_OF_A_REBUILD << min(load<u32>(record, GENERATION), MISSES_GROW);
}

/** Whether the region may be made anew once more. */
export function mayGrow(index: u32): bool {
  const record = recordOf(index);
  return load<u32>(record, LIFE) === LIVE && load<u32>(record, GENERATION) < REBUILDS;
}

/** Whether `pc` is on one of the region's pages. */
export function hasPage(index: u32, base: u64, pc: u64): bool {
  const record = recordOf(index);
  const distance = <i64>(pc - base) >> 12;
  const count = load<u32>(record, PAGE_COUNT);
  for (let page: u32 = 0; page < count; page++) {
    if (<i64>load<i32>(pageOf(record, page)) === distance) return true;
  }
  return false;
}

/** What a region was made for, and left for: entries first, distances from base. */
export function wantedCount(index: u32): u32 {
  const record = recordOf(index);
  return load<u32>(record, ENTRY_COUNT) + load<u32>(record, MISSED_COUNT);
}

export function wantedPlace(index: u32, place: u32): i32 {
  const record = recordOf(index);
  const entries = load<u32>(record, ENTRY_COUNT);
  if (place < entries) return load<i32>(record + (place << 2), ENTRIES);
  return load<i32>(record + ((place - entries) << 2), MISSED);
}

export function generationOf(index: u32): u32 {
  return load<u32>(recordOf(index), GENERATION);
}

// ---- dropping -----------------------------------------------------------------------------------

/** Drops the regions of a RAM page. */
export function dropRegionsOf(ramPage: u32): void {
  while (true) {
    const link = load<u32>(headAddress(ramPage));
    if (link === 0) return;
    dropRegion((link - 1) / REGION_PAGES + FIRST_INDEX);
  }
}

/** RAM pages that have, or had, regions: `pageAt` 0 .. pageListCount() - 1. */
export function pageListCount(): u32 {
  return stateWord(PAGE_LIST_COUNT);
}

export function pageAt(position: u32): u32 {
  return load<u32>(area() + PAGE_LIST + (position << 2));
}

/** Takes a page without regions out of the list; the last one takes its place. */
export function forgetPage(position: u32): void {
  const last = stateWord(PAGE_LIST_COUNT) - 1;
  store<u32>(area() + PAGE_LIST + (position << 2), pageAt(last));
  setStateWord(PAGE_LIST_COUNT, last);
}

export function dropAllRegions(): void {
  bumpEpoch();
  releaseRetired();
  if (stateWord(LIVE_COUNT) === 0) return;
  for (let index = FIRST_INDEX; index < FIRST_INDEX + REGION_SLOTS; index++) {
    if (load<u32>(recordOf(index), LIFE) === LIVE) dropRegion(index);
  }
  setStateWord(PAGE_LIST_COUNT, 0);
  memory.fill(area() + HEAT, 0, 0x10000);
}

/** Drops a region whose code changed: nothing goes on in it any more. */
export function dropRegion(index: u32): void {
  takeOut(index);
  store<u32>(recordOf(index), FREE, LIFE);
  removeRegion(index);
  bumpEpoch();
}

/**
 * Drops a region that was made anew. What other regions know of its entries may stay until the next
 * epoch, which spares them to look for all that they know.
 */
export function retireRegion(index: u32): void {
  takeOut(index);
  const record = recordOf(index);
  const base = load<u64>(record, VERIFIED_BASE);
  const entries = load<u32>(record, ENTRY_COUNT);
  for (let entry: u32 = 0; entry < entries; entry++) {
    const distance = load<i32>(record + (entry << 2), ENTRIES);
    forgetJump(base + <u64><i64>distance, (index << ENTRY_BITS) | entry);
  }
  store<u32>(record, RETIRED, LIFE);
  if (stateWord(RETIRED_COUNT) === RETIRED_LIMIT) bumpEpoch();
  releaseRetired();
  setStateWord(RETIRED_EPOCH, load<u32>(hart, HART_EPOCH));
  const count = stateWord(RETIRED_COUNT);
  setStateWord(RETIRED_LIST + (count << 2), index);
  setStateWord(RETIRED_COUNT, count + 1);
}

/** Whether there are any: what changes code must begin an epoch then. */
export function hasRetired(): bool {
  return stateWord(RETIRED_COUNT) !== 0;
}

/** Frees the retired regions of an epoch that is over: nobody knows them any more. */
function releaseRetired(): void {
  const count = stateWord(RETIRED_COUNT);
  if (count === 0 || stateWord(RETIRED_EPOCH) === load<u32>(hart, HART_EPOCH)) return;
  for (let i: u32 = 0; i < count; i++) {
    const index = stateWord(RETIRED_LIST + (i << 2));
    store<u32>(recordOf(index), FREE, LIFE);
    removeRegion(index);
  }
  setStateWord(RETIRED_COUNT, 0);
}

/** Takes a live region out of the lists and out of the decoded code. */
function takeOut(index: u32): void {
  const record = recordOf(index);
  const entries = load<u32>(record, ENTRY_COUNT);
  for (let entry: u32 = 0; entry < entries; entry++) {
    const distance = load<i32>(record + (entry << 2), ENTRIES);
    const handle = (index << ENTRY_BITS) | entry;
    unpatchSlot(ramPageAt(record, distance), <u32>distance & 0xffe, handle);
  }
  const pages = load<u32>(record, PAGE_COUNT);
  for (let page: u32 = 0; page < pages; page++) {
    const link = (index - FIRST_INDEX) * REGION_PAGES + page + 1;
    unlink(load<u32>(pageOf(record, page), 4), link);
  }
  setStateWord(LIVE_COUNT, stateWord(LIVE_COUNT) - 1);
  setStateWord(CODE_BYTES, stateWord(CODE_BYTES) - load<u32>(record, BYTES));
  publishSizes();
  countStatistic(STAT_DROPPED);
}

function unlink(ramPage: u32, wanted: u32): void {
  let place = headAddress(ramPage);
  while (true) {
    const link = load<u32>(place);
    if (link === 0) return;
    if (link === wanted) {
      store<u32>(place, load<u32>(nextLink(link)));
      return;
    }
    place = nextLink(link);
  }
}

function publishSizes(): void {
  setStatistic(STAT_REGIONS, stateWord(LIVE_COUNT));
  setStatistic(STAT_BYTES, stateWord(CODE_BYTES));
}
