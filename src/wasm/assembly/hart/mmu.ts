/**
 * Address translation (Priv 12.3-12.5) and every access that is not a hit in a TLB.
 *
 * The interpreter's loop looks into the read or write table of the current context itself, with one
 * comparison that also catches misalignment. Everything else comes here: misses, misaligned and
 * page-crossing accesses, devices, protected pages, stores to pages that hold decoded code.
 *
 * Only RAM pages enter a TLB, for as much as their mapping, protection and A/D bits allow now. A
 * page with decoded code enters a write table only after its first store was noticed.
 */

import { mmioLoad, mmioStore } from "./board/mmio";
import { mmioFault } from "./board/fault";
import { updateExternalInterrupts } from "./board/interrupts";
import { noteWrite } from "./code";
import {
  CAUSE_INSTRUCTION_ACCESS,
  CAUSE_INSTRUCTION_PAGE,
  CAUSE_LOAD_ACCESS,
  CAUSE_LOAD_MISALIGNED,
  CAUSE_LOAD_PAGE,
  CAUSE_STORE_ACCESS,
  CAUSE_STORE_MISALIGNED,
  CAUSE_STORE_PAGE,
  event,
  EVENT_EXCEPTION,
  raiseException,
  requestLeave,
} from "./event";
import { RAM_BASE, RAM_BYTES, RAM_GPA } from "./layout";
import { ACCESS_EXECUTE, ACCESS_READ, ACCESS_WRITE, isPmpAllowed, isPmpUniform } from "./pmp";
import {
  getCsr,
  getPriv,
  hart,
  MENVCFG,
  MENVCFG_ADUE,
  MSTATUS,
  MSTATUS_MPP_SHIFT,
  MSTATUS_MPRV,
  MSTATUS_MXR,
  MSTATUS_SUM,
  noteSuperpage,
  PRIV_M,
  PRIV_S,
  PRIV_U,
  SATP,
  TLB_BASE,
  TLB_CONTEXT_STRIDE,
  TLB_MASK,
  TLB_SHIFT,
  TLB_WRITE,
} from "./state";

const PTE_V: u64 = 1;
const PTE_R: u64 = 2;
const PTE_W: u64 = 4;
const PTE_X: u64 = 8;
const PTE_U: u64 = 16;
const PTE_A: u64 = 64;
const PTE_D: u64 = 128;
/** Bits 54..63: Svnapot, Svpbmt and reserved ones, none of them implemented: they must be 0. */
const PTE_RESERVED: u64 = 0xffc0_0000_0000_0000;
const PTE_PPN_MASK: u64 = 0x003f_ffff_ffff_fc00;

const SATP_MODE_SHIFT: u64 = 60;
const SATP_PPN_MASK: u64 = 0x0000_0fff_ffff_ffff;

/** Privilege that loads and stores have: MPP's under MPRV (Priv 3.1.6.3). */
export function dataPriv(): u32 {
  const mstatus = getCsr(MSTATUS);
  if ((mstatus & MSTATUS_MPRV) !== 0) return <u32> (mstatus >> MSTATUS_MPP_SHIFT) & 3;
  return getPriv();
}

/** What data is looked up with: the privilege; 2, which is none, for S mode with SUM. */
export function currentContext(): u32 {
  const priv = dataPriv();
  if (priv === PRIV_S && (getCsr(MSTATUS) & MSTATUS_SUM) !== 0) return 2;
  return priv;
}

/** Address of the data TLB of the current context. */
export function currentTlb(): u32 {
  return hart + TLB_BASE + currentContext() * TLB_CONTEXT_STRIDE;
}

/** Whether [gpa, gpa + size) is RAM. */

export function isRam(gpa: u64, size: u64): bool {
  return gpa >= RAM_GPA && gpa - RAM_GPA + size <= load<u64>(RAM_BYTES);
}

/** Address in this memory of a guest physical address that is RAM. */

export function ramAddress(gpa: u64): u32 {
  return RAM_BASE + <u32> (gpa - RAM_GPA);
}

