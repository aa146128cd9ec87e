/**
 * Where generated code finds the entries of regions by itself: a table of 32-byte entries for each
 * privilege, in the order of their numbers,
 *
 *   {u64 pc, u64 base, u32 epoch, u32 handle}
 *
 * An entry is good in the epoch (state.ts) that it was made in.
 */

import { JUMP_CACHES_BYTES } from "../layout";
import { getPriv, hart, HART_EPOCH, jumpCaches } from "../state";

const PRIVILEGES: u32 = 4;
const JUMP_CACHE_BYTES: u32 = JUMP_CACHES_BYTES / PRIVILEGES;
/**
 * Byte offset of an entry: ((pc << 4) ^ (pc >> JUMP_CACHE_FOLD)) & JUMP_CACHE_MASK. Programs have
 * many functions that begin at the same place of their page.
 */
export const JUMP_CACHE_MASK: u32 = JUMP_CACHE_BYTES - 32;
export const JUMP_CACHE_FOLD: u32 = 9;

/** The table of the current privilege. */
export function jumpCache(): u32 {
  return tableOf(getPriv());
}

function tableOf(priv: u32): u32 {
  return jumpCaches() + priv * JUMP_CACHE_BYTES;
}

function offsetOf(pc: u64): u32 {
  return (((<u32>pc) << 4) ^ (<u32>pc >> JUMP_CACHE_FOLD)) & JUMP_CACHE_MASK;
}

/** Generated code finds the entry `handle`, of a region at `base`, at `pc` from now on. */
export function rememberJump(pc: u64, base: u64, handle: u32): void {
  const known = jumpCache() + offsetOf(pc);
  store<u64>(known, pc);
  store<u64>(known, base, 8);
  store<u32>(known, load<u32>(hart, HART_EPOCH), 16);
  store<u32>(known, handle, 20);
}

/** It does not find it any more, in any privilege. */
export function forgetJump(pc: u64, handle: u32): void {
  for (let priv: u32 = 0; priv < PRIVILEGES; priv++) {
    const known = tableOf(priv) + offsetOf(pc);
    if (load<u64>(known) === pc && load<u32>(known, 20) === handle) store<u64>(known, 0);
  }
}
