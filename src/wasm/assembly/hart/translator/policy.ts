/**
 * What is translated, when, and how much at once: every number of that kind.
 *
 * The interpreter is stopped every `samplePeriod` instructions, at the next jump; the pc that it
 * was about to go on at has one more sample then, and at `hotSamples` a region is translated that
 * begins there. So a place is translated when the time spent around it is worth it, and the
 * interpreter counts nothing.
 */

/** Instructions of the interpreter between two samples; 0: nothing is translated. */
export let samplePeriod: i32 = 0;
export let hotSamples: u32 = 1;

/** What has proven right: fewer samples cost V8's compiler more than they save. */
export const SAMPLE_PERIOD: i32 = 1000;
export const HOT_SAMPLES: u32 = 120;

/** Turns the translator on (`period` > 0) or off. */
export function setPolicy(period: i32, samples: u32): void {
  samplePeriod = period;
  hotSamples = samples;
}

/**
 * What is added to the heat of a place for a sample, and when translated code was left for it; at
 * hotSamples * HEAT_OF_A_SAMPLE, which a byte must hold, it is hot.
 */
export const HEAT_OF_A_SAMPLE: u32 = 2;
export const HEAT_OF_A_MISS: u32 = 1;

/** Samples after which all counts are halved, so that only what is hot now is translated. */
export const SAMPLES_OF_AN_AGE: u32 = 16384;

// ---- the size of a region -----------------------------------------------------------------------

/** Pages of code that a region may be made of. */
export const REGION_PAGES: u32 = 16;
export const REGION_INSTRUCTIONS: u32 = 1000;
export const REGION_BLOCKS: u32 = 320;

/**
 * Instructions of a region at first, and when it was made anew: V8 compiles a function that is used
 * much as a whole, for some 30 us an instruction, so a region grows only where it is worth it.
 */
export function instructionLimit(generation: u32): u32 {
  return min(250 << generation, REGION_INSTRUCTIONS);
}

/** Targets that indirect jumps look for in the region itself. */
export const REGION_CASES: u32 = 16;
/** Ways into a region. */
export const REGION_ENTRIES: u32 = 64;
/** A longer run of instructions is cut: exits count back from its end in 7 bits. */
export const BLOCK_INSTRUCTIONS: u32 = 60;

/**
 * A region that was left so often for places on its own pages that nothing is known of is made anew
 * with them; twice as often each further time, up to MISSES_GROW times. A miss costs up to a
 * microsecond, V8's work on a region some ten milliseconds.
 */
export const MISSES_OF_A_REBUILD: u32 = 500;
export const MISSES_GROW: u32 = 3;
/** So many such places are kept, and so often a region is made anew. */
export const MISSED_PLACES: u32 = 24;
export const REBUILDS: u32 = 8;

// ---- what V8 understands -----------------------------------------------------------------------

/** Whether it compiles i64.mul_wide_s and i64.mul_wide_u. */
export let hasWideArithmetic: bool = false;

export function setWideArithmetic(isThere: bool): void {
  hasWideArithmetic = isThere;
}

// ---- the size of the code cache -----------------------------------------------------------------

/** There is room for as many regions. */
export const REGION_SLOTS: u32 = 4096;

/** Regions that were made anew, and may still be entered: so many at most. */
export const RETIRED_LIMIT: u32 = 256;

/** When as many regions, or bytes of their modules, are there, all are dropped. */
export let regionLimit: u32 = REGION_SLOTS - RETIRED_LIMIT - 1;
export let codeBytesLimit: u32 = 48 * 1024 * 1024;

export function setCacheLimits(regions: u32, bytes: u32): void {
  regionLimit = min(regions, REGION_SLOTS - RETIRED_LIMIT - 1);
  codeBytesLimit = bytes;
}
