/**
 * What the control isolate and a machine's workers say to each other. Types only: both sides import
 * this file and nothing else of each other.
 *
 *   control  --IoRequest-->   I/O worker   --IoResponse, IoEvent-->   control
 *   control  --HartRequest--> hart worker  --HartEvent-->             control
 *
 * Calls to the I/O worker are numbered and answered once each, in any order. Bytes are moved by
 * transfer, never copied.
 *
 * @module
 */

import type { BlockErrorCode } from "../block/errors.ts";
import type { FleecingDiskInfo } from "../block/fleecing.ts";

/** A disk of a machine: one raw file. */
export interface DiskConfig {
  /** The name that the API uses, unique in its machine. */
  name: string;
  /** The file's path, inside the data folder. */
  path: string;
  /** The file's size, a multiple of 512; checked when it is opened. */
  sizeBytes: number;
  /** Opened for reading alone, and shown so to the guest (VIRTIO_BLK_F_RO). */
  isReadOnly: boolean;
  /** What the guest sees as the serial number (virtio get-id): at most 20 bytes. */
  serial: string;
}

/**
 * Files that a machine starts from. Without a firmware the SBI is built in and the kernel starts in
 * S mode.
 */
export interface BootConfig {
  /** Path of an image as kernel_image.ts knows it; null only where there is a firmware. */
  kernel: string | null;
  /** Path of the initial RAM disk, null: none. */
  initrd: string | null;
  /** Path of what starts in M mode in place of the built-in SBI, null: none. */
  firmware: string | null;
  /** The kernel's command line, at most limits.cmdlineBytes. */
  cmdline: string;
}

/** Everything an I/O worker needs to know about its machine. */
export interface MachineConfig {
  /** The machine's name, for messages. */
  name: string;
  /** RAM, within limits.memoryMinBytes and memoryMaxBytes. */
  memoryBytes: number;
  /** From 1 to limits.hartCount. */
  hartCount: number;
  /** What it starts from, at every start and reset. */
  boot: BootConfig;
  /** In the order of their virtio devices; at most limits.diskCount. */
  disks: DiskConfig[];
  /** Folder for temporary images of fleecings: emptied by the service at its start. */
  scratchDirectory: string;
  /**
   * Where the machine's NBD server listens: TCP address with port 0 for any, and a unix socket's
   * path.
   */
  nbd: { host: string; port: number; socketPath: string };
}

/** The first message to either kind of worker. */
export interface WorkerInit {
  /** Compiled in the control isolate, shared by all workers. */
  modules: { hart: WebAssembly.Module; kernels: WebAssembly.Module };
  /** The machine's one memory, shared: hart states, devices' registers, rings, RAM. */
  memory: WebAssembly.Memory;
}

/** What `fleecingStart` takes. All disks are frozen at one moment, between two guest requests. */
export interface FleecingRequest {
  /** Unique among the machine's fleecings. */
  name: string;
  /** Names of disks, at least one, none twice. */
  disks: string[];
  /** What a failed copy breaks: the guest's write, or the view. */
  onCbwError: "break-guest-write" | "break-snapshot";
  /** 0: none. */
  cbwTimeoutSeconds: number;
  /** Copies are made in units of at least so many bytes: a power of two. */
  minClusterSizeBytes: number;
  /**
   * Only the dirty areas of this bitmap of each disk are protected and readable; null: everything.
   */
  bitmap: string | null;
  /** Largest total size of the temporary images, null: unlimited. */
  scratchMaxBytes: number | null;
}

export type { FleecingDiskInfo };

/** A fleecing, as it stands. */
export interface FleecingInfo {
  /** Unique among the machine's fleecings. */
  name: string;
  /** In the order of the request. */
  disks: FleecingDiskInfo[];
}

/** One run of an export's map. */
export interface ExtentInfo {
  /** First byte of the run. */
  offset: number;
  /** Bytes, at least 1. */
  length: number;
  /** As the context defines them: NBD_STATE_* of base:allocation, or 1 for no access. */
  flags: number;
}

/** Where the machine's NBD server listens. */
export interface NbdAddresses {
  /** The address that it is bound to. */
  host: string;
  /** The TCP port that was chosen. */
  port: number;
  /** The path of its unix socket. */
  socketPath: string;
}

