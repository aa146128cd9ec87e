/**
 * What the host gives to the module. The compiler names an import's module after the file that
 * declares it, so this file's name is "env".
 */

/** Host time in ticks of 10 MHz, the same clock in every worker of the process. */
export declare function hostTicks(): f64;

/**
 * Compiles the module of `length` bytes at `address` and puts its function into the table at
 * `index`; the microseconds that took, or -1 if it could not be done.
 */
export declare function installRegion(address: u32, length: u32, index: u32): i32;

/** Takes a function out of the table. */
export declare function removeRegion(index: u32): void;
