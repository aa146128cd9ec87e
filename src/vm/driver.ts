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

import type { TranslatorFigures } from "../wasm/translator.ts";
import type {
  HostQuestion,
  IoMethod,
  IoMethods,
  JobInfo,
  MachineConfig,
  NbdAddresses,
  StorageConfig,
  StorageOpened,
} from "../machine/messages.ts";

import type { Profile, ProfileOrder } from "./profiler.ts";

export type { TranslatorFigures };

/** What a driver of disks says unasked. */
export interface StorageEvents {
  /** A copy failed under break-snapshot: the view can't be read any more, the guest goes on. */
  onFleecingBroken(fleecing: string, disk: string, message: string): void;
  /** A job came, changed, or went on. */
  onJob(job: JobInfo): void;
  /** A disk has another size. */
  onDiskResized(disk: string, sizeBytes: number): void;
  /** Something that only the control side can do or decide. A rejection is told to the worker. */
  onQuestion(question: HostQuestion): Promise<void>;
  /** A worker died. */
  onFailed(message: string): void;
}

/** What a machine's driver says unasked. */
export interface DriverEvents extends StorageEvents {
  /** Bytes that the guest wrote to its console. */
  onConsole(bytes: Uint8Array): void;
  /** The guest went down by itself, asked for a reboot, or a hart met a bug of ours. */
  onExit(reason: "shutdown" | "reboot" | "hostFault", code: number): void;
}

/** Open disks. */
export interface StorageDriver {
  /** What was found when they were opened. */
  readonly opened: StorageOpened;
  /** A call to the I/O worker. Rejects with an error that carries an errno `code`. */
  call<M extends IoMethod>(
    method: M,
    params: IoMethods[M]["params"],
    transfer?: Transferable[],
  ): Promise<IoMethods[M]["result"]>;
  /** Ends jobs and fleecings, flushes and closes disks, ends the worker. Never throws. */
  close(): Promise<void>;
}

/** An open machine: disks and listeners are open, harts exist and are parked. */
export interface MachineDriver extends StorageDriver {
  /** Where its NBD server listens, with the TCP port that was chosen. */
  readonly nbd: NbdAddresses;
  /** What its translators did; null where the harts only interpret. */
  readonly translator: TranslatorFigures | null;
  /** Loads the boot files and lets the harts run. */
  start(): Promise<void>;
  /** Parks the harts; resolves when all are parked. */
  pause(): Promise<void>;
  /** Lets parked harts run on. */
  resume(): Promise<void>;
  /** Parks the harts, loads the boot files again, and lets the harts run. */
  reset(): Promise<void>;
  /** Looks where its harts are for a while; a stop of the machine ends it. Throws EBUSY. */
  profile(order: ProfileOrder): Promise<Profile>;
  /** Gives bytes to the console's input ring; resolves with how many fitted. */
  consoleInput(bytes: Uint8Array<ArrayBuffer>): Promise<number>;
  /**
   * Parks the harts, takes fleecings down, flushes and closes disks, ends the workers. Never
   * throws.
   */
  close(): Promise<void>;
}

/** Opens a machine. */
export type OpenDriver = (config: MachineConfig, events: DriverEvents) => Promise<MachineDriver>;

/** Opens disks without a machine. */
export type OpenStorage = (config: StorageConfig, events: StorageEvents) => Promise<StorageDriver>;
