/**
 * Routes: each is declared once, with the schemas that validate it, and both the handler's types
 * and the OpenAPI document come from that.
 *
 * In front of every handler stand, in this order: Host and Origin, the token (or a ticket), the
 * path's and the query's schema, the body's limit and schema. Errors become problems, in one place.
 *
 * @module
 */

import { OpenAPIHono, type RouteConfig, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import type { Log } from "../vm/log.ts";
import {
  type AccessPolicy,
  answerPreflight,
  checkAccess,
  corsHeaders,
  isPreflight,
} from "./access.ts";
import type { Authenticator } from "./auth.ts";
import { parseJson, readJsonBytes } from "./body.ts";
import { IdempotencyBook } from "./idempotency.ts";
import {
  HttpError,
  type Problem,
  type ProblemCode,
  problemResponse,
  ProblemSchema,
  statusOf,
} from "./problem.ts";
import type { Parsed, Schema } from "./zod_types.ts";

/** How a route is answered when all goes well. */
export interface Answer {
  /** The HTTP status. */
  status: number;
  /** What it means, for the OpenAPI document. */
  description: string;
  /** The body: JSON of a schema, or bytes of a media type. */
  body?: Schema | string;
}

/** A path with a method: how it is documented, checked and answered. */
export interface Route<
  P extends Schema = Schema,
  Q extends Schema = Schema,
  B extends Schema = Schema,
> {
  /** A `get` route answers HEAD too. */
  method: "get" | "post" | "put" | "patch" | "delete";
  /** With parameters in braces: `/v1/vms/{vm}`. */
  path: string;
  /** The group that it stands in in the OpenAPI document. */
  tag: string;
  /** What it does, in one line of the OpenAPI document. */
  summary: string;
  /** More about it, in Markdown, for the OpenAPI document. */
  description?: string;
  /** The schema of the path's parameters; without it none are allowed. */
  params?: P;
  /** The schema of the query; without it a query is refused. */
  query?: Q;
  /** The schema of a JSON body; without it no body is read before the handler. */
  body?: B;
  /** What a body of bytes is, for the OpenAPI document; the handler reads it. */
  rawBody?: string;
  /** How it is answered when all goes well, for the OpenAPI document. */
  answers: Answer[];
  /** What else it can answer with, beside what stands in front of every handler. */
  problems: ProblemCode[];
  /**
   * Who may call: default `token`. A handler of `ticket` routes checks itself: it knows the
   * subject.
   */
  access?: "public" | "token" | "ticket";
  /** Not in the OpenAPI document: nobody calls it by itself. */
  isUnlisted?: boolean;
}

/** What a handler gets: everything was validated. */
export interface Call<P extends Schema, Q extends Schema, B extends Schema> {
  /** As it came; its body was read if the route has a schema for it. */
  request: Request;
  /** What the schema made of the path's parameters. */
  params: Parsed<P>;
  /** What the schema made of the query. */
  query: Parsed<Q>;
  /** What the schema made of the body, undefined where the route has none. */
  body: Parsed<B>;
}

/** What the router tells about each answered request. */
export type Observer = (event: {
  method: string;
  route: string;
  status: number;
  seconds: number;
}) => void;

/** What the router needs. */
export interface RouterOptions {
  /** Which hosts and origins may call. */
  access: AccessPolicy;
  /** Checks the token of each request. */
  auth: Authenticator;
  /** Gets an error line for every answer from 500 on. */
  log: Log;
  /** Called once for each request that a route answered. */
  observe: Observer;
}

const SECURITY_HEADERS: Record<string, string> = {
  "x-content-type-options": "nosniff",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
};
/** More complaints than that help nobody. */
const ISSUE_COUNT = 16;
const ISSUE_CHARACTERS = 300;
const FIRST_SERVER_ERROR = 500;

/** All routes of the service, as one function from Request to Response. */
export class Router {
  readonly #app = new OpenAPIHono();
  readonly #options: RouterOptions;
  readonly #idempotency = new IdempotencyBook();
  readonly #methods = new Map<string, Set<string>>();

  /** No route is there yet. */
  constructor(options: RouterOptions) {
    this.#options = options;
    this.#app.openAPIRegistry.registerComponent("securitySchemes", "token", {
      type: "http",
      scheme: "bearer",
      description: "Printed at the first start; kept in the file `token` of the data folder.",
    });
  }

  /** Adds a route. */
  add<P extends Schema = Schema, Q extends Schema = Schema, B extends Schema = Schema>(
    route: Route<P, Q, B>,
    handler: (call: Call<P, Q, B>) => Promise<Response> | Response,
  ): void {
    if (!route.isUnlisted) this.#app.openAPIRegistry.registerPath(describeRoute(route));
    const path = route.path.replaceAll(/\{(\w+)\}/g, ":$1");
    const methods = this.#methods.get(path) ?? new Set();
    this.#methods.set(path, methods.add(route.method.toUpperCase()));
    this.#app.on(route.method.toUpperCase(), path, async (context) => {
      const startedMs = performance.now();
      const response = await this.#answer(route, context, handler);
      this.#options.observe({
        method: route.method,
        route: route.path,
        status: response.status,
        seconds: (performance.now() - startedMs) / 1000,
      });
      return response;
    });
  }

  /** The OpenAPI document of all routes. */
  document(info: { version: string; description: string }): unknown {
    return this.#app.getOpenAPI31Document({
      openapi: "3.1.0",
      info: { title: "Ovis", ...info },
      security: [{ token: [] }],
    });
  }

  /** Call once, after the last route. */
  handler(): (request: Request) => Promise<Response> {
    for (const [path, methods] of this.#methods) {
      this.#app.all(path, (context) => this.#refuseMethod(context, methods));
    }
    this.#app.notFound((context) =>
      this.#guard(context.req.raw, () => {
        throw new HttpError("notFound", `there is nothing at ${context.req.path.slice(0, 200)}`);
      })
    );
    return async (request) =>
      isPreflight(request)
        ? await this.#guard(request, () => answerPreflight(request, this.#options.access))
        : await this.#app.fetch(request);
  }

  #refuseMethod(context: Context, methods: ReadonlySet<string>): Promise<Response> {
    return this.#guard(context.req.raw, () => {
      const allowed = [...methods].join(", ");
      throw new HttpError("methodNotAllowed", `the path takes ${allowed}`, {
        headers: { allow: allowed },
      });
    });
  }

  #answer<P extends Schema, Q extends Schema, B extends Schema>(
    route: Route<P, Q, B>,
    context: Context,
    handler: (call: Call<P, Q, B>) => Promise<Response> | Response,
  ): Promise<Response> {
    const request = context.req.raw;
    return this.#guard(request, async () => {
      if ((route.access ?? "token") === "token") this.#options.auth.requireToken(request);
      const params = parse(route.params, context.req.param(), "path");
      const query = parse(route.query, context.req.query(), "query");
      if (route.body === undefined) {
        return await handler({ request, params, query, body: undefined as Parsed<B> });
      }
      const bytes = await readJsonBytes(request);
      const body = parse(route.body, parseJson(bytes), "body");
      return await this.#idempotency.run(request, {
        body: bytes,
        answer: async () => await handler({ request, params, query, body }),
      });
    });
  }

  /** Host and Origin, then `action`; errors become problems. */
  async #guard(
    request: Request,
    action: () => Promise<Response> | Response,
  ): Promise<Response> {
    try {
      checkAccess(request, this.#options.access);
      return this.#decorate(request, await action());
    } catch (error) {
      const response = problemResponse(error);
      if (response.status >= FIRST_SERVER_ERROR) {
        this.#options.log.error("{method} {url}: {error}", {
          method: request.method,
          url: new URL(request.url).pathname,
          error,
        });
      }
      leaveBody(request);
      return this.#decorate(request, response);
    }
  }

  #decorate(request: Request, response: Response): Response {
    // The answer to a WebSocket upgrade belongs to the runtime: its headers can't be changed.
    if (response.status === 101) return response;
    const headers = { ...SECURITY_HEADERS, ...corsHeaders(request, this.#options.access) };
    for (const [name, value] of Object.entries(headers)) response.headers.set(name, value);
    if (!response.headers.has("cache-control")) response.headers.set("cache-control", "no-store");
    return response;
  }
}