function raisePageFault(va: u64, access: u32): void {
  if (access === ACCESS_READ) raiseException(CAUSE_LOAD_PAGE, va);
  else if (access === ACCESS_EXECUTE) raiseException(CAUSE_INSTRUCTION_PAGE, va);
  else raiseException(CAUSE_STORE_PAGE, va);
}

function raiseAccessFault(va: u64, access: u32): void {
  if (access === ACCESS_READ) raiseException(CAUSE_LOAD_ACCESS, va);
  else if (access === ACCESS_EXECUTE) raiseException(CAUSE_INSTRUCTION_ACCESS, va);
  else raiseException(CAUSE_STORE_ACCESS, va);
}

/**
 * How often a walk that lost a race for a PTE is repeated, before the fault is left to the guest.
 */
const WALK_ATTEMPTS: u32 = 16;
/** The last walk found a PTE that another hart changed before its A or D bit was set. */
let hasLostRace: bool = false;

/**
 * Guest physical address of `va` for an `access` of `priv`; raises a page or access fault, and then
 * the result means nothing. PMP is not checked for the access itself.
 */
export function translate(va: u64, access: u32, priv: u32): u64 {
  const satp = getCsr(SATP);
  const mode = satp >> SATP_MODE_SHIFT;
  if (priv === PRIV_M || mode === 0) return va;
  for (let attempt: u32 = 0; attempt < WALK_ATTEMPTS; attempt++) {
    hasLostRace = false;
    const gpa = walk(va, access, priv, satp);
    if (!hasLostRace) return gpa;
  }
  raisePageFault(va, access);
  return 0;
}

/** Priv 12.3.2. */
function walk(va: u64, access: u32, priv: u32, satp: u64): u64 {
  const mode = satp >> SATP_MODE_SHIFT;
  // Sv39 has 3 levels, Sv48 4; the address must be the sign extension of its low 39 or 48 bits.
  let level: i32 = mode === 8 ? 2 : 3;
  const unused: u64 = <u64> (64 - (39 + 9 * (level - 2)));
  if (<u64> ((<i64> (va << unused)) >> unused) !== va) {
    raisePageFault(va, access);
    return 0;
  }
  let table: u64 = (satp & SATP_PPN_MASK) << 12;
  for (; level >= 0; level--) {
    const shift: u64 = <u64> (12 + 9 * level);
    const pteGpa: u64 = table + (((va >> shift) & 511) << 3);
    if (!isRam(pteGpa, 8) || !isPmpAllowed(pteGpa, 8, ACCESS_READ, PRIV_S)) {
      raiseAccessFault(va, access);
      return 0;
    }
    const pte = load<u64>(ramAddress(pteGpa));
    if ((pte & PTE_V) === 0 || (pte & (PTE_R | PTE_W)) === PTE_W || (pte & PTE_RESERVED) !== 0) {
      break;
    }
    if ((pte & (PTE_R | PTE_X)) === 0) {
      // A pointer has D, A and U clear (Priv 12.3.1).
      if ((pte & (PTE_D | PTE_A | PTE_U)) !== 0) break;
      table = (pte & PTE_PPN_MASK) << 2;
      continue;
    }
    if (!isLeafAllowed(pte, access, priv)) break;
    const offsetMask: u64 = (<u64> 1 << shift) - 1;
    const page: u64 = (pte & PTE_PPN_MASK) << 2;
    if ((page & offsetMask) !== 0) break;
    if (!updateAccessed(pteGpa, pte, access, va)) return 0;
    if (level > 0) noteSuperpage(va, offsetMask);
    return page | (va & offsetMask);
  }
  raisePageFault(va, access);
  return 0;
}

/** Permissions of a leaf (Priv 12.3.1, 3.1.6.3). */
function isLeafAllowed(pte: u64, access: u32, priv: u32): bool {
  if ((pte & PTE_U) !== 0) {
    if (priv === PRIV_S) {
      if (access === ACCESS_EXECUTE || (getCsr(MSTATUS) & MSTATUS_SUM) === 0) return false;
    }
  } else if (priv === PRIV_U) {
    return false;
  }
  if (access === ACCESS_EXECUTE) return (pte & PTE_X) !== 0;
  if (access === ACCESS_WRITE) return (pte & PTE_W) !== 0;
  if ((pte & PTE_R) !== 0) return true;
  return (pte & PTE_X) !== 0 && (getCsr(MSTATUS) & MSTATUS_MXR) !== 0;
}

