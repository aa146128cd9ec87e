/**
 * What a monitor needs of a machine: its run state, its buttons, and the disks that its devices
 * work on.
 *
 * @module
 */

import type { BlockBackend } from "../block/backend.ts";
import type { MaybePromise } from "../block/types.ts";

/** QEMU's words for what a machine is doing. */
export type QmpRunState = "running" | "paused" | "shutdown" | "prelaunch" | "internal-error";

/** A disk of the machine. */
export interface QmpDisk {
  /** The disk's name: the device's id. */
  readonly name: string;
  /** Its device's place in QEMU's object model, `/machine/peripheral/NAME`. */
  readonly qdev: string;
  /** What the guest's requests go through. */
  readonly backend: BlockBackend;
}

/** See the module's head. */
export interface QmpMachine {
  /** Its name. */
  readonly name: string;
  /** What it is doing. */
  runState(): QmpRunState;
  /** Stops the harts. Emits STOP through the monitor where they ran. */
  stop(): MaybePromise<void>;
  /** Lets them go on. Emits RESUME. */
  cont(): MaybePromise<void>;
  /** Resets the machine. Emits RESET. */
  reset(): MaybePromise<void>;
  /** Presses the power button. Emits POWERDOWN. */
  powerdown(): MaybePromise<void>;
  /** In the order of their slots. */
  disks(): readonly QmpDisk[];
}
