/**
 * A block layer: the nodes of one machine or one service, their dirty bitmaps and their jobs, for
 * whoever works with all three (the monitor, the machine's I/O worker, the storage daemon).
 *
 * @module
 */

import type { Kernels } from "../wasm/kernels.ts";
import { type Clock, systemClock } from "./clock.ts";
import { DirtyBitmaps } from "./dirty_bitmap.ts";
import { BlockGraph } from "./graph.ts";
import { Jobs } from "./jobs/jobs.ts";

/** See the module's head. */
export class BlockLayer {
  /** The nodes. */
  readonly graph: BlockGraph;
  /** Their dirty bitmaps. */
  readonly bitmaps: DirtyBitmaps;
  /** The jobs on them. */
  readonly jobs: Jobs;
  /** Where bitmaps live. */
  readonly kernels: Kernels;
  /** For timeouts and speed limits. */
  readonly clock: Clock;

  /** An empty one. `clock`: the machine's unless given. The others: new ones unless given. */
  constructor(
    kernels: Kernels,
    options: { clock?: Clock; graph?: BlockGraph; bitmaps?: DirtyBitmaps } = {},
  ) {
    this.kernels = kernels;
    this.clock = options.clock ?? systemClock;
    this.graph = options.graph ?? new BlockGraph();
    this.bitmaps = options.bitmaps ?? new DirtyBitmaps(kernels);
    this.jobs = new Jobs(this.graph, this.clock);
  }

  /** Ends all jobs, then closes all nodes. Backends of others must have been released. */
  async close(): Promise<void> {
    await this.jobs.close();
    await this.graph.close();
  }
}