/** The calls that an I/O worker answers: parameters and result of each. */
export interface IoMethods {
  /** Opens disks and listeners. Once, first. */
  open: { params: { config: MachineConfig } & WorkerInit; result: NbdAddresses };
  /**
   * Clears RAM and devices, loads the boot files, writes the device tree, sets the harts' start
   * state.
   */
  load: { params: Record<string, never>; result: { entryPc: number } };
  /** Gives bytes to the console's input ring; `accepted`: how many fitted, from the first on. */
  consoleInput: { params: { bytes: Uint8Array<ArrayBuffer> }; result: { accepted: number } };
  /** Freezes disks; fails as a whole, and then leaves nothing. */
  fleecingStart: { params: FleecingRequest; result: FleecingInfo };
  /** A fleecing's figures of this moment. */
  fleecingInfo: { params: { name: string }; result: FleecingInfo };
  /** Cuts readers off, takes the filters out and removes the temporary images. */
  fleecingStop: { params: { name: string }; result: Record<string, never> };
  /** What an export is, as its readers see it. */
  exportInfo: {
    params: { exportName: string };
    result: { sizeBytes: number; isReadOnly: boolean };
  };
  /** Reads up to 1 MiB; fails as a whole with EACCES, naming the first forbidden range. */
  exportRead: {
    params: { exportName: string; offset: number; length: number };
    result: { bytes: ArrayBuffer };
  };
  /** Extents from `offset` on, at most `limit` of them. */
  exportExtents: {
    params: {
      exportName: string;
      context: "access" | "allocation";
      offset: number;
      length: number;
      limit: number;
    };
    result: { extents: ExtentInfo[] };
  };
  /**
   * Starts an NBD session over `port`: see NbdPortMessage. Only `exportName` can be opened in it.
   */
  nbdOpen: { params: { exportName: string; port: MessagePort }; result: Record<string, never> };
  /** Takes fleecings down, flushes and closes disks and listeners. Once, last. */
  close: { params: Record<string, never>; result: Record<string, never> };
}

/** The name of a call. */
export type IoMethod = keyof IoMethods;

/**
 * An error that crosses between isolates. `range`: the first forbidden area, where one is to blame.
 */
export interface WireError {
  /** What went wrong, as errno(3) names it. */
  code: BlockErrorCode;
  /** For people. */
  message: string;
  /** The first area that may not be read, in bytes. */
  range?: { offset: number; length: number };
}

/** A call. `id` is chosen by the caller and comes back in the answer. */
export type IoRequest = {
  [M in IoMethod]: { id: number; method: M; params: IoMethods[M]["params"] };
}[IoMethod];

/** To an I/O worker, beside its calls; not answered. */
export type IoNotice =
  /** Bytes of console events were taken; beyond a window of untaken ones the guest waits. */
  { type: "consoleTaken"; byteCount: number };

/** The answer to the call with that `id`: its result, or why there is none. */
export type IoResponse =
  | { type: "response"; id: number; result: IoMethods[IoMethod]["result"] }
  | { type: "response"; id: number; error: WireError };

/** What an I/O worker says unasked. */
export type IoEvent =
  | { type: "console"; bytes: Uint8Array<ArrayBuffer> }
  /** The guest shut down, asked for a reboot, or a hart met a bug of ours. */
  | { type: "exit"; reason: "shutdown" | "reboot" | "hostFault"; code: number }
  | { type: "fleecingBroken"; fleecing: string; disk: string; error: WireError };

/**
 * The bytes of an NBD session between the control isolate (which holds the WebSocket) and the I/O
 * worker: see the transport.
 */
export type { NbdPortMessage } from "../nbd/transports/port.ts";

/** To a hart worker. The first message is `init`. */
export type HartRequest =
  | ({ type: "init"; hartId: number } & WorkerInit)
  /** Runs until STOP_WORD is set or the machine exits, then answers `parked`. */
  | { type: "run" };

/** From a hart worker. */
export type HartEvent =
  | { type: "ready"; hartId: number }
  | { type: "parked"; hartId: number }
  | { type: "failed"; hartId: number; message: string };
