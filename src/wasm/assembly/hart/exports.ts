/** Everything that the host sees of the processor: the layout, and the run loop. */
export * from "./layout";
