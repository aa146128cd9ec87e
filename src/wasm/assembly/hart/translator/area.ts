/**
 * Where the translator keeps its things: an area a hart in the shared memory, used by that hart
 * alone.
 *
 *   + PAGE_HEADS   u32 a RAM page: first link of its list of regions, 0 if none      3.5 MiB
 *   + REGIONS      REGION_SLOTS records of REGION_STRIDE bytes: see regions.ts       4 MiB
 *   + HEAT         u8 counters of how often the interpreter was seen at a pc         64 KiB
 *   + PAGE_LIST    u32: RAM pages that have regions                                  64 KiB
 *   + STATE        words of regions.ts
 *   + PAGE_TABLES  see locals.ts
 *   + SCRATCH      what one translation needs: see discover.ts, structure.ts         768 KiB
 *   + BODY         the code of the function that is being made                       1 MiB
 *   + HINTS        places of unlikely branches in it                                 128 KiB
 *   + MODULE       the finished module, for the host to compile                      1.5 MiB
 *   + JUMP_CACHES  see jump_cache.ts                                                 1 MiB
 */

import { TRANSLATOR_BASE, TRANSLATOR_STRIDE } from "../layout";
import { hartId } from "../state";

export const PAGE_HEADS: u32 = 0;
export const REGIONS: u32 = 0x0040_0000;
export const HEAT: u32 = 0x0080_0000;
export const PAGE_LIST: u32 = 0x0081_0000;
export const STATE: u32 = 0x0082_0000;
export const PAGE_TABLES: u32 = 0x0082_1000;
export const SCRATCH: u32 = 0x0083_0000;
export const BODY: u32 = 0x0090_0000;
export const HINTS: u32 = 0x00a0_0000;
export const MODULE: u32 = 0x00a8_0000;

export const BODY_BYTES: u32 = HINTS - BODY;
export const HINTS_BYTES: u32 = MODULE - HINTS;

/** Address of this hart's area. */
export function area(): u32 {
  return TRANSLATOR_BASE + hartId * TRANSLATOR_STRIDE;
}