/**
 * What is left of a body that was not read to its end. The runtime takes no more of it from the
 * connection while somebody might ask for it, and a client that sends everything before it reads
 * the answer would wait for ever.
 */
function leaveBody({ body }: Request): void {
  // Whoever read a part of it has given it up by himself.
  if (body !== null && !body.locked) body.cancel().catch(() => {});
}

/** A JSON response. */
export function json(value: unknown, init: ResponseInit = {}): Response {
  const headers = new Headers(init.headers);
  headers.set("content-type", "application/json");
  return new Response(`${JSON.stringify(value)}\n`, { ...init, headers });
}

/** An answer without content. */
export function noContent(): Response {
  return new Response(null, { status: 204 });
}

function parse<S extends Schema>(
  schema: S | undefined,
  value: unknown,
  place: "path" | "query" | "body",
): Parsed<S> {
  const result = (schema ?? z.strictObject({})).safeParse(value);
  if (result.success) return result.data as Parsed<S>;
  const errors: NonNullable<Problem["errors"]> = result.error.issues.slice(0, ISSUE_COUNT)
    .map(({ path, message }) => ({
      pointer: (place === "body" ? "#" : place) +
        path.map((part) => `/${String(part)}`).join("").slice(0, ISSUE_CHARACTERS),
      detail: message.slice(0, ISSUE_CHARACTERS),
    }));
  const [first] = errors;
  throw new HttpError("invalidRequest", `${first?.pointer}: ${first?.detail}`, { errors });
}