/**
 * A and D: set by us under menvcfg.ADUE (Svadu), else their absence is a page fault (Svade). The
 * PTE is swapped atomically: another hart may be changing it. Returns whether the translation
 * stands.
 */
function updateAccessed(pteGpa: u64, pte: u64, access: u32, va: u64): bool {
  const wanted = pte | PTE_A | (access === ACCESS_WRITE ? PTE_D : 0);
  if (wanted === pte) return true;
  if ((getCsr(MENVCFG) & MENVCFG_ADUE) === 0) {
    raisePageFault(va, access);
    return false;
  }
  if (!isPmpAllowed(pteGpa, 8, ACCESS_WRITE, PRIV_S)) {
    raiseAccessFault(va, access);
    return false;
  }
  noteWrite(pteGpa);
  if (atomic.cmpxchg<u64>(ramAddress(pteGpa), pte, wanted) === pte) return true;
  hasLostRace = true;
  return false;
}

/** Guest physical address for a data access of `size` bytes within a page; checks PMP. */
function translateData(va: u64, size: u32, access: u32): u64 {
  const priv = dataPriv();
  const gpa = translate(va, access, priv);
  if (event === EVENT_EXCEPTION) return 0;
  if (!isPmpAllowed(gpa, size, access, priv)) raiseAccessFault(va, access);
  return gpa;
}

/** Puts a RAM page into a table of the current context. */
function fillTlb(table: u32, va: u64, gpa: u64): void {
  const page: u64 = gpa & ~0xfff;
  if (!isRam(page, 4096) || !isPmpUniform(page)) return;
  const entry = table + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
  const vaPage: u64 = va & ~0xfff;
  store<u64>(entry, vaPage);
  store<u32>(entry, ramAddress(page) - <u32> vaPage, 8);
}

/**
 * Address in this memory of readable RAM at `va`, or 0: then it is a device (`missGpa` says where)
 * or an exception was raised. The access stays within a page.
 */
export function readAddress(va: u64, size: u32): u32 {
  const table = currentTlb();
  const entry = table + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
  if ((va & ~0xfff) === load<u64>(entry)) return <u32> va + load<u32>(entry, 8);
  const gpa = translateData(va, size, ACCESS_READ);
  if (event === EVENT_EXCEPTION) return 0;
  missGpa = gpa;
  if (!isRam(gpa, size)) return 0;
  fillTlb(table, va, gpa);
  return ramAddress(gpa);
}

/** The same for writable RAM; the write is as good as done for whoever watches the page's code. */
export function writeAddress(va: u64, size: u32): u32 {
  const table = currentTlb() + TLB_WRITE;
  const entry = table + (<u32> (va >> TLB_SHIFT) & TLB_MASK);
  if ((va & ~0xfff) === load<u64>(entry)) return <u32> va + load<u32>(entry, 8);
  const gpa = translateData(va, size, ACCESS_WRITE);
  if (event === EVENT_EXCEPTION) return 0;
  missGpa = gpa;
  if (!isRam(gpa, size)) return 0;
  noteWrite(gpa);
  fillTlb(table, va, gpa);
  return ramAddress(gpa);
}

/** Where the last readAddress or writeAddress that gave 0 without an exception would have gone. */
export let missGpa: u64 = 0;

function crossesPage(va: u64, size: u32): bool {
  return (<u32> va & 0xfff) + size > 4096;
}

/** Loads `size` bytes, zero-extended. */
export function loadSlow(va: u64, size: u32): u64 {
  if (crossesPage(va, size)) return loadCrossing(va, size);
  const address = readAddress(va, size);
  if (address !== 0) {
    if (size === 8) return load<u64>(address);
    if (size === 4) return load<u32>(address);
    if (size === 2) return load<u16>(address);
    return load<u8>(address);
  }
  if (event === EVENT_EXCEPTION) return 0;
  // Devices take aligned accesses only: a misaligned one is an access fault (Priv 3.6.3.3).
  if ((<u32> va & (size - 1)) !== 0) {
    raiseException(CAUSE_LOAD_ACCESS, va);
    return 0;
  }
  const value = mmioLoad(missGpa, size);
  if (mmioFault) {
    raiseException(CAUSE_LOAD_ACCESS, va);
    return 0;
  }
  updateExternalInterrupts();
  requestLeave();
  return value;
}

