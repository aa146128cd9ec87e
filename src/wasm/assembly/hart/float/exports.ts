/**
 * Entry of a module with nothing but floating point: tests call each operation by it.
 */
export * from "./convert";
export * from "./f32";
export * from "./f64";
export { fflags, setFflags } from "./flags";
