/**
 * The state of one hart, in its block of the shared memory, and the accessors for it.
 *
 * An instance of the module serves one hart: `bind` says which. What stands here as a mutable
 * global is the instance's own (every instance has its own globals); what outlives the instance, or
 * what others look at, is in memory.
 *
 *   hart + 0x000  words shared with other threads     (layout.ts)
 *        + 0x100  x0..x31; x0 is never written
 *        + 0x200  f0..f31, 32-bit values NaN-boxed
 *        + 0x300  pc, privilege, instret
 *        + 0x400  CSRs, a u64 each, always legal
 *        + 0x1000 data TLBs: 4 contexts x (read, write)
 *        + ...    fetch TLBs: one a privilege mode
 *        + 0x1f000  a set of pages whose code is known to be in place
 *        + 0x1f800  figures of the tiers
 *        + 0x60000  samples for a profiler (sampler.ts)
 *
 * Between `run` calls, pc, privilege and instret in memory are exact. Inside the interpreter's loop
 * pc and instret live in locals and are stored before anything that can look at them.
 */

import {
  CODE_WRITES_WORD,
  HART_BASE,
  HART_COUNT,
  HART_CSR,
  HART_INSTRET,
  HART_MIP_WORD,
  HART_PC,
  HART_PRIV,
  HART_STRIDE,
  HART_X,
  JUMP_CACHES,
  JUMP_CACHES_BYTES,
  TRANSLATOR_BASE,
  TRANSLATOR_STRIDE,
} from "./layout";

/** Address of this instance's hart block, and the hart's number. Set once, by `bind`. */
export let hart: u32 = 0;
export let hartId: u32 = 0;

/** Ties the instance to a hart of the memory. */
export function bind(id: u32): void {
  hartId = id;
  hart = hartAddress(id);
}

/** Address of any hart's block, for words that harts share. */

export function hartAddress(id: u32): u32 {
  return HART_BASE + id * HART_STRIDE;
}

export const PRIV_U: u32 = 0;
export const PRIV_S: u32 = 1;
export const PRIV_M: u32 = 3;

// ---- fields beside the registers ---------------------------------------------------------------

/** Address (in this memory) and value of the LR reservation; NO_RESERVATION when there is none. */
export const HART_RESERVATION_ADDRESS: u32 = 0x318;
export const HART_RESERVATION_VALUE: u32 = 0x320;
/** CODE_WRITES_WORD when this hart last dropped stale code. */
export const HART_CODE_WRITES_SEEN: u32 = 0x328;
/** Never used but for a read-modify-write that orders this hart's accesses. */
export const HART_FENCE_WORD: u32 = 0x32c;

/** Of its budget, what translated code left. */
export const HART_LEFT: u32 = 0x330; // i32
/** Counts changes after which code may be elsewhere: see bumpEpoch. */
export const HART_EPOCH: u32 = 0x334; // u32
/** Tables of the current privilege and context, for translated code. */
export const HART_JUMP_CACHE: u32 = 0x338; // u32
export const HART_DATA_TLB: u32 = 0x33c; // u32
/** FLOAT_DIRTY, FLOAT_HOST: what the interpreter's loop keeps of the same names. */
export const HART_FLOAT: u32 = 0x340; // u32
export const FLOAT_DIRTY: u32 = 1;
export const FLOAT_HOST: u32 = 2;

/** The region that went back to the interpreter: an entry of it, its base. */
export const HART_LAST_HANDLE: u32 = 0x344; // u32
export const HART_LAST_BASE: u32 = 0x348; // u64
/** How often one region went on in another. */
export const HART_HOPS: u32 = 0x350; // u32
/** Why translated code was left: LEFT_*. */
export const HART_WHY: u32 = 0x354; // i32
/**
 * What translated code knows of data pages is good while this stays the same: how often something
 * was taken out of the data TLBs, and, in the lowest bits, the context (mmu.ts) of this turn.
 */
export const HART_DATA_EPOCH: u32 = 0x358; // u64

