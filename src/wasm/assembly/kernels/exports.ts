/** Everything that the host sees of the kernels: bitmaps, and the zero test. */
export { clearRange, count, nextClear, nextSet, setRange, test } from "./bits";
export { andNot, merge, projectCoarser, projectFiner } from "./combine";
export { isZero } from "./zero";
