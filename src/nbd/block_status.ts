/**
 * The answer to NBD_CMD_BLOCK_STATUS: which contexts are asked for, and their extents.
 *
 * @module
 */

import type { MetaContext } from "../block/export.ts";
import { runSteps, settle, type Steps } from "../block/steps.ts";
import type { MaybePromise } from "../block/types.ts";
import { limits } from "../limits.ts";
import { getUint64, NBD_CMD_FLAG_PAYLOAD_LEN, viewOf } from "./codec.ts";
import type { ContextExtents } from "./reply_writer.ts";
import type { NbdRequest } from "./request_parser.ts";

/** A meta context that the client selected, by the id that it was told. */
export interface SelectedContext {
  /** The id that the client was told. */
  id: number;
  /** Where its extents come from. */
  context: MetaContext;
}

/** What a request is about. */
export interface Asked {
  /** At least one, none twice. */
  contexts: readonly SelectedContext[];
  /** From the request's offset on; not yet checked. */
  length: number;
}

/**
 * All contexts for the request's length; or, with extended headers, those that its payload names,
 * for the length in there. Null where it names a wrong one, or one twice.
 */
export function askedOf(
  request: NbdRequest,
  contexts: readonly SelectedContext[],
): Asked | null {
  if ((request.flags & NBD_CMD_FLAG_PAYLOAD_LEN) === 0 || request.payload === null) {
    return { contexts, length: request.length };
  }
  const view = viewOf(request.payload);
  const chosen: SelectedContext[] = [];
  for (let position = 8; position < view.byteLength; position += 4) {
    const id = view.getUint32(position);
    const selected = contexts.find((one) => one.id === id);
    if (selected === undefined || chosen.includes(selected)) return null;
    chosen.push(selected);
  }
  return { contexts: chosen, length: getUint64(view, 0) };
}

/** The extents of all contexts, before any is sent: so there is an answer, or one error. */
export function gatherExtents(
  contexts: readonly SelectedContext[],
  range: { offset: number; length: number; isOne: boolean },
): MaybePromise<ContextExtents[]> {
  return runSteps(gather(contexts, range));
}

function* gather(
  contexts: readonly SelectedContext[],
  { offset, length, isOne }: { offset: number; length: number; isOne: boolean },
): Steps<ContextExtents[]> {
  const maxExtents = isOne ? 1 : Math.floor(limits.nbdExtentsPerReply / contexts.length);
  const answer: ContextExtents[] = [];
  for (const { id, context } of contexts) {
    const extents = yield* settle(context.extents(offset, length, { maxExtents }));
    if (extents.length === 0 || extents.length > maxExtents) {
      throw new Error(`context ${context.name} gave ${extents.length} extents`);
    }
    answer.push({ contextId: id, extents });
  }
  return answer;
}
