/**
 * Physical memory protection (Priv 3.7): 16 entries, grain 4 bytes, all three address modes, locks.
 *
 * Entries are read where they are stored: looking at them happens on a TLB miss only. A page that
 * one entry covers whole, or none touches, may enter a TLB; on any other page every access is
 * checked.
 */

import { getCsr, hart, PMP_COUNT, PMPADDR, PMPCFG, PRIV_M } from "./state";

const PMP_LOCK: u32 = 0x80;
const PMP_MODE: u32 = 0x18;
const PMP_TOR: u32 = 0x08;
const PMP_NA4: u32 = 0x10;

export const ACCESS_READ: u32 = 1;
export const ACCESS_WRITE: u32 = 2;
export const ACCESS_EXECUTE: u32 = 4;

/**
 * Bounds of the entry that `loadEntry` looked at last: [entryStart, entryEnd), empty if it is off.
 */
let entryStart: u64 = 0;
let entryEnd: u64 = 0;

/** Whether any entry is on: if not, M may do everything and nobody looks further. */
export let isPmpActive: bool = false;

/** To be called when a configuration byte has changed or the instance was bound to a hart. */
export function refreshPmp(): void {
  isPmpActive = false;
  for (let i: u32 = 0; i < PMP_COUNT; i++) {
    if ((configOf(i) & PMP_MODE) !== 0) isPmpActive = true;
  }
}

function configOf(index: u32): u32 {
  return load<u8>(hart + index, PMPCFG);
}

function addressOf(index: u32): u64 {
  return getCsr(PMPADDR + (index << 3));
}

/** Sets entryStart and entryEnd. */
function loadEntry(index: u32, config: u32): void {
  const address = addressOf(index);
  const mode = config & PMP_MODE;
  entryStart = 0;
  entryEnd = 0;
  if (mode === 0) return;
  if (mode === PMP_TOR) {
    if (index > 0) entryStart = addressOf(index - 1) << 2;
    entryEnd = address << 2;
    if (entryStart >= entryEnd) {
      entryStart = 0;
      entryEnd = 0;
    }
    return;
  }
  // NA4 is NAPOT with no trailing ones; addresses have 54 bits, so nothing overflows.
  const mask: u64 = mode === PMP_NA4 ? 0 : address ^ (address + 1);
  entryStart = (address & ~mask) << 2;
  entryEnd = ((address | mask) + 1) << 2;
}

/** Whether `priv` may do `access` to all of [gpa, gpa + size). */
export function isPmpAllowed(gpa: u64, size: u64, access: u32, priv: u32): bool {
  if (!isPmpActive) return true;
  for (let i: u32 = 0; i < PMP_COUNT; i++) {
    const config = configOf(i);
    loadEntry(i, config);
    if (gpa + size <= entryStart || gpa >= entryEnd) continue;
    // The lowest entry that matches any byte decides, and must match all (Priv 3.7.1.3).
    if (gpa < entryStart || gpa + size > entryEnd) return false;
    if (priv === PRIV_M && (config & PMP_LOCK) === 0) return true;
    return (config & access) === access;
  }
  return priv === PRIV_M;
}

/** Whether all of the 4 KiB page at `gpa` has the same protection. */
export function isPmpUniform(gpa: u64): bool {
  if (!isPmpActive) return true;
  for (let i: u32 = 0; i < PMP_COUNT; i++) {
    loadEntry(i, configOf(i));
    if (gpa + 4096 <= entryStart || gpa >= entryEnd) continue;
    return gpa >= entryStart && gpa + 4096 <= entryEnd;
  }
  return true;
}

/** Writes one configuration byte, made legal. Locked ones stay as they are. */
function writeConfig(index: u32, value: u32): void {
  const old = configOf(index);
  if ((old & PMP_LOCK) !== 0) return;
  let config = value & 0x9f;
  // W without R is reserved: keep the old permissions (Priv 3.7.1).
  if ((config & 3) === 2) config = (config & ~7) | (old & 7);
  store<u8>(hart + index, config, PMPCFG);
}

/** pmpcfg0 (`first` 0) or pmpcfg2 (`first` 8): eight configuration bytes. */
export function readPmpConfig(first: u32): u64 {
  return load<u64>(hart + first, PMPCFG);
}

export function writePmpConfig(first: u32, value: u64): void {
  for (let i: u32 = 0; i < 8; i++) writeConfig(first + i, <u32> (value >> (i << 3)) & 0xff);
  refreshPmp();
}

export function readPmpAddress(index: u32): u64 {
  return addressOf(index);
}

/** A locked entry's address does not change, nor that below a locked TOR entry. 54 bits. */
export function writePmpAddress(index: u32, value: u64): void {
  if ((configOf(index) & PMP_LOCK) !== 0) return;
  if (index + 1 < PMP_COUNT) {
    const next = configOf(index + 1);
    if ((next & PMP_LOCK) !== 0 && (next & PMP_MODE) === PMP_TOR) return;
  }
  store<u64>(hart + (index << 3), value & 0x003f_ffff_ffff_ffff, PMPADDR);
}
