/**
 * How a device refuses an access. The bus (mmio.ts) clears the flag before each access; the
 * processor looks at it after, and raises an access fault.
 */

/** The last access had no answer: no device there, or not with that size. */
export let mmioFault: bool = false;

export function clearFault(): void {
  mmioFault = false;
}

/** Marks the access as refused; what it returns is ignored. */
export function refuseAccess(): u64 {
  mmioFault = true;
  return 0;
}
