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

import type { Accelerator } from "../wasm/translator.ts";
import type { BlockErrorCode } from "../block/errors.ts";
import type { DirtyBitmapInfo } from "../block/dirty_bitmap.ts";
import type { FleecingDiskInfo } from "../block/fleecing.ts";
import type { NbdStatistics } from "../nbd/statistics.ts";
import type { ServerTls } from "../nbd/transports/tls.ts";

/** How a disk's content stands in its file. */
export type DiskFormat = "raw" | "qcow2";

/** A disk: one file, with the chain of backing files that it names. */
export interface DiskConfig {
  /** The name that calls use, unique in its worker. */
  name: string;
  /** The active file's path: inside the data folder, or a folder that the operator allowed. */
  path: string;
  /** Of that file; never guessed, since a raw disk's content is its guest's. */
  format: DiskFormat;
  /** What it had last: a smaller one is refused, since something was cut off. 0: unknown. */
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

/** What an I/O worker needs to know to serve disks, of a machine or without one. */
export interface StorageConfig {
  /** The machine's or the disk's name, for messages and in export names. */
  name: string;
  /** In the order of their virtio devices; at most limits.diskCount. */
  disks: DiskConfig[];
  /** What the worker may open and change: folders of its disks, folders the operator allowed. */
  writableFolders: string[];
  /** What it may open for reading alone, beside those: files that its disks are backed by. */
  readableFolders: string[];
  /** Folder for temporary images of fleecings: emptied by the service at its start. */
  scratchDirectory: string;
  /**
   * Where the NBD server listens: TCP address with port 0 for any, and a unix socket's path; null:
   * there is none.
   */
  nbd: NbdListen | null;
  /** The unix socket of the monitor (QMP), null: there is none. */
  monitorPath: string | null;
}

/** Everything an I/O worker needs to know about its machine. */
export interface MachineConfig extends StorageConfig {
  /** RAM, within limits.memoryMinBytes and memoryMaxBytes. */
  memoryBytes: number;
  /** From 1 to limits.hartCount. */
  hartCount: number;
  /** How the harts execute; left out: the interpreter. */
  accel?: Accelerator;
  /** What it starts from, at every start and reset. */
  boot: BootConfig;
  /** A machine has one. */
  nbd: NbdListen;
  /** The unix socket of its monitor (QMP). */
  monitorPath: string;
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
  /** `new`: any target, read through snapshot-access; `old`: a qcow2 backed by the active disk. */
  scheme: "new" | "old";
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
  /**
   * A bitmap that stops recording at the moment, and then counts as `bitmap` does: on each disk
   * that has a good one. On others everything is readable, and the answer says why.
   */
  since: string | null;
  /** The name of a bitmap that starts recording at the moment, on each disk; null: none. */
  checkpoint: string | null;
  /** Largest total size of the temporary images, null: unlimited. */
  scratchMaxBytes: number | null;
  /** Folder for the temporary images, null: the configuration's. */
  scratchDirectory: string | null;
}

export type { DirtyBitmapInfo, FleecingDiskInfo };

/** What a disk has in a fleecing, beside its figures. */
export interface FleecingDisk extends FleecingDiskInfo {
  /** What `since` came to: null where nothing was asked for. */
  incremental: { isIncremental: boolean; reason: string | null } | null;
}

/** A fleecing, as it stands. */
export interface FleecingInfo {
  /** Unique among the machine's fleecings. */
  name: string;
  /** In the order of the request. */
  disks: FleecingDisk[];
}

/** How a fleecing ends: what its reader made of it. See `fleecingEnd`. */
export type FleecingResult = "success" | "failure";

/** One file of a disk's chain, the active one first. */
export interface ChainEntry {
  /** The format's node. */
  nodeName: string;
  /** The format's name. */
  driver: string;
  /** The file's path, null where it is none. */
  path: string | null;
  /** The content's size. */
  sizeBytes: number;
}

/** A disk, as it stands in its worker. */
export interface DiskInfo {
  /** As in the configuration. */
  name: string;
  /** The content's size. */
  sizeBytes: number;
  /** Unit of allocation, null where the format has none. */
  clusterSizeBytes: number | null;
  /** Bytes that the active file takes, null where nobody knows. */
  allocatedBytes: number | null;
  /** Refuses writes. */
  isReadOnly: boolean;
  /** The active file, then what it is backed by. */
  chain: ChainEntry[];
  /** The dirty bitmaps of the active file. */
  bitmaps: DirtyBitmapInfo[];
}

/** A file that an image is made in. */
export interface NewImage {
  /** Where; there must be nothing yet. */
  path: string;
  /** How the content is kept. */
  format: DiskFormat;
  /** The content's size. */
  sizeBytes: number;
  /** Of qcow2, null: its default. */
  clusterSizeBytes: number | null;
  /** What it is backed by, null: nothing. */
  backing: { path: string; format: DiskFormat } | null;
}

/** A change of a dirty bitmap, named as QEMU's transaction actions without `block-dirty-`. */
export type BitmapChange =
  | {
    type: "bitmap-add";
    disk: string;
    name: string;
    /** null: the format's cluster, from 4 KiB to 64 KiB. */
    granularityBytes: number | null;
    /** Kept with the disk (qcow2); null: where that is possible. */
    isPersistent: boolean | null;
    isDisabled: boolean;
  }
  | {
    type: "bitmap-remove" | "bitmap-clear" | "bitmap-enable" | "bitmap-disable";
    disk: string;
    name: string;
  }
  | {
    type: "bitmap-merge";
    disk: string;
    target: string;
    bitmaps: { disk: string; name: string }[];
  };

/** What a transaction is made of. */
export type TransactionAction =
  | BitmapChange
  | ({ type: "fleecing" } & FleecingRequest)
  | ({ type: "backup" } & BackupRequest)
  /** A new active file, backed by the one before. */
  | { type: "snapshot"; disk: string; overlay: NewImage }
  /** Fails always. */
  | { type: "abort" };

/** What an action of a transaction came to; null: nothing to say. */
export type TransactionResult = null | { fleecing: FleecingInfo } | { job: JobInfo };

/** What a job does with an error. */
export type JobErrorPolicy = "report" | "ignore" | "stop" | "enospc";

/** What all jobs take. */
export interface JobRequestBase {
  /** Unique in the service. */
  id: string;
  /** The disk that it works on. */
  disk: string;
  /** Bytes a second, 0: no limit. */
  speed: number;
  /** Ends by itself when its work is done; else it waits for `finalize`. */
  isAutoFinalize: boolean;
}

/** A copy of a disk as it was at the start of the job. */
export interface BackupRequest extends JobRequestBase {
  /** What of the disk is copied. */
  sync: "full" | "top" | "none" | "incremental" | "bitmap";
  /** With sync incremental and bitmap. */
  bitmap: string | null;
  /** With sync bitmap. */
  bitmapMode: "on-success" | "never" | "always" | null;
  /** Where it goes: a new file. */
  target: NewImage;
  /** Of qcow2: clusters are stored compressed. */
  isCompressed: boolean;
  /** What becomes of an error of the disk. */
  onSourceError: JobErrorPolicy;
  /** What becomes of an error of the target. */
  onTargetError: JobErrorPolicy;
}

/** The jobs that can be started, with QEMU's arguments. */
export type JobRequest =
  | ({ type: "backup" } & BackupRequest)
  | ({
    type: "mirror";
    sync: "full" | "top" | "none";
    copyMode: "background" | "write-blocking";
    target: NewImage;
    onSourceError: JobErrorPolicy;
    onTargetError: JobErrorPolicy;
  } & JobRequestBase)
  /** `top` and `base` are node names of the disk's chain; null: the active file, the lowest one. */
  | ({
    type: "commit";
    top: string | null;
    base: string | null;
    onError: JobErrorPolicy;
  } & JobRequestBase)
  /** `base`: what the chain keeps below, null: nothing. */
  | ({ type: "stream"; base: string | null; onError: JobErrorPolicy } & JobRequestBase);

/** A job as it stands, in QEMU's words. */
export interface JobInfo {
  /** Unique in the service. */
  id: string;
  /** backup, mirror, commit, stream. */
  type: string;
  /** The disk that it works on, in its worker's words. */
  disk: string;
  /** created, running, paused, ready, standby, waiting, pending, aborting, concluded, null. */
  status: string;
  /** Bytes done; may run ahead of and fall back behind what `total` said before. */
  currentProgress: number;
  /** Bytes to be done, as far as it is known now. */
  totalProgress: number;
  /** Bytes a second, 0: no limit. */
  speed: number;
  /** Why it failed, null: it did not. */
  error: string | null;
}

/** What can be asked of a job. */
export type JobCommand = "cancel" | "pause" | "resume" | "complete" | "finalize" | "dismiss";

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
  /** Its TCP port wants TLS. */
  isTlsRequired?: boolean;
}