function describeRoute(route: Route): RouteConfig {
  const request: RouteConfig["request"] = {};
  if (route.params !== undefined) request.params = route.params as z.ZodObject;
  if (route.query !== undefined) request.query = route.query as z.ZodObject;
  if (route.body !== undefined) {
    request.body = { content: { "application/json": { schema: route.body } } };
  } else if (route.rawBody !== undefined) {
    const schema = { type: "string", format: "binary" } as const;
    request.body = {
      description: route.rawBody,
      content: { "application/octet-stream": { schema } },
    };
  }
  return {
    method: route.method,
    path: route.path,
    tags: [route.tag],
    summary: route.summary,
    ...(route.description !== undefined && { description: route.description }),
    ...(route.access === "public" && { security: [] }),
    request,
    responses: { ...describeAnswers(route.answers), ...describeProblems(route) },
  };
}

function describeAnswers(answers: readonly Answer[]): RouteConfig["responses"] {
  return Object.fromEntries(answers.map(({ status, description, body }) => {
    if (body === undefined) return [status, { description }];
    const content = typeof body === "string"
      ? { [body]: { schema: { type: "string" as const } } }
      : { "application/json": { schema: body } };
    return [status, { description, content }];
  }));
}

function describeProblems(route: Route): RouteConfig["responses"] {
  const codes: ProblemCode[] = [...route.problems, "hostNotAllowed", "originNotAllowed"];
  if (route.access !== "public") codes.push("unauthorized");
  if (route.params !== undefined || route.query !== undefined || route.body !== undefined) {
    codes.push("invalidRequest");
  }
  if (route.body !== undefined) codes.push("invalidJson", "tooLarge", "idempotencyKeyReused");
  const byStatus = Map.groupBy(new Set(codes), statusOf);
  return Object.fromEntries(
    [...byStatus].sort(([a], [b]) => a - b).map(([status, group]) => [status, {
      description: group.join(", "),
      content: { "application/problem+json": { schema: ProblemSchema } },
    }]),
  );
}
