/**
 * Runs riscv-tests, one a message, away from the main thread. It needs no permissions.
 *
 * @module
 */

import type { Accelerator } from "../wasm/translator.ts";
import { type RiscvTestResult, runRiscvTest } from "./riscv_test.ts";

/** To the worker: a test to run. */
export interface RiscvTestRequest {
  /** hart.wasm, compiled. */
  module: WebAssembly.Module;
  /** The ELF file; its buffer is transferred. */
  bytes: Uint8Array<ArrayBuffer>;
  /** With the translator, everything is translated. */
  accel: Accelerator;
}

/** From the worker: how it ended. */
export type RiscvTestResponse = RiscvTestResult;

/**
 * What Deno's `deno.worker` library says of a worker's scope; this project's files see
 * `deno.window`.
 */
declare const self: {
  onmessage: (event: MessageEvent<RiscvTestRequest>) => void;
  postMessage(response: RiscvTestResponse): void;
};

self.onmessage = (event: MessageEvent<RiscvTestRequest>) => {
  const { module, bytes, accel } = event.data;
  const response: RiscvTestResponse = runRiscvTest(module, bytes, accel);
  self.postMessage(response);
};