/** Where the machine's NBD server is to listen, and how: port 0 for any. */
export interface NbdListen extends NbdAddresses {
  /** For TCP; without it there is no TLS. */
  tls?: NbdTls;
}

/** TLS of NBD servers. */
export interface NbdTls {
  /** What clients are shown, and what they must show. */
  certificate: ServerTls;
  /** Nothing else goes by TCP. */
  isRequired: boolean;
}

/** What is open in a worker. */
export interface StorageOpened {
  /** Where its NBD server listens, null: nowhere. */
  nbd: NbdAddresses | null;
  /** In the order of the configuration. */
  disks: DiskInfo[];
}

/** The calls that an I/O worker answers: parameters and result of each. */
export interface IoMethods {
  /** Opens disks and listeners. Once, first. */
  open: { params: { config: MachineConfig } & WorkerInit; result: StorageOpened };
  /** The same for disks without a machine: no guest, no console. */
  openStorage: {
    params: { config: StorageConfig; kernels: WebAssembly.Module };
    result: StorageOpened;
  };
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
  /**
   * Cuts readers off, takes the filters out and removes the temporary images. With success the
   * bitmap `since` goes and the checkpoint stays; with failure what the checkpoint's bitmap marked
   * is merged back into `since`, which records on, and the checkpoint's bitmap goes.
   */
  fleecingEnd: {
    params: { name: string; result: FleecingResult };
    result: Record<string, never>;
  };
  /** What a fleecing of these disks may have to copy, at most. */
  fleecingEstimate: {
    params: { disks: string[]; bitmap: string | null };
    result: { bytes: number };
  };
  /** Carries out all actions at one moment, or none. */
  transact: {
    params: { actions: TransactionAction[] };
    result: { results: TransactionResult[] };
  };
  /** A disk with its chain and bitmaps. */
  diskInfo: { params: { disk: string }; result: DiskInfo };
  /** Makes an image, in a folder that the worker may write to. */
  diskCreate: { params: NewImage; result: Record<string, never> };
  /** Changes a disk's size; its guest hears of it. */
  diskResize: { params: { disk: string; sizeBytes: number }; result: Record<string, never> };
  /** Reads a disk as it is now, up to 1 MiB. */
  diskRead: {
    params: { disk: string; offset: number; length: number };
    result: { bytes: ArrayBuffer };
  };
  /** Writes to a disk that no guest has. */
  diskWrite: {
    params: { disk: string; offset: number; bytes: Uint8Array<ArrayBuffer> };
    result: Record<string, never>;
  };
  /** Brings what was written to stable storage. */
  diskFlush: { params: { disk: string }; result: Record<string, never> };
  /** A part of a disk's map, at most `limit` extents. `bitmap`: with context `dirty`. */
  diskExtents: {
    params: {
      disk: string;
      context: "allocation" | "dirty";
      bitmap: string | null;
      offset: number;
      length: number;
      limit: number;
    };
    result: { extents: ExtentInfo[] };
  };
  /** Starts a job. */
  jobStart: { params: JobRequest; result: JobInfo };
  /** Asks something of a job. */
  jobCommand: { params: { id: string; command: JobCommand }; result: Record<string, never> };
  /** Changes a job's limit. */
  jobSetSpeed: { params: { id: string; speed: number }; result: Record<string, never> };
  /** All jobs that were not dismissed. */
  jobList: { params: Record<string, never>; result: { jobs: JobInfo[] } };
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
      context: "access" | "allocation" | "dirty";
      /** With context `dirty`: null where the export shows only one. */
      bitmap: string | null;
      offset: number;
      length: number;
      limit: number;
    };
    result: { extents: ExtentInfo[] };
  };
  /** Says that a part of an export was read: see BlockExport.discard. */
  exportDiscard: {
    params: { exportName: string; ranges: { offset: number; length: number }[] };
    result: Record<string, never>;
  };
  /**
   * Starts an NBD session over `port`: see NbdPortMessage. Only `exportName` can be opened in it.
   */
  nbdOpen: { params: { exportName: string; port: MessagePort }; result: Record<string, never> };
  /** What the NBD server counts. */
  nbdStatistics: { params: Record<string, never>; result: NbdStatistics };
  /** Starts a monitor session over `port`: see NbdPortMessage. */
  monitorOpen: { params: { port: MessagePort }; result: Record<string, never> };
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
  | { type: "consoleTaken"; byteCount: number }
  /** The harts run, or are parked until further notice. */
  | { type: "runState"; state: "running" | "paused" }
  /** To a question: it is done (null), or why it is not. */
  | { type: "answer"; id: number; error: WireError | null };

