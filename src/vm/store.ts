/**
 * Where the service keeps what must survive it: images, machines, fleecings. One small interface,
 * so that another database can take the place of the built-in one.
 *
 * A record is one JSON document under a name. Every change is on stable storage when its call
 * returns.
 *
 * @module
 */

import type { Accelerator } from "../wasm/translator.ts";

/** One uploaded file of an image. */
export interface ImageFileRecord {
  /** Length of the file. */
  sizeBytes: number;
  /** Of the whole file: 64 hexadecimal digits, in lower case. */
  sha256: string;
}

/** The parts that an image can have. */
export const IMAGE_PARTS = ["kernel", "initrd", "firmware"] as const;

/** Which file of an image it is: also the file's name. */
export type ImagePart = (typeof IMAGE_PARTS)[number];

/** What machines boot from. */
export interface ImageRecord {
  /** Matches NAME_PATTERN; unique among images. */
  name: string;
  /** The kernel's command line. */
  cmdline: string;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** The parts that were uploaded; a part is replaced as a whole. */
  files: Partial<Record<ImagePart, ImageFileRecord>>;
}

/** How a disk's content stands in its file. */
export type DiskFormat = "raw" | "qcow2";

/** A disk, whether a machine uses it or not. `phase` says what a crash interrupted. */
export interface DiskRecord {
  /** Unique among disks: chosen, or MACHINE:DISK of one that was made with its machine. */
  name: string;
  /** The machine that it was made with and goes with; null: none. */
  owner: string | null;
  /** Names its folder below `disks`; a machine's disks share the machine's. */
  folder: string;
  /** The active file: below `disks`, or absolute in a folder that the operator allowed. */
  file: string;
  /** Of the active file. */
  format: DiskFormat;
  /** The files below `disks` that go with the disk. */
  files: string[];
  /** The content's size, as it was seen last. */
  sizeBytes: number;
  /** The disk that it was made upon, which then stays as it is; null: none. */
  backing: string | null;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** `creating` until its content is there, `deleting` until its files are gone. */
  phase: "creating" | "ready" | "deleting";
}

/** A disk in a machine. */
export interface MachineDisk {
  /** Unique in its machine. */
  name: string;
  /** The name of the disk that it is; absent in records of before there were such. */
  disk?: string;
  /** As it was made: DiskRecord knows the size of now. */
  sizeBytes: number;
  /** The guest can't write to it (VIRTIO_BLK_F_RO). */
  isReadOnly: boolean;
}

/** A machine. `phase` says what a crash interrupted. */
export interface MachineRecord {
  /** Matches NAME_PATTERN; unique among machines. */
  name: string;
  /** Short and unique: names its folders and its socket. */
  id: string;
  /** The image's name; the image can't be removed while it stands here. */
  image: string;
  /** RAM, a multiple of 1 MiB. */
  memoryBytes: number;
  /** From 1 to limits.hartCount. */
  hartCount: number;
  /** How the harts execute; left out: the interpreter. */
  accel?: Accelerator;
  /** In the order in which the guest finds them. */
  disks: MachineDisk[];
  /** ISO 8601, UTC. */
  createdAt: string;
  /** `creating` until its disks are there, `deleting` until they are gone. */
  phase: "creating" | "ready" | "deleting";
}

/** A fleecing that stands. One that is found at the start was lost in a crash. */
export interface FleecingRecord {
  /** Machine and fleecing, joined with `/`. */
  key: string;
  /** The machine's name. */
  vm: string;
  /** Unique in its machine. */
  name: string;
  /** The moment of the view: ISO 8601, UTC. */
  createdAt: string;
  /** Its temporary images' folder, where that is not the machine's own. */
  scratchDirectory?: string | null;
  /** The checkpoint that it began. */
  checkpoint?: string | null;
}

/** A checkpoint: a bitmap of one name on some of a machine's disks. */
export interface CheckpointRecord {
  /** Machine and checkpoint, joined with `/`. */
  key: string;
  /** The machine's name. */
  vm: string;
  /** The bitmap's name. */
  name: string;
  /** The disks that got one, by their names in the machine. */
  disks: string[];
  /** The moment from which on changes are recorded: ISO 8601, UTC. */
  createdAt: string;
}

/** Records of one kind, by name. */
export interface Collection<T> {
  /** The record of that name, undefined if there is none. */
  get(name: string): T | undefined;
  /** Adds a record; false, and no change, if there is one of that name. */
  insert(name: string, record: T): boolean;
  /** Adds or replaces a record. */
  put(name: string, record: T): void;
  /** Removes a record; false if there was none. */
  remove(name: string): boolean;
  /** Up to `limit` records whose names come after `after`, ordered by name. */
  list(options: { after: string; limit: number }): T[];
}

/** Records of every kind. Disposing of it closes it. */
export interface Store extends Disposable {
  /** Images, without their files. */
  readonly images: Collection<ImageRecord>;
  /** Machines, also those in the middle of being made or deleted. */
  readonly machines: Collection<MachineRecord>;
  /** Fleecings that stand now. */
  readonly fleecings: Collection<FleecingRecord>;
  /** Disks, also those in the middle of being made or deleted. */
  readonly disks: Collection<DiskRecord>;
  /** Checkpoints, also those whose bitmaps were lost. */
  readonly checkpoints: Collection<CheckpointRecord>;
}
