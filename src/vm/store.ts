/**
 * Where the service keeps what must survive it: images, machines, fleecings. One small interface,
 * so that another database can take the place of the built-in one.
 *
 * A record is one JSON document under a name. Every change is on stable storage when its call
 * returns.
 *
 * @module
 */

/** One uploaded file of an image. */
export interface ImageFileRecord {
  sizeBytes: number;
  sha256: string;
}

/** The parts that an image can have. */
export const IMAGE_PARTS = ["kernel", "initrd", "firmware"] as const;

/** One of them. */
export type ImagePart = (typeof IMAGE_PARTS)[number];

/** What machines boot from. */
export interface ImageRecord {
  name: string;
  cmdline: string;
  createdAt: string;
  files: Partial<Record<ImagePart, ImageFileRecord>>;
}

/** A disk of a machine. */
export interface DiskRecord {
  name: string;
  sizeBytes: number;
  isReadOnly: boolean;
}

/** A machine. `phase` says what a crash interrupted. */
export interface MachineRecord {
  name: string;
  /** Short and unique: names its folders and its socket. */
  id: string;
  image: string;
  memoryBytes: number;
  hartCount: number;
  disks: DiskRecord[];
  createdAt: string;
  phase: "creating" | "ready" | "deleting";
}

/** A fleecing that stands. One that is found at the start was lost in a crash. */
export interface FleecingRecord {
  /** Machine and fleecing, joined with `/`. */
  key: string;
  vm: string;
  name: string;
  createdAt: string;
}

/** Records of one kind, by name. */
export interface Collection<T> {
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

/** The whole store. */
export interface Store extends Disposable {
  readonly images: Collection<ImageRecord>;
  readonly machines: Collection<MachineRecord>;
  readonly fleecings: Collection<FleecingRecord>;
}
