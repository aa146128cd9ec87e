/** Everything that the host sees of the processor: the layout, and the run loop. */
export * from "./layout";
export {
  bindHart as bind,
  reset,
  run,
  runExactly,
  setTranslator,
  startTranslator,
  wakeSeen,
} from "./run";
export { setWideArithmetic } from "./translator/policy";
export { leaveRegion } from "./translator/calls";
export {
  atomicOperation,
  combineBytes,
  csrOperation,
  floatOperation,
  fusedOperation,
  multiplyHigh,
  multiplyHighMixed,
  multiplyHighUnsigned,
  findRegion,
  readPage,
  reverseBytes,
  writePage,
} from "./translator/helpers";
export { nextTimerTicks } from "./board/interrupts";
