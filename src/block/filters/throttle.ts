/**
 * A filter that holds requests back so that its group's limits are kept: see throttle_group.ts.
 *
 * @module
 */

import type { BlockEdge } from "../edge.ts";
import type { IoVector } from "../io_vector.ts";
import { BlockNode } from "../node.ts";
import type { BlockStatus, MaybePromise } from "../types.ts";
import type { ThrottleDirection, ThrottleGroup, ThrottleMember } from "./throttle_group.ts";

/** What a throttle node is made of. */
export interface ThrottleNodeOptions {
  /** Unique in the graph. */
  nodeName: string;
  /** The node that does the work. */
  file: BlockNode;
  /** Whose limits it keeps, together with the group's other members. */
  group: ThrottleGroup;
}

/** Driver "throttle". */
export class ThrottleNode extends BlockNode {
  readonly #file: BlockEdge;
  readonly #group: ThrottleGroup;
  readonly #member: ThrottleMember;

  /** Joins the group until it is closed. */
  constructor(options: ThrottleNodeOptions) {
    const { file } = options;
    super({
      nodeName: options.nodeName,
      driver: "throttle",
      sizeBytes: file.sizeBytes,
      isReadOnly: file.isReadOnly,
      clusterSizeBytes: file.clusterSizeBytes,
      handlesFua: true,
    });
    this.#file = this.addChild("file", "filtered", file);
    this.#group = options.group;
    this.#member = options.group.join();
  }

  /** Requests that are held back now. */
  get queuedCount(): number {
    const { read, write } = this.#member.queues;
    return read.length + write.length;
  }

  /** Waits for its turn as a read of its bytes. */
  protected override doRead(offset: number, target: IoVector): MaybePromise<void> {
    return this.#limited("read", target.length, () => this.#file.node.read(offset, target));
  }

  /** Waits for its turn as a write of its bytes. */
  protected override doWrite(offset: number, source: IoVector, flags: number): MaybePromise<void> {
    return this.#limited(
      "write",
      source.length,
      () => this.#file.node.write(offset, source, flags),
    );
  }

  /** Waits for its turn as a write of the bytes made zero. */
  protected override doWriteZeroes(
    offset: number,
    length: number,
    flags: number,
  ): MaybePromise<void> {
    return this.#limited(
      "write",
      length,
      () => this.#file.node.writeZeroes(offset, length, flags),
    );
  }

  /** Waits for its turn as a write of the bytes discarded. */
  protected override doDiscard(offset: number, length: number): MaybePromise<void> {
    return this.#limited("write", length, () => this.#file.node.discard(offset, length));
  }

  /** Not limited. */
  protected override doFlush(): MaybePromise<void> {
    return this.#file.node.flush();
  }

  /** Not limited. */
  protected override doBlockStatus(offset: number, length: number): MaybePromise<BlockStatus> {
    return this.#file.node.blockStatus(offset, length);
  }

  /** Not limited. */
  protected override doResize(sizeBytes: number): MaybePromise<void> {
    return this.#file.node.resize(sizeBytes);
  }

  /** Leaves the group. */
  protected override doClose(): void {
    this.#group.leave(this.#member);
  }

  /** Lets go what is held back, so that the drained section can begin. */
  protected override onDrainBegin(): void {
    this.#group.release(this.#member);
  }

  /** Limits apply again. */
  protected override onDrainEnd(): void {
    this.#group.restrict(this.#member);
  }

  /** The group's name, and how many requests are held back now. */
  override details(): Record<string, string | number> {
    return { throttleGroup: this.#group.name, queuedCount: this.queuedCount };
  }

  #limited(
    direction: ThrottleDirection,
    bytes: number,
    request: () => MaybePromise<void>,
  ): MaybePromise<void> {
    if (this.#group.tryStart(this.#member, direction, bytes)) return request();
    return new Promise<void>((resolve, reject) => {
      // Started within the call: what comes later can't overtake it.
      const start = (): void => {
        try {
          resolve(request());
        } catch (error) {
          reject(error);
        }
      };
      this.#group.wait(this.#member, direction, { bytes, start });
    });
  }
}
