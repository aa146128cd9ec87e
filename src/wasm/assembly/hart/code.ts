/**
 * Decoded code: where it lies, when it goes stale.
 *
 * The hart's DECODE area holds
 *
 *   + 0        page table of the cache: u16 a RAM page, slot number + 1, 0 if none
 *   + OWNERS   u32 a slot: RAM page number + 1, 0 if the slot is free
 *   + LONE     a lone instruction: one that straddles two pages, or on a page whose protection
 *              is not the same all over; it is decoded anew each time
 *   + SLOTS    SLOT_COUNT slots of SLOT_STRIDE bytes: 2048 decoded instructions of 8 bytes, one for
 *              every 2 bytes of code, then OP_PAGE_END
 *
 * A place where translated code may be entered holds OP_TRANSLATED instead of its instruction.
 *
 * Slots are taken round robin. Fetch TLBs point into slots, so they are emptied when a slot changes
 * its page.
 *
 * Coherence. CODE_FLAGS has a byte for each RAM page: 1 while a hart may hold decoded code of it, 2
 * from the first write after that. A page with flag 1 is in no write TLB, so its next store is
 * noticed, and CODE_WRITES_WORD with it. FENCE.I drops what was written since. With several harts a
 * store by one must be seen by all, whenever it happens: there any page that enters a write TLB
 * gets flag 2 for good, and FENCE.I drops all such pages.
 *
 * Whoever writes RAM by other ways (DMA) first writes, then looks at the flag; a hart first sets
 * the flag, then reads the code: one of the two sees the other.
 */

import { decode, makeSlot } from "./decode";
import { clearEvent, event, EVENT_EXCEPTION } from "./event";
import {
  CODE_FLAGS,
  CODE_WRITES_WORD,
  DECODE_BASE,
  DECODE_STRIDE,
  MAX_RAM_PAGES,
  RAM_BASE,
  RAM_GPA,
} from "./layout";
import { ramAddress, translateFetch } from "./mmu";
import { OP_PAGE_END, OP_TRANSLATED } from "./opcodes";
import { isPmpUniform } from "./pmp";
import {
  bumpEpoch,
  codeWrites,
  FETCH_TLB_BASE,
  flushFetchTlb,
  flushWriteTlb,
  getPriv,
  hart,
  HART_CODE_WRITES_SEEN,
  hartId,
  isSmp,
  noteCodePage,
  TLB_BYTES,
  TLB_MASK,
  TLB_SHIFT,
} from "./state";
import {
  dropAllRegions,
  dropRegionsOf,
  findEntry,
  forgetPage,
  hasRegions,
  hasRetired,
  pageAt,
  pageListCount,
} from "./translator/regions";

const FLAG_DECODED: u32 = 1;
const FLAG_WRITTEN: u32 = 2;

const PAGE_CODE_BYTES: u32 = 2048 * 8;
const OWNERS: u32 = MAX_RAM_PAGES * 2;
const LONE: u32 = OWNERS + 0x2000;
const SLOTS: u32 = LONE + 64;
/** Not a multiple of 4 KiB, so that slots do not fight for the same cache sets. */
const SLOT_STRIDE: u32 = PAGE_CODE_BYTES + 64;
const SLOT_COUNT: u32 = (DECODE_STRIDE - SLOTS) / SLOT_STRIDE;

/** The slot that is taken next. */
let nextSlot: u32 = 0;

function decodeBase(): u32 {
  return DECODE_BASE + hartId * DECODE_STRIDE;
}

function slotAddress(index: u32): u32 {
  return decodeBase() + SLOTS + index * SLOT_STRIDE;
}

function ownerAddress(index: u32): u32 {
  return decodeBase() + OWNERS + (index << 2);
}

function tableEntry(ramPage: u32): u32 {
  return decodeBase() + (ramPage << 1);
}

/** Address of the fetch TLB of the current privilege. */

export function currentFetchTlb(): u32 {
  return hart + FETCH_TLB_BASE + getPriv() * TLB_BYTES;
}

/**
 * Address of the decoded instruction at `pc`, or 0 with an exception raised. Fills the fetch TLB,
 * so that the loop finds the page by itself next time.
 */
export function findCode(pc: u64): u32 {
  const entry = currentFetchTlb() + (<u32>(pc >> TLB_SHIFT) & TLB_MASK);
  if ((pc & ~0xfff) === load<u64>(entry)) return load<u32>(entry, 8) + ((<u32>pc & 0xffe) << 2);
  const gpa = translateFetch(pc);
  if (event === EVENT_EXCEPTION) return 0;
  if (!isPmpUniform(gpa & ~0xfff)) return decodeLone(pc, gpa);
  const code = codeOfPage(<u32> ((gpa - RAM_GPA) >> 12));
  store<u64>(entry, pc & ~0xfff);
  store<u32>(entry, code, 8);
  return code + ((<u32> pc & 0xffe) << 2);
}

