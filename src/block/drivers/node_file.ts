/**
 * Files by node:fs, where libc may not be called. The module is loaded when it is first used: that
 * takes 20 to 40 ms, more than many a command on images needs for its work.
 *
 * @module
 */

import type fs from "node:fs";
import { BlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import type { FileStat, OpenFile, OpenFileOptions } from "./open_file.ts";

/** See OpenFile. There are no holes. */
export class NodeFile implements OpenFile {
  /** See OpenFile. */
  readonly libc = null;
  readonly #fs: typeof fs;

  private constructor(module: typeof fs, readonly fd: number) {
    this.#fs = module;
  }

  /** Opens or makes a file. */
  static open({ path, isReadOnly, createMode }: OpenFileOptions): NodeFile {
    const module = globalThis.process.getBuiltinModule("node:fs");
    const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } = module.constants;
    const access = isReadOnly ? O_RDONLY : O_RDWR;
    const creation = createMode === undefined ? 0 : O_CREAT | O_EXCL;
    const flags = access | creation | O_NOFOLLOW | O_NONBLOCK;
    return new NodeFile(module, module.openSync(path, flags, createMode));
  }

  /** See OpenFile. */
  read(offset: number, target: IoVector): number {
    let total = 0;
    for (const buffer of target.buffers) {
      for (let done = 0; done < buffer.length;) {
        const length = buffer.length - done;
        const count = this.#fs.readSync(this.fd, buffer, done, length, offset + total);
        if (count === 0) return total;
        done += count;
        total += count;
      }
    }
    return total;
  }

  /** See OpenFile. */
  write(offset: number, source: IoVector): void {
    for (const buffer of source.buffers) {
      for (let done = 0; done < buffer.length;) {
        const length = buffer.length - done;
        const count = this.#fs.writeSync(this.fd, buffer, done, length, offset + done);
        if (count === 0) throw new BlockError("EIO", "The file takes no more data");
        done += count;
      }
      offset += buffer.length;
    }
  }

  /** See OpenFile. */
  truncate(sizeBytes: number): void {
    this.#fs.ftruncateSync(this.fd, sizeBytes);
  }

  /** See OpenFile. */
  flush(): void {
    this.#fs.fdatasyncSync(this.fd);
  }

  /** See OpenFile. */
  flushAside(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#fs.fdatasync(this.fd, (error) => error ? reject(error) : resolve());
    });
  }

  /** See OpenFile. */
  stat(): FileStat {
    const stat = this.#fs.fstatSync(this.fd);
    return {
      kind: stat.isFile() ? "a file" : "no regular file",
      sizeBytes: stat.size,
      allocatedBytes: stat.blocks * 512,
      identity: `${stat.dev}:${stat.ino}`,
    };
  }

  /** See OpenFile. */
  close(): void {
    this.#fs.closeSync(this.fd);
  }
}
