/**
 * The AssemblyScript compiler, in a module of its own so that only a build that has something to
 * compile loads it: that takes half a second.
 *
 * @module
 */

// @ts-types="./asc.d.ts"
import asc from "assemblyscript/asc";

export { asc };