export const NO_RESERVATION: u64 = ~0;

// ---- CSRs: offsets in the hart block -----------------------------------------------------------

export const MSTATUS: u32 = HART_CSR + 0x00;
export const MEDELEG: u32 = HART_CSR + 0x08;
export const MIDELEG: u32 = HART_CSR + 0x10;
export const MIE: u32 = HART_CSR + 0x18;
/** The bits of mip that software owns: SEIP (or-ed with the PLIC's), STIP while STCE is 0. */
export const MIP_SOFT: u32 = HART_CSR + 0x20;
export const MTVEC: u32 = HART_CSR + 0x28;
export const MSCRATCH: u32 = HART_CSR + 0x30;
export const MEPC: u32 = HART_CSR + 0x38;
export const MCAUSE: u32 = HART_CSR + 0x40;
export const MTVAL: u32 = HART_CSR + 0x48;
export const MCOUNTEREN: u32 = HART_CSR + 0x50;
export const MCOUNTINHIBIT: u32 = HART_CSR + 0x58;
export const MENVCFG: u32 = HART_CSR + 0x60;
export const STVEC: u32 = HART_CSR + 0x68;
export const SSCRATCH: u32 = HART_CSR + 0x70;
export const SEPC: u32 = HART_CSR + 0x78;
export const SCAUSE: u32 = HART_CSR + 0x80;
export const STVAL: u32 = HART_CSR + 0x88;
export const SATP: u32 = HART_CSR + 0x90;
export const SCOUNTEREN: u32 = HART_CSR + 0x98;
export const SENVCFG: u32 = HART_CSR + 0xa0;
export const STIMECMP: u32 = HART_CSR + 0xa8;
export const FRM: u32 = HART_CSR + 0xb0;
/** fflags while the instance is outside `run`; inside, float/flags.ts holds them. */
export const FFLAGS: u32 = HART_CSR + 0xb8;
/** Counter value = instret + offset while it counts, the held value while it is inhibited. */
export const MCYCLE_OFFSET: u32 = HART_CSR + 0xc0;
export const MCYCLE_HELD: u32 = HART_CSR + 0xc8;
export const MINSTRET_OFFSET: u32 = HART_CSR + 0xd0;
export const MINSTRET_HELD: u32 = HART_CSR + 0xd8;
/** 16 configuration bytes, 16 addresses. */
export const PMPCFG: u32 = HART_CSR + 0x100;
export const PMPADDR: u32 = HART_CSR + 0x110;
export const PMP_COUNT: u32 = 16;

// ---- bits ---------------------------------------------------------------------------------------

export const MSTATUS_SIE: u64 = 1 << 1;
export const MSTATUS_MIE: u64 = 1 << 3;
export const MSTATUS_SPIE: u64 = 1 << 5;
export const MSTATUS_MPIE: u64 = 1 << 7;
export const MSTATUS_SPP: u64 = 1 << 8;
export const MSTATUS_MPP: u64 = 3 << 11;
export const MSTATUS_MPP_SHIFT: u32 = 11;
export const MSTATUS_FS: u64 = 3 << 13;
export const MSTATUS_MPRV: u64 = 1 << 17;
export const MSTATUS_SUM: u64 = 1 << 18;
export const MSTATUS_MXR: u64 = 1 << 19;
export const MSTATUS_TVM: u64 = 1 << 20;
export const MSTATUS_TW: u64 = 1 << 21;
export const MSTATUS_TSR: u64 = 1 << 22;
export const MSTATUS_UXL: u64 = 2 << 32; // 64 bits, the only choice
export const MSTATUS_SXL: u64 = 2 << 34;
export const MSTATUS_SD: u64 = 1 << 63;

export const MIP_SSIP: u32 = 1 << 1;
export const MIP_MSIP: u32 = 1 << 3;
export const MIP_STIP: u32 = 1 << 5;
export const MIP_MTIP: u32 = 1 << 7;
export const MIP_SEIP: u32 = 1 << 9;
export const MIP_MEIP: u32 = 1 << 11;

