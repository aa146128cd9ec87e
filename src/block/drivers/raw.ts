/**
 * The raw format: a disk's bytes as they are in another node, all of it, or the part
 * `[offset, offset + sizeBytes)`. Without offset and size it is a filter and follows the node's
 * size.
 *
 * @module
 */

import type { BlockEdge, ChildRole } from "../edge.ts";
import { BlockError } from "../errors.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode, type DiscardMode } from "../node.ts";
import { defaultChildPermissions, type Permissions } from "../permissions.ts";
import {
  type BlockStatus,
  type FilePart,
  type MaybePromise,
  PERM_RESIZE,
  PERM_WRITE,
} from "../types.ts";

/** What a raw node is made of. */
export interface RawNodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The node that holds the bytes. */
  file: BlockNode;
  /** Where the disk starts in `file`. */
  offset?: number;
  /** The disk's size: all that follows `offset` unless given. */
  sizeBytes?: number;
  /** As `file` unless given. */
  isReadOnly?: boolean;
  /** "unmap" (passed on to `file`) unless given. */
  discard?: DiscardMode;
}

/** A part of a node: where it starts, and its size, all that follows unless given. */
export interface RawPart {
  /** Of the first byte. */
  offset: number;
  /** Undefined: it ends where the node ends. */
  sizeBytes: number | undefined;
}

/** Driver "raw". */
export class RawNode extends BlockNode {
  readonly #file: BlockEdge;
  #offset: number;
  #hasFixedSize: boolean;

  /** Throws a BlockError (EINVAL) where the part does not lie in `file`. */
  constructor(options: RawNodeOptions) {
    const offset = options.offset ?? 0;
    const sizeBytes = rawPartSize(options.file, { offset, sizeBytes: options.sizeBytes });
    super({
      nodeName: options.nodeName,
      driver: "raw",
      sizeBytes,
      isReadOnly: options.isReadOnly ?? options.file.isReadOnly,
      clusterSizeBytes: options.file.clusterSizeBytes,
      discard: options.discard ?? "unmap",
      handlesFua: true,
    });
    this.#offset = offset;
    this.#hasFixedSize = options.sizeBytes !== undefined;
    this.#file = this.addChild("file", this.#role, options.file);
  }

  /** The part of `file` that it shows. */
  get part(): RawPart {
    const sizeBytes = this.#hasFixedSize ? this.sizeBytes : undefined;
    return { offset: this.#offset, sizeBytes };
  }

  /**
   * Shows another part of `file` from now. Nothing may be in flight. Throws a BlockError where that
   * does not lie in `file`, or somebody relies on the size.
   */
  usePart(part: RawPart): void {
    const sizeBytes = rawPartSize(this.#file.node, part);
    if (sizeBytes !== this.sizeBytes) {
      for (const { shared, parent } of this.parents) {
        if ((shared & PERM_RESIZE) !== 0) continue;
        throw new BlockError(
          "EPERM",
          `The size of node '${this.nodeName}' can't change: ${parent.description} relies on it`,
        );
      }
      this.observer?.resizing(sizeBytes);
    }
    this.#offset = part.offset;
    this.#hasFixedSize = part.sizeBytes !== undefined;
    this.#file.role = this.#role;
    this.setSize(sizeBytes);
  }

  /** It is a filter where it shows all of `file`. */
  get #role(): ChildRole {
    return this.#offset === 0 && !this.#hasFixedSize ? "filtered" : "data";
  }

  /** The same bytes, `offset` further on in `file`. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#file.node.read(offset + this.#offset, target);
  }

  /** The same bytes, `offset` further on in `file`. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    return this.#file.node.write(offset + this.#offset, source, flags);
  }

  /** The same range, `offset` further on in `file`. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    return this.#file.node.writeZeroes(offset + this.#offset, length, flags);
  }

  /** The same range, `offset` further on in `file`. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    return this.#file.node.discard(offset + this.#offset, length);
  }

  /** A flush of `file`. */
  protected override doFlush(): MaybePromise<void> {
    return this.#file.node.flush();
  }

  /** What `file` says of the same range. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.blockStatus(offset + this.#offset, length);
  }

  /** Where `file` has the same range. */
  protected override doFilePart(offset: number, length: number): FilePart | null {
    return this.#file.node.filePart(offset + this.#offset, length);
  }

  /** Resizes `file`; refused (ENOTSUP) with a fixed size. */
  protected override doResize(sizeBytes: number): MaybePromise<void> {
    if (this.#hasFixedSize) {
      throw new BlockError("ENOTSUP", "Cannot resize fixed-size raw disks");
    }
    if (sizeBytes > Number.MAX_SAFE_INTEGER - this.#offset) {
      throw new BlockError("EINVAL", "Disk size too large for the chosen offset");
    }
    return this.#file.node.resize(sizeBytes + this.#offset);
  }

  /** Without a fixed size it ends where `file` ends. */
  protected override onChildResized(edge: BlockEdge): void {
    if (!this.#hasFixedSize) this.setSize(Math.max(edge.node.sizeBytes - this.#offset, 0));
  }

  /** Raw keeps no metadata: it writes and resizes only where its users do. */
  override childPermissions(edge: BlockEdge, above: Permissions): Permissions {
    const { perm, shared } = defaultChildPermissions(this, edge, above);
    const changes = PERM_WRITE | PERM_RESIZE;
    return { perm: (perm & ~changes) | (above.perm & changes), shared };
  }

  /** What the whole of `file` takes. */
  override get allocatedBytes(): number | null {
    return this.#file.node.allocatedBytes;
  }

  /** Where it starts in `file`. */
  override details(): Record<string, number> {
    return { offset: this.#offset };
  }
}

/** The size of a part of `file`. Throws a BlockError (EINVAL), with QEMU's texts. */
export function rawPartSize(file: BlockNode, { offset, sizeBytes }: RawPart): number {
  if (!Number.isSafeInteger(offset) || offset < 0) {
    throw new BlockError("EINVAL", `${offset} is not an offset in bytes`);
  }
  if (offset > file.sizeBytes) {
    throw new BlockError(
      "EINVAL",
      `Offset (${offset}) cannot be greater than size of the containing file (${file.sizeBytes})`,
    );
  }
  if (sizeBytes === undefined) return file.sizeBytes - offset;
  if (sizeBytes > file.sizeBytes - offset) {
    throw new BlockError(
      "EINVAL",
      `The sum of offset (${offset}) and size (${sizeBytes}) has to be smaller or equal to the  ` +
        `actual size of the containing file (${file.sizeBytes})`,
    );
  }
  return sizeBytes;
}
