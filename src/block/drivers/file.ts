/**
 * A disk in a regular file, by synchronous positional I/O: ten to forty times cheaper on this runtime
 * than asynchronous, straight between the request's buffers and the page cache. It belongs into a
 * worker of its own.
 *
 * @module
 */

import fs from "node:fs";
import { BlockError, toBlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";

/** What `FileNode.open` takes. */
export interface FileNodeOptions {
  nodeName: string;
  path: string;
  isReadOnly: boolean;
  /** Makes the file, which must not exist, of `sizeBytes`. */
  create?: boolean;
  /** Needed with `create`; else the size that the file must have. */
  sizeBytes?: number;
  discard?: DiscardMode;
}

/** Driver "file". */
export class FileNode extends BlockNode {
  readonly path: string;
  readonly #fd: number;

  private constructor(options: FileNodeOptions, fd: number, sizeBytes: number) {
    super({
      nodeName: options.nodeName,
      driver: "file",
      sizeBytes,
      isReadOnly: options.isReadOnly,
      discard: options.discard ?? "unmap",
    });
    this.path = options.path;
    this.#fd = fd;
  }

  /** Opens or makes the file. Throws a BlockError. */
  static open(options: FileNodeOptions): FileNode {
    try {
      const mode = options.create ? "wx+" : options.isReadOnly ? "r" : "r+";
      const fd = fs.openSync(options.path, mode);
      if (options.create) fs.ftruncateSync(fd, options.sizeBytes);
      return new FileNode(options, fd, fs.fstatSync(fd).size);
    } catch (error) {
      throw toBlockError(error);
    }
  }

  protected override doRead(offset: number, target: IoVector): void {
    try {
      for (const buffer of target.buffers) {
        for (let done = 0; done < buffer.length;) {
          const count = fs.readSync(this.#fd, buffer, done, buffer.length - done, offset + done);
          if (count === 0) throw new BlockError("EIO", `${this.path} became shorter`);
          done += count;
        }
        offset += buffer.length;
      }
    } catch (error) {
      throw toBlockError(error);
    }
  }

  protected override doWrite(offset: number, source: IoVector, _flags: number): void {
    try {
      for (const buffer of source.buffers) {
        for (let done = 0; done < buffer.length;) {
          done += fs.writeSync(this.#fd, buffer, done, buffer.length - done, offset + done);
        }
        offset += buffer.length;
      }
    } catch (error) {
      throw toBlockError(error);
    }
  }

  protected override doFlush(): void {
    try {
      fs.fdatasyncSync(this.#fd);
    } catch (error) {
      throw toBlockError(error);
    }
  }

  protected override doResize(sizeBytes: number): void {
    try {
      fs.ftruncateSync(this.#fd, sizeBytes);
    } catch (error) {
      throw toBlockError(error);
    }
    this.setSize(sizeBytes);
  }

  protected override doClose(): void {
    fs.closeSync(this.#fd);
  }
}
