/** Everything that the host sees of the processor: the layout, and the run loop. */
export * from "./layout";
export { bindHart as bind, reset, run, wakeSeen } from "./run";
export { nextTimerTicks } from "./board/interrupts";
