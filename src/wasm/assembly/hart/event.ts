/**
 * What happened in a helper of the interpreter's loop, besides its result: nothing, an exception,
 * or something after which the loop must be left once the instruction is done.
 */

export const EVENT_NONE: u32 = 0;
/**
 * The instruction raises exception `cause` with `tval`: it has done nothing and does not retire.
 */
export const EVENT_EXCEPTION: u32 = 1;
/** The instruction retires; then interrupts, privilege or translation may have changed. */
export const EVENT_LEAVE: u32 = 2;

// Exception codes (Priv 3.1.15).
export const CAUSE_INSTRUCTION_ACCESS: u32 = 1;
export const CAUSE_ILLEGAL_INSTRUCTION: u32 = 2;
export const CAUSE_BREAKPOINT: u32 = 3;
export const CAUSE_LOAD_MISALIGNED: u32 = 4;
export const CAUSE_LOAD_ACCESS: u32 = 5;
export const CAUSE_STORE_MISALIGNED: u32 = 6;
export const CAUSE_STORE_ACCESS: u32 = 7;
export const CAUSE_ECALL_U: u32 = 8;
export const CAUSE_INSTRUCTION_PAGE: u32 = 12;
export const CAUSE_LOAD_PAGE: u32 = 13;
export const CAUSE_STORE_PAGE: u32 = 15;

export let event: u32 = 0;
export let cause: u32 = 0;
export let tval: u64 = 0;

/** Forgets the last event. */

export function clearEvent(): void {
  event = EVENT_NONE;
}

/** Records an exception. */
export function raiseException(exceptionCause: u32, exceptionTval: u64): void {
  event = EVENT_EXCEPTION;
  cause = exceptionCause;
  tval = exceptionTval;
}

/** Asks to leave the loop after this instruction. An exception stays one. */
export function requestLeave(): void {
  if (event === EVENT_NONE) event = EVENT_LEAVE;
}
