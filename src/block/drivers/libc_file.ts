/**
 * Files by libc: see libc.ts for what that needs.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import type { LibC } from "./libc.ts";
import type { FileStat, OpenFile, OpenFileOptions } from "./open_file.ts";

/** See OpenFile. */
export class LibcFile implements OpenFile {
  private constructor(readonly libc: LibC, readonly fd: number) {}

  /** Opens or makes a file. */
  static open(libc: LibC, options: OpenFileOptions): LibcFile {
    const fd = libc.openFile(options);
    if (fd < 0) throw libc.lastError();
    return new LibcFile(libc, fd);
  }

  /** See OpenFile. */
  read(offset: number, target: IoVector): number {
    const done = this.libc.read(this.fd, target.buffers, offset);
    if (done === target.length) return done;
    return done + this.#readRest(offset + done, target.slice(done, target.length - done));
  }

  /** See OpenFile. */
  write(offset: number, source: IoVector): void {
    const done = this.libc.write(this.fd, source.buffers, offset);
    if (done < source.length) {
      this.#writeRest(offset + done, source.slice(done, source.length - done));
    }
  }

  /** See OpenFile. */
  truncate(sizeBytes: number): void {
    if (!this.libc.truncate(this.fd, sizeBytes)) throw this.libc.lastError();
  }

  /** See OpenFile. */
  flush(): void {
    if (!this.libc.flush(this.fd)) throw this.libc.lastError();
  }

  /** See OpenFile. */
  async flushAside(): Promise<void> {
    if (await this.libc.flushAside(this.fd)) return;
    // Asked again only for the reason: what is lost the system reports once.
    this.flush();
    throw new BlockError("EIO", "fdatasync failed");
  }

  /** See OpenFile. */
  stat(): FileStat {
    const stat = this.libc.stat(this.fd);
    if (stat === null) throw this.libc.lastError();
    return stat;
  }

  /** See OpenFile. */
  close(): void {
    this.libc.closeFile(this.fd);
  }

  /** Buffer after buffer, until all is there, the file ends, or the reason of a failure is known. */
  #readRest(offset: number, target: IoVector): number {
    let total = 0;
    for (const buffer of target.buffers) {
      for (let done = 0; done < buffer.length;) {
        const part = buffer.subarray(done);
        const count = this.libc.readOne(this.fd, part, offset + total);
        if (count < 0) throw this.libc.lastError();
        if (count === 0) return total;
        done += count;
        total += count;
      }
    }
    return total;
  }

  #writeRest(offset: number, source: IoVector): void {
    let total = 0;
    for (const buffer of source.buffers) {
      for (let done = 0; done < buffer.length;) {
        const part = buffer.subarray(done);
        const count = this.libc.writeOne(this.fd, part, offset + total);
        if (count < 0) throw this.libc.lastError();
        if (count === 0) throw new BlockError("EIO", "The file takes no more data");
        done += count;
        total += count;
      }
    }
  }
}