/** First decoded instruction of a RAM page, which gets a slot if it has none. */
function codeOfPage(ramPage: u32): u32 {
  const known = load<u16>(tableEntry(ramPage));
  if (known !== 0) return slotAddress(known - 1);

  const index = nextSlot;
  nextSlot = index + 1 < SLOT_COUNT ? index + 1 : 0;
  if (dropSlot(index)) flushFetchTlb();
  const slot = slotAddress(index);
  memory.fill(slot, 0, PAGE_CODE_BYTES);
  store<u64>(slot + PAGE_CODE_BYTES, makeSlot(OP_PAGE_END, 0, 0, 0, 0, 0));
  store<u32>(ownerAddress(index), ramPage + 1);
  store<u16>(tableEntry(ramPage), <u16>(index + 1));
  markDecoded(ramPage);
  return slot;
}

/** Frees a slot; whether it was in use. Fetch TLBs still point to it. */
function dropSlot(index: u32): bool {
  const owner = load<u32>(ownerAddress(index));
  if (owner === 0) return false;
  store<u32>(ownerAddress(index), 0);
  store<u16>(tableEntry(owner - 1), 0);
  return true;
}

function markDecoded(ramPage: u32): void {
  if (isSmp()) atomic.or<u8>(CODE_FLAGS + ramPage, FLAG_DECODED);
  else atomic.store<u8>(CODE_FLAGS + ramPage, FLAG_DECODED);
  flushWriteTlb();
}

/** To be called before RAM at `gpa` is written for the first time under a write TLB entry. */
export function noteWrite(gpa: u64): void {
  const flag: u32 = CODE_FLAGS + <u32> ((gpa - RAM_GPA) >> 12);
  if (isSmp()) {
    if ((atomic.or<u8>(flag, FLAG_WRITTEN) & 3) !== FLAG_DECODED) return;
  } else {
    if (atomic.load<u8>(flag) !== FLAG_DECODED) return;
    atomic.store<u8>(flag, FLAG_WRITTEN);
  }
  atomic.add<u32>(CODE_WRITES_WORD, 1);
}

/** FENCE.I: drops the decoded and translated pages that were written since. */
export function dropStaleCode(): void {
  const writes = codeWrites();
  const smp = isSmp();
  if (!smp && load<u32>(hart, HART_CODE_WRITES_SEEN) === writes) return;
  store<u32>(hart, writes, HART_CODE_WRITES_SEEN);
  dropStaleRegions(smp);
  for (let index: u32 = 0; index < SLOT_COUNT; index++) {
    const owner = load<u32>(ownerAddress(index));
    if (owner === 0) continue;
    const flag: u32 = CODE_FLAGS + owner - 1;
    if ((atomic.load<u8>(flag) & FLAG_WRITTEN) === 0) continue;
    if (!smp) atomic.store<u8>(flag, 0);
    dropSlot(index);
  }
  flushFetchTlb();
}

/** The same for translations; the flags of pages that are decoded too are left for that. */
function dropStaleRegions(smp: bool): void {
  if (hasRetired()) bumpEpoch();
  for (let position: u32 = 0; position < pageListCount();) {
    const ramPage = pageAt(position);
    const flag: u32 = CODE_FLAGS + ramPage;
    if ((atomic.load<u8>(flag) & FLAG_WRITTEN) !== 0) {
      dropRegionsOf(ramPage);
      if (!smp && load<u16>(tableEntry(ramPage)) === 0) atomic.store<u8>(flag, 0);
    }
    if (hasRegions(ramPage)) position++;
    else forgetPage(position);
  }
}

/** Drops everything: the memory was loaded anew. */
export function dropAllCode(): void {
  dropAllRegions();
  for (let index: u32 = 0; index < SLOT_COUNT; index++) dropSlot(index);
  nextSlot = 0;
  flushFetchTlb();
}

/**
 * Decodes the instruction at `pageOffset` of the page whose first slot is `code`, into its slot;
 * returns 0 if it straddles into the next page.
 */