export const ENVCFG_FIOM: u64 = 1;
export const MENVCFG_ADUE: u64 = 1 << 61;
export const MENVCFG_STCE: u64 = 1 << 63;

// ---- TLBs ---------------------------------------------------------------------------------------

/** Entries a table: 16 bytes each, direct-mapped by the page number's low bits. */
export const TLB_BITS: u32 = 8;
export const TLB_BYTES: u32 = 16 << TLB_BITS;
/** Byte offset of an entry: (va >> TLB_SHIFT) & TLB_MASK. */
export const TLB_SHIFT: u32 = 12 - 4;
export const TLB_MASK: u32 = TLB_BYTES - 16;
/**
 * A context has a read table and a write table: {u64 page, u32 address of the page - (u32) page}.
 */
export const TLB_BASE: u32 = 0x1000;
export const TLB_WRITE: u32 = TLB_BYTES;
export const TLB_CONTEXT_STRIDE: u32 = 2 * TLB_BYTES;
/** U, S, S with SUM, M. */
export const TLB_CONTEXTS: u32 = 4;
/** Fetch tables by privilege: {u64 page, u32 address of the decoded page}. */
export const FETCH_TLB_BASE: u32 = TLB_BASE + TLB_CONTEXTS * TLB_CONTEXT_STRIDE;
export const FETCH_TLB_END: u32 = FETCH_TLB_BASE + 4 * TLB_BYTES;
/** A page address has its low 12 bits clear: this one never matches. */
export const TLB_EMPTY: u8 = 0xff;

// ---- epochs ------------------------------------------------------------------------------------

/** One bit a hash of a page's address: pages whose place was taken for granted in this epoch. */
const CODE_PAGES: u32 = 0x1f000;
const CODE_PAGES_BYTES: u32 = 512;

/**
 * Code may be elsewhere from now on: entries that translated code knows, and regions that were
 * found in place, must be looked at again.
 */
export function bumpEpoch(): void {
  const epoch = load<u32>(hart, HART_EPOCH) + 1;
  store<u32>(hart, epoch, HART_EPOCH);
  memory.fill(hart + CODE_PAGES, 0, CODE_PAGES_BYTES);
  // Once in 2^32 changes an old entry might look new.
  if (epoch === 0) clearJumpCaches();
}

/** Address of the jump caches (translator/jump_cache.ts). */
export function jumpCaches(): u32 {
  return TRANSLATOR_BASE + hartId * TRANSLATOR_STRIDE + JUMP_CACHES;
}

function clearJumpCaches(): void {
  memory.fill(jumpCaches(), 0, JUMP_CACHES_BYTES);
}

/** The state after a reset, when there are no regions: epochs begin anew. */
export function resetEpoch(): void {
  if (load<u32>(hart, HART_LAST_HANDLE) !== 0) clearJumpCaches();
  store<u32>(hart, 0, HART_EPOCH);
  store<u64>(hart, 0, HART_DATA_EPOCH);
}

function codePageByte(va: u64): u32 {
  return hart + CODE_PAGES + (<u32>(va >> 15) & (CODE_PAGES_BYTES - 1));
}

/** To be called when it is taken for granted, for this epoch, where the code at `va` lies. */
export function noteCodePage(va: u64): void {
  const place = codePageByte(va);
  store<u8>(place, <u32>load<u8>(place) | (1 << (<u32>(va >> 12) & 7)));
}

function isCodePage(va: u64): bool {
  return ((<u32>load<u8>(codePageByte(va)) >> (<u32>(va >> 12) & 7)) & 1) !== 0;
}

// ---- accessors ----------------------------------------------------------------------------------

export function getX(index: u32): u64 {
  return load<u64>(hart + (index << 3), HART_X);
}

/** Writes an integer register; x0 stays 0. */

export function setX(index: u32, value: u64): void {
  if (index !== 0) store<u64>(hart + (index << 3), value, HART_X);
}

export function getPc(): u64 {
  return load<u64>(hart, HART_PC);
}

