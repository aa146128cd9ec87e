/**
 * A block graph that tells the moment of each drained section: no request is in flight, the
 * section's action has just been done.
 *
 * @module
 */

import { BlockGraph } from "../../src/block/graph.ts";

/** See the module's head. */
export class WatchedGraph extends BlockGraph {
  onMoment: () => void = () => {};

  override drained<T>(...[nodes, action]: Parameters<BlockGraph["drained"]>): Promise<T> {
    return super.drained(nodes, () => {
      const result = action();
      this.onMoment();
      return result as T;
    });
  }
}
