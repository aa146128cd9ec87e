/**
 * What the host gives to the module. The compiler names an import's module after the file that
 * declares it, so this file's name is "env".
 */

/** Host time in ticks of 10 MHz, the same clock in every worker of the process. */
export declare function hostTicks(): f64;
