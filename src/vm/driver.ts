/**
 * What the life cycle needs of a machine's workers. The real one is MachineHandle; tests give
 * another.
 *
 *   open -> [start -> (pause <-> resume | reset)* ] -> close
 *
 * The state driver in machine.ts calls one of these at a time, but `call` and `consoleInput`, which
 * may be called whenever the driver is open.
 *
 * @module
 */

import type { IoMethod, IoMethods, MachineConfig, NbdAddresses } from "../machine/messages.ts";

/** What a driver says unasked. */
export interface DriverEvents {
  /** Bytes that the guest wrote to its console. */
  onConsole(bytes: Uint8Array): void;
  /** The guest went down by itself, asked for a reboot, or a hart met a bug of ours. */
  onExit(reason: "shutdown" | "reboot" | "hostFault", code: number): void;
  /** A copy failed under break-snapshot: the view can't be read any more, the guest goes on. */
  onFleecingBroken(fleecing: string, disk: string, message: string): void;
  /** A worker died. */
  onFailed(message: string): void;
}

/** An open machine: disks and listeners are open, harts exist and are parked. */
export interface MachineDriver {
  /** Where its NBD server listens, with the TCP port that was chosen. */
  readonly nbd: NbdAddresses;
  /** Loads the boot files and lets the harts run. */
  start(): Promise<void>;
  /** Parks the harts; resolves when all are parked. */
  pause(): Promise<void>;
  /** Lets parked harts run on. */
  resume(): Promise<void>;
  /** Parks the harts, loads the boot files again, and lets the harts run. */
  reset(): Promise<void>;
  /** Gives bytes to the console's input ring; resolves with how many fitted. */
  consoleInput(bytes: Uint8Array<ArrayBuffer>): Promise<number>;
  /** A call to the I/O worker. Rejects with an error that carries an errno `code`. */
  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
    transfer?: Transferable[],
  ): Promise<IoMethods[M]["result"]>;
  /**
   * Parks the harts, takes fleecings down, flushes and closes disks, ends the workers. Never
   * throws.
   */
  close(): Promise<void>;
}

/** Opens a machine. */
export type OpenDriver = (config: MachineConfig, events: DriverEvents) => Promise<MachineDriver>;
