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

/** A disk of a machine: one raw file. */
export interface DiskConfig {
  /** The name that the API uses, unique in its machine. */
  name: string;
  /** The file's path, inside the data folder. */
  path: string;
  sizeBytes: number;
  isReadOnly: boolean;
  /** What the guest sees as the serial number (virtio get-id): at most 20 bytes. */
  serial: string;
}

/**
 * Files that a machine starts from. Without a firmware the SBI is built in and the kernel starts in
 * S mode.
 */
export interface BootConfig {
  kernel: string | null;
  initrd: string | null;
  firmware: string | null;
  cmdline: string;
}

/** Everything an I/O worker needs to know about its machine. */
export interface MachineConfig {
  name: string;
  memoryBytes: number;
  hartCount: number;
  boot: BootConfig;
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
  memory: WebAssembly.Memory;
}

/** What `fleecingStart` takes. All disks are frozen at one moment, between two guest requests. */
export interface FleecingRequest {
  name: string;
  /** Names of disks, at least one, none twice. */
  disks: string[];
  onCbwError: "break-guest-write" | "break-snapshot";
  /** 0: none. */
  cbwTimeoutSeconds: number;
  minClusterSizeBytes: number;
  /**
   * Only the dirty areas of this bitmap of each disk are protected and readable; null: everything.
   */
  bitmap: string | null;
  /** Largest total size of the temporary images, null: unlimited. */
  scratchMaxBytes: number | null;
}

/** One disk of a fleecing, as it stands. */
export interface FleecingDiskInfo {
  disk: string;
  exportName: string;
  sizeBytes: number;
  clusterSizeBytes: number;
  copiedBytes: number;
  clustersDone: number;
  clustersTotal: number;
  refusedReads: number;
  /** Time that guest requests waited for copies and for frozen reads, in milliseconds. */
  guestWaitMs: number;
  scratchUsedBytes: number;
  /** The first failed copy under break-snapshot: then every read is refused. */
  brokenBy: string | null;
}

/** A fleecing, as it stands. */
export interface FleecingInfo {
  name: string;
  disks: FleecingDiskInfo[];
}

/** One run of an export's map. */
export interface ExtentInfo {
  offset: number;
  length: number;
  flags: number;
}

/** Where the machine's NBD server listens. */
export interface NbdAddresses {
  host: string;
  port: number;
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
  consoleInput: { params: { bytes: Uint8Array<ArrayBuffer> }; result: { accepted: number } };
  fleecingStart: { params: FleecingRequest; result: FleecingInfo };
  fleecingInfo: { params: { name: string }; result: FleecingInfo };
  fleecingStop: { params: { name: string }; result: Record<string, never> };
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

export type IoMethod = keyof IoMethods;

/**
 * An error that crosses between isolates. `range`: the first forbidden area, where one is to blame.
 */
export interface WireError {
  code: BlockErrorCode;
  message: string;
  range?: { offset: number; length: number };
}

export type IoRequest = {
  [M in IoMethod]: { id: number; method: M; params: IoMethods[M]["params"] };
}[IoMethod];

/** To an I/O worker, beside its calls; not answered. */
export type IoNotice =
  /** Bytes of console events were taken; beyond a window of untaken ones the guest waits. */
  { type: "consoleTaken"; byteCount: number };

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
