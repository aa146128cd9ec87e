/**
 * Files past the system's cache (O_DIRECT, QEMU's cache.direct): what is written is on its way to
 * the medium, and what is read comes from there.
 *
 * The system moves whole blocks then, from and to whole blocks of memory. So everything goes by a
 * buffer of such, and of blocks that a write does not fill the rest is read first. The files of
 * disks have any size: what a last block adds to one is cut off again.
 *
 * @module
 */

import type { IoVector } from "../io_vector.ts";
import { requestBuffer } from "../request_buffer.ts";
import type { LibcFile } from "./libc_file.ts";
import type { FileStat, OpenFile } from "./open_file.ts";

/** A block of nearly every file system and medium; those with smaller ones take it too. */
const BLOCK_BYTES = 4096;
const BUFFER_BYTES = 1024 * 1024;

/** See OpenFile, and the module's head. */
export class DirectFile implements OpenFile {
  readonly #file: LibcFile;
  readonly #buffer = requestBuffer(BUFFER_BYTES);

  /** Over a file that was opened so. */
  constructor(file: LibcFile) {
    this.#file = file;
  }

  /** See OpenFile. */
  get fd(): number {
    return this.#file.fd;
  }

  /** See OpenFile. */
  get libc(): LibcFile["libc"] {
    return this.#file.libc;
  }

  /** See OpenFile. */
  read(offset: number, target: IoVector): number {
    for (let done = 0; done < target.length;) {
      const blocks = this.#blocks(offset + done, target.length - done);
      const before = offset + done - blocks.offset;
      const present = this.#readBlocks(blocks.offset, blocks.bytes) - before;
      const length = Math.min(present, target.length - done);
      if (length <= 0) return done;
      target.copyFrom(blocks.bytes.subarray(before, before + length), done);
      done += length;
      if (before + present < blocks.bytes.length) return done;
    }
    return target.length;
  }

  /** See OpenFile. */
  write(offset: number, source: IoVector): void {
    for (let done = 0; done < source.length;) {
      const { offset: start, bytes } = this.#blocks(offset + done, source.length - done);
      const before = offset + done - start;
      const length = Math.min(bytes.length - before, source.length - done);
      const end = before + length;
      if (before > 0) this.#readBlocks(start, bytes.subarray(0, BLOCK_BYTES));
      const isWhole = end === bytes.length;
      if (!isWhole && (before === 0 || bytes.length > BLOCK_BYTES)) {
        const last = bytes.length - BLOCK_BYTES;
        this.#readBlocks(start + last, bytes.subarray(last));
      }
      const sizeBytes = isWhole ? 0 : this.stat().sizeBytes;
      source.copyTo(bytes.subarray(before, end), done);
      this.#writeBlocks(start, bytes);
      if (!isWhole && start + bytes.length > sizeBytes) {
        this.truncate(Math.max(sizeBytes, start + end));
      }
      done += length;
    }
  }

  /** See OpenFile. */
  truncate(sizeBytes: number): void {
    this.#file.truncate(sizeBytes);
  }

  /** See OpenFile. */
  flush(): void {
    this.#file.flush();
  }

  /** See OpenFile. */
  flushAside(): Promise<void> {
    return this.#file.flushAside();
  }

  /** See OpenFile. */
  stat(): FileStat {
    return this.#file.stat();
  }

  /** See OpenFile. */
  close(): void {
    this.#file.close();
  }

  /** The blocks with the start of a range, as many as the buffer takes. */
  #blocks(offset: number, length: number): { offset: number; bytes: Uint8Array } {
    const start = offset - offset % BLOCK_BYTES;
    const byteCount = Math.ceil((offset + length - start) / BLOCK_BYTES) * BLOCK_BYTES;
    return { offset: start, bytes: this.#buffer.subarray(0, Math.min(byteCount, BUFFER_BYTES)) };
  }

  /** How many bytes there are; behind the file's end are zeroes. */
  #readBlocks(offset: number, bytes: Uint8Array): number {
    const { libc, fd } = this.#file;
    let done = 0;
    while (done < bytes.length) {
      const count = libc.readOne(fd, bytes.subarray(done), offset + done);
      if (count < 0) throw libc.lastError();
      done += count;
      // Only at its end a file gives a part of a block.
      if (count === 0 || done % BLOCK_BYTES !== 0) break;
    }
    bytes.fill(0, done);
    return done;
  }

  #writeBlocks(offset: number, bytes: Uint8Array): void {
    const { libc, fd } = this.#file;
    for (let done = 0; done < bytes.length;) {
      const count = libc.writeOne(fd, bytes.subarray(done), offset + done);
      if (count < 0) throw libc.lastError();
      // A medium that is full takes whole blocks, and then says so.
      done += count - count % BLOCK_BYTES;
      if (count < BLOCK_BYTES) {
        throw Object.assign(new Error("The file takes no more data"), { code: "EIO" });
      }
    }
  }
}
