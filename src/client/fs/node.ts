/**
 * What every file system driver gives: a tree of nodes. Paths, symbolic links, streams and archives
 * are made of it once for all of them (volume.ts).
 *
 * @module
 */

import type { WaitOptions } from "../disk.ts";
import { corrupt } from "./source.ts";

/** What a node is. */
export type FileKind =
  | "file"
  | "directory"
  | "symlink"
  | "block-device"
  | "character-device"
  | "fifo"
  | "socket";

/** What is known about a node without reading its content. */
export interface FileInfo {
  /** What it is. */
  readonly kind: FileKind;
  /** Bytes of content; of a symbolic link, of its target. */
  readonly sizeBytes: number;
  /** Permission bits: 0o7777 at most. File systems without them give what a mount would show. */
  readonly mode: number;
  /** The owner. */
  readonly uid: number;
  /** The group. */
  readonly gid: number;
  /** Of the content. FAT keeps local time; it is taken for UTC. */
  readonly modifiedAt: Date;
  /** Names that lead here. */
  readonly linkCount: number;
  /** The same for all names of one file, unique in its file system. */
  readonly id: number;
  /** Of devices. */
  readonly device: { major: number; minor: number } | null;
}

/** A file, directory or anything else of a file system. */
export interface FileNode extends FileInfo {
  /** Names and nodes of a directory, in its own order, without "." and "..". */
  entries(options: WaitOptions): AsyncGenerator<[name: string, node: FileNode]>;
  /** Bytes of a file; the range lies inside it. */
  read(offset: number, length: number, options: WaitOptions): Promise<Uint8Array<ArrayBuffer>>;
  /** Where a symbolic link leads, as it is written. */
  target(options: WaitOptions): Promise<string>;
}

/** An open file system. */
export interface FileSystem {
  /** "ext2", "ext3", "ext4", "fat12", "fat16", "fat32", "iso9660", "squashfs". */
  readonly type: string;
  /** The volume's name, "" where it has none. */
  readonly label: string;
  /** Where every path starts. */
  readonly root: FileNode;
}

/** The kind behind the upper bits of a POSIX mode (stat.h). */
export function kindOfMode(mode: number): FileKind {
  switch (mode & 0o170000) {
    case 0o100000:
      return "file";
    case 0o040000:
      return "directory";
    case 0o120000:
      return "symlink";
    case 0o060000:
      return "block-device";
    case 0o020000:
      return "character-device";
    case 0o010000:
      return "fifo";
    case 0o140000:
      return "socket";
    default:
      throw corrupt(`no file has the mode 0${mode.toString(8)}`);
  }
}

/** A device's number as Linux keeps it in 32 bits (new_encode_dev in linux/kdev_t.h). */
export function deviceOf(number: number): { major: number; minor: number } {
  return { major: (number >>> 8) & 0xfff, minor: (number & 0xff) | ((number >>> 12) & 0xfff00) };
}
