/**
 * Errors on the wire: RFC 9457 problem+json with a `code` from a closed list. The one place that
 * maps the service's errors to HTTP.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";
import { ServiceError, type ServiceErrorCode, toServiceError } from "../vm/errors.ts";
import type { SchemaOf } from "./zod_types.ts";

/** What is wrong with a request before the service sees it. */
export type HttpErrorCode =
  | "invalidRequest" // a value that its schema refuses; `errors` says where
  | "invalidJson"
  | "unauthorized"
  | "hostNotAllowed"
  | "originNotAllowed"
  | "notFound" // no such path
  | "methodNotAllowed"
  | "preconditionFailed"
  | "rangeNotSatisfiable"
  | "upgradeRequired"
  | "idempotencyKeyReused"
  | "waitTimedOut" // the state that was waited for did not come
  | "internal"; // a bug of ours

/** Every `code` that a client can see. */
export type ProblemCode = ServiceErrorCode | HttpErrorCode;

const PROBLEMS: Record<ProblemCode, { status: number; title: string }> = {
  invalidRequest: { status: 400, title: "The request is not valid" },
  invalidJson: { status: 400, title: "The body is not JSON" },
  bodyBroken: { status: 400, title: "The body ended too early" },
  unauthorized: { status: 401, title: "A valid token or ticket is needed" },
  originNotAllowed: { status: 403, title: "Pages of that origin may not use this service" },
  rangeForbidden: { status: 403, title: "That part of the snapshot may not be read" },
  notFound: { status: 404, title: "There is nothing at that path" },
  imageNotFound: { status: 404, title: "No such image" },
  vmNotFound: { status: 404, title: "No such machine" },
  fleecingNotFound: { status: 404, title: "No such fleecing" },
  exportNotFound: { status: 404, title: "No such export" },
  diskNotFound: { status: 404, title: "No such disk" },
  bitmapNotFound: { status: 404, title: "No such dirty bitmap" },
  checkpointNotFound: { status: 404, title: "No such checkpoint" },
  jobNotFound: { status: 404, title: "No such job" },
  methodNotAllowed: { status: 405, title: "That method does not exist here" },
  waitTimedOut: { status: 408, title: "It has not come to that yet" },
  nameTaken: { status: 409, title: "The name is taken" },
  imageInUse: { status: 409, title: "The image is in use" },
  imageBuiltIn: { status: 409, title: "A built-in image can't be changed" },
  imageIncomplete: { status: 409, title: "The image has nothing to boot" },
  wrongState: { status: 409, title: "The machine's state does not allow that" },
  limitReached: { status: 409, title: "A limit of the service is reached" },
  deviceBusy: { status: 409, title: "In use" },
  preconditionFailed: { status: 412, title: "A precondition failed" },
  tooLarge: { status: 413, title: "The body is too large" },
  rangeNotSatisfiable: { status: 416, title: "The range lies outside of the content" },
  hostNotAllowed: { status: 421, title: "This service does not answer under that host name" },
  badReference: { status: 422, title: "The request names something that does not exist" },
  bootFailed: { status: 422, title: "The machine can't boot from these files" },
  outOfRange: { status: 422, title: "A value is out of range" },
  idempotencyKeyReused: { status: 422, title: "The Idempotency-Key belongs to another request" },
  upgradeRequired: { status: 426, title: "This is a WebSocket" },
  internal: { status: 500, title: "The service met a fault of its own" },
  ioError: { status: 500, title: "Input or output failed" },
  machineFailed: { status: 500, title: "The machine failed" },
  notSupported: { status: 501, title: "Not supported" },
  consoleBusy: { status: 503, title: "The guest does not read its console" },
  stopping: { status: 503, title: "The service is stopping" },
  timedOut: { status: 504, title: "It took too long" },
  noSpace: { status: 507, title: "No space left" },
};

const CODES = Object.keys(PROBLEMS) as [ProblemCode, ...ProblemCode[]];

/** A problem as JSON. */
export const ProblemSchema: SchemaOf<Problem> = z.object({
  type: z.string().describe("urn:ovis:problem:CODE"),
  title: z.string().describe("What kind of problem it is, in words"),
  status: z.int(),
  code: z.enum(CODES).describe("What kind of problem it is, for programs"),
  detail: z.string().describe("What happened, for people"),
  errors: z.array(z.object({
    pointer: z.string().describe("Where in the request: a JSON pointer after `#`, or a parameter"),
    detail: z.string(),
  })).optional().describe("invalidRequest: each value that was refused"),
  range: z.object({ offset: z.int(), length: z.int() }).optional()
    .describe("rangeForbidden: the first area that may not be read"),
}).openapi("Problem");

/** A problem (RFC 9457, section 3.1), with the members that are ours. */
export interface Problem {
  /** urn:ovis:problem:CODE */
  type: string;
  /** What kind of problem it is, in words; one for each code. */
  title: string;
  /** The HTTP status of the answer. */
  status: number;
  /** What kind of problem it is, for programs. */
  code: ProblemCode;
  /** What happened this time, for people. */
  detail: string;
  /** With invalidRequest: each value that was refused. */
  errors?: ProblemEntry[] | undefined;
  /** With rangeForbidden: the first area that may not be read, in bytes. */
  range?: { offset: number; length: number } | undefined;
}

/** A value of a request that its schema refuses. */
export interface ProblemEntry {
  /** Where it stands: a JSON pointer after `#` in a body, else `path/NAME` or `query/NAME`. */
  pointer: string;
  /** What is wrong with it. */
  detail: string;
}

/** An error of the HTTP edge. */
export class HttpError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "HttpError";
  /** The values that were refused: with invalidRequest only. */
  readonly errors: Problem["errors"];
  /** Headers that the answer needs beside the body, as `allow` or `content-range`. */
  readonly headers: Record<string, string>;

  /** `message` is for people and reaches clients as the problem's `detail`. */
  constructor(
    readonly code: HttpErrorCode,
    message: string,
    options: { errors?: Problem["errors"]; headers?: Record<string, string> } = {},
  ) {
    super(message);
    this.errors = options.errors;
    this.headers = options.headers ?? {};
  }
}

/** The status that a code is answered with. */
export function statusOf(code: ProblemCode): number {
  return PROBLEMS[code].status;
}

/** The problem for anything that was thrown. What is not ours to explain is `internal`. */
function toProblem(error: unknown): Problem {
  const mapped = toServiceError(error);
  if (mapped instanceof ServiceError) {
    const { code, message, range } = mapped;
    return { ...describe(code, message), ...(range && { range }) };
  }
  if (mapped instanceof HttpError) {
    const { code, message, errors } = mapped;
    return { ...describe(code, message), ...(errors && { errors }) };
  }
  return describe("internal", "the service's log says more");
}

/** The response for anything that was thrown. */
export function problemResponse(error: unknown): Response {
  const problem = toProblem(error);
  const headers = new Headers(error instanceof HttpError ? error.headers : {});
  headers.set("content-type", "application/problem+json");
  if (problem.code === "unauthorized") headers.set("www-authenticate", 'Bearer realm="ovis"');
  return new Response(JSON.stringify(problem), { status: problem.status, headers });
}

function describe(code: ProblemCode, detail: string): Problem {
  const { status, title } = PROBLEMS[code];
  return { type: `urn:ovis:problem:${code}`, title, status, code, detail };
}