export function decodeAt(code: u32, pageOffset: u32): u64 {
  const index = (code - slotAddress(0)) / SLOT_STRIDE;
  const ram: u32 = RAM_BASE + ((load<u32>(ownerAddress(index)) - 1) << 12);
  const low: u32 = load<u16>(ram + pageOffset);
  let bits = low;
  if ((low & 3) === 3) {
    if (pageOffset === 4094) return 0;
    bits |= <u32> load<u16>(ram + pageOffset + 2) << 16;
  }
  let slot = decode(bits, pageOffset, false);
  const ramPage = load<u32>(ownerAddress(index)) - 1;
  if (hasRegions(ramPage)) {
    const handle = findEntry(ramPage, pageOffset);
    if (handle !== 0) slot = makeSlot(OP_TRANSLATED, 0, 0, 0, handle, 0);
  }
  store<u64>(code + (pageOffset << 2), slot);
  return slot;
}

// ---- for the translator -------------------------------------------------------------------------

/** No RAM page. */
export const NO_PAGE: u32 = ~0;

/**
 * The RAM page that code at `va` is executed from, as memory is mapped now; NO_PAGE if it can't be
 * executed, or not all over the same.
 */
export function ramPageOf(va: u64): u32 {
  noteCodePage(va);
  const code = knownCode(va);
  if (code !== 0) return load<u32>(ownerAddress((code - slotAddress(0)) / SLOT_STRIDE)) - 1;
  const gpa = translateFetch(va);
  if (event === EVENT_EXCEPTION) {
    clearEvent();
    return NO_PAGE;
  }
  return isPmpUniform(gpa & ~0xfff) ? <u32> ((gpa - RAM_GPA) >> 12) : NO_PAGE;
}

/** First decoded instruction of the page of `va`, if the fetch TLB knows it; 0 if not. */
export function knownCode(va: u64): u32 {
  const entry = currentFetchTlb() + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
  return (va & ~0xfff) === load<u64>(entry) ? load<u32>(entry, 8) : 0;
}

/**
 * The instruction decoded at `pageOffset` of the page whose first slot is `code`; 0 if it was never
 * executed. What is behind an entry of translated code is decoded anew.
 */
export function decodedSlot(code: u32, ramPage: u32, pageOffset: u32): u64 {
  const slot = load<u64>(code + (pageOffset << 2));
  if (<u32>slot >>> 24 !== OP_TRANSLATED) return slot;
  const ram: u32 = RAM_BASE + (ramPage << 12) + pageOffset;
  if (pageOffset === 4094 && (<u32>load<u16>(ram) & 3) === 3) return 0;
  return decode(load<u32>(ram), pageOffset, false);
}

/** The instruction that begins in the last half-word of one RAM page and ends in another; or 0. */
export function straddlingSlot(ramPage: u32, nextRamPage: u32): u64 {
  const low: u32 = load<u16>(RAM_BASE + (ramPage << 12) + 4094);
  if ((low & 3) !== 3) return 0;
  return decode(low | (<u32>load<u16>(RAM_BASE + (nextRamPage << 12)) << 16), 0, true);
}

/** Puts an entry in the place of a decoded instruction. */
export function patchSlot(ramPage: u32, pageOffset: u32, handle: u32): void {
  const known = load<u16>(tableEntry(ramPage));
  if (known === 0) return;
  const slot = makeSlot(OP_TRANSLATED, 0, 0, 0, handle, 0);
  store<u64>(slotAddress(known - 1) + (pageOffset << 2), slot);
}

/** Takes the entry out again: the instruction is decoded anew when it is next executed. */
export function unpatchSlot(ramPage: u32, pageOffset: u32, handle: u32): void {
  const known = load<u16>(tableEntry(ramPage));
  if (known === 0) return;
  const place = slotAddress(known - 1) + (pageOffset << 2);
  const slot = load<u64>(place);
  if (<u32>slot >>> 24 !== OP_TRANSLATED || <u32>(slot >> 32) !== handle) return;
  store<u64>(place, 0);
}

/** Decodes the instruction at `pc` by itself: for one that must be executed here, and alone. */
export function decodeAlone(pc: u64): u32 {
  const gpa = translateFetch(pc);
  return event === EVENT_EXCEPTION ? 0 : decodeLone(pc, gpa);
}

/**
 * Decodes the instruction at `pc`, found at `gpa`, by itself; returns 0 with an exception raised.
 */
function decodeLone(pc: u64, gpa: u64): u32 {
  let bits: u32 = load<u16>(ramAddress(gpa));
  if ((bits & 3) === 3) {
    const highGpa = translateFetch(pc + 2);
    if (event === EVENT_EXCEPTION) return 0;
    bits |= <u32> load<u16>(ramAddress(highGpa)) << 16;
  }
  const lone = decodeBase() + LONE;
  const length: u32 = (bits & 3) === 3 ? 4 : 2;
  store<u64>(lone, decode(bits, 0, true));
  store<u64>(lone + (length << 2), makeSlot(OP_PAGE_END, 0, 0, 0, 0, 0));
  return lone;
}
