/**
 * Into translated code and out of it. A region's function has the guest's x registers as parameters
 * (locals.ts), in memory they are while the interpreter runs.
 */

import { HART_X } from "../layout";
import {
  getX,
  HART_HOPS,
  HART_LAST_BASE,
  HART_LAST_HANDLE,
  HART_LEFT,
  HART_WHY,
  hart as currentHart,
} from "../state";

/** Executes the region at `index` of the table for `left` instructions or so; LEFT_* then. */
export function callRegion(index: u32, handle: u32, base: u64, left: i32): i32 {
  // deno-fmt-ignore: as they are numbered
  return call_indirect<i32>(index, currentHart, handle, base, left,
    getX(1), getX(2), getX(3), getX(4), getX(5), getX(6), getX(7), getX(8), getX(9), getX(10),
    getX(11), getX(12), getX(13), getX(14), getX(15), getX(16), getX(17), getX(18), getX(19),
    getX(20), getX(21), getX(22), getX(23), getX(24), getX(25), getX(26), getX(27), getX(28),
    getX(29), getX(30), getX(31), 0);
}

/** What regions end with: puts everything where the interpreter looks for it. */
// deno-fmt-ignore: as they are numbered
export function leaveRegion(
  hart: u32, handle: u32, base: u64, left: i32,
  x1: u64, x2: u64, x3: u64, x4: u64, x5: u64, x6: u64, x7: u64, x8: u64, x9: u64, x10: u64,
  x11: u64, x12: u64, x13: u64, x14: u64, x15: u64, x16: u64, x17: u64, x18: u64, x19: u64,
  x20: u64, x21: u64, x22: u64, x23: u64, x24: u64, x25: u64, x26: u64, x27: u64, x28: u64,
  x29: u64, x30: u64, x31: u64,
  hops: u32,
): i32 {
  store<i32>(hart, left, HART_LEFT);
  store<u32>(hart, handle, HART_LAST_HANDLE);
  store<u64>(hart, base, HART_LAST_BASE);
  store<u32>(hart, hops, HART_HOPS);
  store<u64>(hart, x1, HART_X + 8);
  store<u64>(hart, x2, HART_X + 16);
  store<u64>(hart, x3, HART_X + 24);
  store<u64>(hart, x4, HART_X + 32);
  store<u64>(hart, x5, HART_X + 40);
  store<u64>(hart, x6, HART_X + 48);
  store<u64>(hart, x7, HART_X + 56);
  store<u64>(hart, x8, HART_X + 64);
  store<u64>(hart, x9, HART_X + 72);
  store<u64>(hart, x10, HART_X + 80);
  store<u64>(hart, x11, HART_X + 88);
  store<u64>(hart, x12, HART_X + 96);
  store<u64>(hart, x13, HART_X + 104);
  store<u64>(hart, x14, HART_X + 112);
  store<u64>(hart, x15, HART_X + 120);
  store<u64>(hart, x16, HART_X + 128);
  store<u64>(hart, x17, HART_X + 136);
  store<u64>(hart, x18, HART_X + 144);
  store<u64>(hart, x19, HART_X + 152);
  store<u64>(hart, x20, HART_X + 160);
  store<u64>(hart, x21, HART_X + 168);
  store<u64>(hart, x22, HART_X + 176);
  store<u64>(hart, x23, HART_X + 184);
  store<u64>(hart, x24, HART_X + 192);
  store<u64>(hart, x25, HART_X + 200);
  store<u64>(hart, x26, HART_X + 208);
  store<u64>(hart, x27, HART_X + 216);
  store<u64>(hart, x28, HART_X + 224);
  store<u64>(hart, x29, HART_X + 232);
  store<u64>(hart, x30, HART_X + 240);
  store<u64>(hart, x31, HART_X + 248);
  return load<i32>(hart, HART_WHY);
}
