/**
 * Accrued exception flags of the hart that this instance runs (F 2.2).
 *
 * `fflags` IS fcsr.fflags while a hart runs, not a delta: operations OR their flags into it, the
 * CSR instructions read and write it here, and a hart that is loaded into the instance brings its
 * own value. So no instruction has to fold anything, and the fast paths see with one test whether
 * inexact is set already, which is when they need not find out whether a result is exact.
 *
 * Invariant: only the low five bits are ever set. Who changes fcsr calls `setFflags`.
 */

/** Inexact. */
export const FLAG_NX: u32 = 1;
/** Underflow: tiny after rounding, and inexact. */
export const FLAG_UF: u32 = 2;
/** Overflow. */
export const FLAG_OF: u32 = 4;
/** Division of a finite number by zero. */
export const FLAG_DZ: u32 = 8;
/** Invalid operation. */
export const FLAG_NV: u32 = 16;

/** fcsr.fflags of the running hart. Per instance, like every module global. */
export let fflags: u32 = 0;

/** Writes fcsr.fflags; other bits than the five flags are ignored. */
export function setFflags(value: u32): void {
  fflags = value & 31;
}

/** Accrues flags. */
export function raise(flags: u32): void {
  fflags |= flags;
}