/** Both pages are looked at before the first byte is read, so that a device is read once or not. */
function loadCrossing(va: u64, size: u32): u64 {
  const secondVa: u64 = (va & ~0xfff) + 4096;
  const firstSize = <u32> (secondVa - va);
  const first = readAddress(va, firstSize);
  if (first === 0) {
    if (event !== EVENT_EXCEPTION) raiseException(CAUSE_LOAD_ACCESS, va);
    return 0;
  }
  const second = readAddress(secondVa, size - firstSize);
  if (second === 0) {
    if (event !== EVENT_EXCEPTION) raiseException(CAUSE_LOAD_ACCESS, secondVa);
    return 0;
  }
  let value: u64 = 0;
  for (let i: u32 = 0; i < size; i++) {
    const address = i < firstSize ? first + i : second + (i - firstSize);
    value |= <u64> load<u8>(address) << (i << 3);
  }
  return value;
}

/** Stores the low `size` bytes of `value`. */
export function storeSlow(va: u64, value: u64, size: u32): void {
  if (crossesPage(va, size)) {
    storeCrossing(va, value, size);
    return;
  }
  const address = writeAddress(va, size);
  if (address !== 0) {
    if (size === 8) store<u64>(address, value);
    else if (size === 4) store<u32>(address, <u32> value);
    else if (size === 2) store<u16>(address, <u16> value);
    else store<u8>(address, <u8> value);
    return;
  }
  if (event === EVENT_EXCEPTION) return;
  if ((<u32> va & (size - 1)) !== 0) {
    raiseException(CAUSE_STORE_ACCESS, va);
    return;
  }
  mmioStore(missGpa, value, size);
  if (mmioFault) {
    raiseException(CAUSE_STORE_ACCESS, va);
    return;
  }
  updateExternalInterrupts();
  requestLeave();
}

/** Both pages are looked at before the first byte is written: a fault leaves memory as it was. */
function storeCrossing(va: u64, value: u64, size: u32): void {
  const secondVa: u64 = (va & ~0xfff) + 4096;
  const firstSize = <u32> (secondVa - va);
  const first = writeAddress(va, firstSize);
  if (first === 0) {
    if (event !== EVENT_EXCEPTION) raiseException(CAUSE_STORE_ACCESS, va);
    return;
  }
  const second = writeAddress(secondVa, size - firstSize);
  if (second === 0) {
    if (event !== EVENT_EXCEPTION) raiseException(CAUSE_STORE_ACCESS, secondVa);
    return;
  }
  for (let i: u32 = 0; i < size; i++) {
    const address = i < firstSize ? first + i : second + (i - firstSize);
    store<u8>(address, <u8> (value >> (i << 3)));
  }
}

/** Address of RAM for an AMO, LR or SC: aligned, or 0 with an exception raised. */
export function atomicAddress(va: u64, size: u32, isLoad: bool): u32 {
  if ((<u32> va & (size - 1)) !== 0) {
    raiseException(isLoad ? CAUSE_LOAD_MISALIGNED : CAUSE_STORE_MISALIGNED, va);
    return 0;
  }
  const address = isLoad ? readAddress(va, size) : writeAddress(va, size);
  if (address === 0 && event !== EVENT_EXCEPTION) {
    raiseException(isLoad ? CAUSE_LOAD_ACCESS : CAUSE_STORE_ACCESS, va);
  }
  return address;
}

/** Guest physical address of an instruction's half-word, which is RAM, or an exception. */
export function translateFetch(va: u64): u64 {
  const priv = getPriv();
  const gpa = translate(va, ACCESS_EXECUTE, priv);
  if (event === EVENT_EXCEPTION) return 0;
  if (!isRam(gpa, 2) || !isPmpAllowed(gpa, 2, ACCESS_EXECUTE, priv)) {
    raiseException(CAUSE_INSTRUCTION_ACCESS, va);
  }
  return gpa;
}
