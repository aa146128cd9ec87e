/**
 * Real machines: compiles what their workers share, once.
 *
 * @module
 */

import { compileHart } from "../wasm/hart.ts";
import { compileKernels } from "../wasm/kernels.ts";
import type { OpenDriver } from "./driver.ts";
import { MachineHandle } from "./machine_handle.ts";

/** Opens machines that run in workers of this process. */
export async function openMachines(): Promise<OpenDriver> {
  const [hart, kernels] = await Promise.all([compileHart(), compileKernels()]);
  return (config, events) => MachineHandle.open(config, { hart, kernels }, events);
}
