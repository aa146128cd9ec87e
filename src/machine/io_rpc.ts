/**
 * The I/O worker's end of the calls of messages.ts: each is answered once, whatever happens.
 *
 * @module
 */

import { toBlockError } from "../block/errors.ts";
import { BootError } from "./boot_error.ts";
import type { IoMethod, IoMethods, IoRequest, IoResponse, WireError } from "./messages.ts";

/** A method's answer, and what of it is handed over rather than copied. */
export interface Answer<M extends IoMethod> {
  /** What the call asked for. */
  result: IoMethods[M]["result"];
  /** What of it is moved to the other side. */
  transfer?: Transferable[];
}

/** What carries out the calls. */
export type IoHandlers = {
  [M in IoMethod]: (params: IoMethods[M]["params"]) => Promise<Answer<M>> | Answer<M>;
};

/** Carries out `request` and gives its answer to `post`. Never throws. */
export async function answerCall(
  request: IoRequest,
  handlers: IoHandlers,
  post: (response: IoResponse, transfer: Transferable[]) => void,
): Promise<void> {
  const { id } = request;
  try {
    const { result, transfer } = await callHandler(request, handlers);
    post({ type: "response", id, result }, transfer ?? []);
  } catch (error) {
    post({ type: "response", id, error: toWireError(error) }, []);
  }
}

/** The handler belongs to the method, which the types of a union can't say. */
function callHandler(
  request: IoRequest,
  handlers: IoHandlers,
): Promise<Answer<IoMethod>> | Answer<IoMethod> {
  const handler = handlers[request.method] as (params: unknown) => Promise<Answer<IoMethod>>;
  return handler(request.params);
}

/** An error as it crosses between isolates. Boot files that can't be used are invalid arguments. */
export function toWireError(error: unknown): WireError {
  if (error instanceof BootError) return { code: "EINVAL", message: error.message };
  const { code, message, range } = toBlockError(error);
  return range === null ? { code, message } : { code, message, range };
}
