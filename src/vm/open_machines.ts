/**
 * Real machines, and disks without one: compiles what their workers share, once.
 *
 * @module
 */

import { compileHart } from "../wasm/hart.ts";
import { compileKernels } from "../wasm/kernels.ts";
import type { OpenDriver, OpenStorage } from "./driver.ts";
import { StorageHandle } from "./io_handle.ts";
import { MachineHandle } from "./machine_handle.ts";

/** Opens machines and disks that are served by workers of this process. */
export async function openMachines(): Promise<
  { openDriver: OpenDriver; openStorage: OpenStorage }
> {
  const [hart, kernels] = await Promise.all([compileHart(), compileKernels()]);
  return {
    openDriver: (config, events) => MachineHandle.open(config, { hart, kernels }, events),
    openStorage: (config, events) => StorageHandle.open(config, kernels, events),
  };
}