export function setPc(pc: u64): void {
  store<u64>(hart, pc, HART_PC);
}

export function getPriv(): u32 {
  return load<u32>(hart, HART_PRIV);
}

export function getInstret(): u64 {
  return load<u64>(hart, HART_INSTRET);
}

export function setInstret(count: u64): void {
  store<u64>(hart, count, HART_INSTRET);
}

/** A CSR's stored value, by its offset (MSTATUS, ...). */

export function getCsr(offset: u32): u64 {
  return load<u64>(hart + offset);
}

export function setCsr(offset: u32, value: u64): void {
  store<u64>(hart + offset, value);
}

export function isSmp(): bool {
  return load<u32>(HART_COUNT) > 1;
}

/** Sets or clears bits of mip that come from outside the hart. */
export function driveMip(bits: u32, isSet: bool): void {
  if (isSet) atomic.or<u32>(hart + HART_MIP_WORD, bits);
  else atomic.and<u32>(hart + HART_MIP_WORD, ~bits);
}

/** The count of writes to code that this hart must compare with its own at FENCE.I. */

export function codeWrites(): u32 {
  return atomic.load<u32>(CODE_WRITES_WORD);
}

// ---- TLB flushes --------------------------------------------------------------------------------

function bumpDataEpoch(): void {
  store<u64>(hart, load<u64>(hart, HART_DATA_EPOCH) + TLB_CONTEXTS, HART_DATA_EPOCH);
}

/** Translated code looks for data in `context` from now on. */
export function setDataContext(context: u32): void {
  const flushes = load<u64>(hart, HART_DATA_EPOCH) & ~(<u64>TLB_CONTEXTS - 1);
  store<u64>(hart, flushes | context, HART_DATA_EPOCH);
}

/** Forgets every translation: data and fetch. */
export function flushTlb(): void {
  superpageFirst = ~0;
  superpageLast = 0;
  bumpEpoch();
  bumpDataEpoch();
  memory.fill(hart + TLB_BASE, TLB_EMPTY, FETCH_TLB_END - TLB_BASE);
}

/** Forgets every right to write: pages that now hold decoded code must be noticed again. */
export function flushWriteTlb(): void {
  bumpDataEpoch();
  for (let context: u32 = 0; context < TLB_CONTEXTS; context++) {
    const table = hart + TLB_BASE + TLB_WRITE + context * TLB_CONTEXT_STRIDE;
    memory.fill(table, TLB_EMPTY, TLB_BYTES);
  }
}

/** Forgets where code is. */
export function flushFetchTlb(): void {
  memory.fill(hart + FETCH_TLB_BASE, TLB_EMPTY, FETCH_TLB_END - FETCH_TLB_BASE);
}

/**
 * The addresses, first and last, of all superpages that were used since the last full flush.
 * Entries hold 4 KiB of whatever page size the mapping had, so a superpage may have left several,
 * in any slot. Kernels map themselves so, far from the pages that change all the time.
 */
let superpageFirst: u64 = ~0;
let superpageLast: u64 = 0;

/** To be called when part of a superpage enters a TLB; `offsetMask`: its size - 1. */
export function noteSuperpage(va: u64, offsetMask: u64): void {
  superpageFirst = min(superpageFirst, va & ~offsetMask);
  superpageLast = max(superpageLast, va | offsetMask);
}

/**
 * Forgets the translation of one page, and of all of a superpage that any of its addresses names
 * (Priv 12.2.1). ASIDs are not implemented (satp.ASID reads 0), so `asid` decides nothing.
 */
export function flushTlbPage(va: u64, _asid: u64): void {
  if (va >= superpageFirst && va <= superpageLast) {
    flushTlb();
    return;
  }
  if (isCodePage(va)) bumpEpoch();
  bumpDataEpoch();
  const slot = <u32> (va >> TLB_SHIFT) & TLB_MASK;
  for (let table = hart + TLB_BASE; table < hart + FETCH_TLB_END; table += TLB_BYTES) {
    store<u64>(table + slot, ~0);
  }
}