/** The answer to the call with that `id`: its result, or why there is none. */
export type IoResponse =
  | { type: "response"; id: number; result: IoMethods[IoMethod]["result"] }
  | { type: "response"; id: number; error: WireError };

/** What an I/O worker says unasked. */
export type IoEvent =
  | { type: "console"; bytes: Uint8Array<ArrayBuffer> }
  /** The guest shut down, asked for a reboot, or a hart met a bug of ours. */
  | { type: "exit"; reason: "shutdown" | "reboot" | "hostFault"; code: number }
  | { type: "fleecingBroken"; fleecing: string; disk: string; error: WireError }
  /** A job came, changed its status, went on (at most once a second) or went (status null). */
  | { type: "job"; job: JobInfo }
  /** A disk has another size now. */
  | { type: "diskResized"; disk: string; sizeBytes: number }
  /** Must be answered by an `answer` with that number: see HostQuestion. */
  | { type: "question"; id: number; question: HostQuestion };

/** What an I/O worker can't do or decide by itself. */
export type HostQuestion =
  /**
   * Another file is about to become the active one of a disk. The guest is held meanwhile: answered
   * when the change is on record, so that the next start opens the right file, whatever happens.
   */
  | { type: "activeFile"; disk: string; path: string; format: DiskFormat }
  /** A monitor asks for it. */
  | { type: "control"; request: "stop" | "cont" | "reset" | "powerdown" | "quit" };

/**
 * The bytes of an NBD session between the control isolate (which holds the WebSocket) and the I/O
 * worker: see the transport.
 */
export type { NbdStatistics } from "../nbd/statistics.ts";
export type { NbdPortMessage } from "../nbd/transports/port.ts";

/** To a hart worker. The first message is `init`. */
export type HartRequest =
  | ({ type: "init"; hartId: number; accel: Accelerator } & WorkerInit)
  /** Runs until STOP_WORD is set or the machine exits, then answers `parked`. */
  | { type: "run" };

/** From a hart worker. */
export type HartEvent =
  | { type: "ready"; hartId: number }
  | { type: "parked"; hartId: number }
  | { type: "failed"; hartId: number; message: string };
