/** Exports: what readers open. HTTP ranges, maps, NBD in a WebSocket. @module */

import { limits } from "../../limits.ts";
import type { ExportInfo } from "../../vm/export_directory.ts";
import type { Service } from "../../vm/service.ts";
import type { Authenticator } from "../auth.ts";
import { checkReadable, streamContent } from "../content.ts";
import { answerMap } from "../extents.ts";
import type { Links } from "../links.ts";
import { readPage } from "../page.ts";
import { HttpError } from "../problem.ts";
import { chooseRange, matchesEtag } from "../range.ts";
import { json, type Router } from "../router.ts";
import {
  ExportParams,
  ExportSchema,
  ExtentsQuery,
  ExtentsSchema,
  pageOf,
  PageQuery,
  TicketSchema,
} from "../schemas.ts";
import { requireUpgrade, type SocketSet } from "../sockets.ts";

const tag = "Exports";

/** Carries an NBD session between a WebSocket and the worker behind a port. */
export type RelayWebSocket = (socket: WebSocket, port: MessagePort) => Promise<unknown>;

/** What the routes need. */
export interface ExportRouteOptions {
  /** Makes the addresses that answers name. */
  links: Links;
  /** Issues tickets, and checks whoever opens a WebSocket. */
  auth: Authenticator;
  /** Gets every WebSocket that is opened here. */
  sockets: SocketSet;
  /** Does the work once a WebSocket is open. */
  relayWebSocket: RelayWebSocket;
}

/** Adds the routes. */
export function addExportRoutes(
  router: Router,
  service: Service,
  options: ExportRouteOptions,
): void {
  addInfoRoutes(router, service, options.links);
  addContentRoute(router, service);
  addExtentsRoute(router, service);
  addNbdRoutes(router, service, options);
}

function addInfoRoutes(router: Router, service: Service, links: Links): void {
  const describe = (info: ExportInfo, request: Request) => {
    const { tag: _, ...shown } = info;
    return { ...shown, ...links.of(info, { request, nbd: service.machines.get(info.vm).nbd }) };
  };

  router.add({
    method: "get",
    path: "/v1/exports",
    tag,
    summary: "List exports",
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(ExportSchema) }],
    problems: [],
  }, ({ request, query }) =>
    json(readPage(query, {
      list: (page) => service.exports.list(page),
      nameOf: ({ name }) => name,
      describe: (info) => describe(info, request),
    })));

  router.add({
    method: "get",
    path: "/v1/exports/{export}",
    tag,
    summary: "Show an export with its addresses",
    params: ExportParams,
    answers: [{ status: 200, description: "The export", body: ExportSchema }],
    problems: ["exportNotFound"],
  }, ({ request, params }) => json(describe(service.exports.get(params.export), request)));
}

function addContentRoute(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/exports/{export}/content",
    tag,
    summary: "Read the frozen disk",
    description:
      "The raw bytes. `Range` is honoured (one range; several at once: the whole content " +
      "is sent), with `If-Range`, `If-Match` and `If-None-Match` on a strong ETag. If any byte " +
      "of what was asked for may not be read, nothing is sent. A view that breaks, or a fleecing " +
      "that ends, under a running transfer breaks the transfer off.",
    params: ExportParams,
    answers: [
      { status: 200, description: "The whole disk", body: "application/octet-stream" },
      { status: 206, description: "The range", body: "application/octet-stream" },
      { status: 304, description: "The ETag is the one that you have" },
    ],
    problems: [
      "exportNotFound",
      "rangeForbidden",
      "preconditionFailed",
      "rangeNotSatisfiable",
      "ioError",
    ],
  }, async ({ request, params }) => {
    const info = service.exports.get(params.export);
    const machine = service.machineOfExport(info.name);
    const etag = `"${info.tag}"`;
    const headers = new Headers({
      "accept-ranges": "bytes",
      "cache-control": "private, no-cache",
      etag,
    });
    if (!isMatch(request, etag)) {
      throw new HttpError("preconditionFailed", "this is another view than If-Match names");
    }
    const known = request.headers.get("if-none-match");
    if (known !== null && matchesEtag(known, etag, { isWeak: true })) {
      return new Response(null, { status: 304, headers });
    }
    const isRanged = request.method === "GET" && isRangeValid(request, etag);
    const choice = chooseRange(isRanged ? request.headers.get("range") : null, info.sizeBytes);
    if (choice.kind === "unsatisfiable") {
      throw new HttpError("rangeNotSatisfiable", `the export has ${info.sizeBytes} bytes`, {
        headers: { "content-range": `bytes */${info.sizeBytes}` },
      });
    }
    const { offset, length } = choice.kind === "part"
      ? choice
      : { offset: 0, length: info.sizeBytes };
    const range = { exportName: info.name, offset, length };
    await checkReadable(machine, range);
    headers.set("content-type", "application/octet-stream");
    headers.set("content-disposition", `attachment; filename="${info.name}.img"`);
    headers.set("content-length", String(length));
    if (choice.kind === "part") {
      headers.set("content-range", `bytes ${offset}-${offset + length - 1}/${info.sizeBytes}`);
    }
    const body = request.method === "HEAD"
      ? null
      : streamContent(range, async (piece) =>
        (await machine.call("exportRead", { exportName: info.name, ...piece })).bytes);
    return new Response(body, { status: choice.kind === "part" ? 206 : 200, headers });
  });
}

function isMatch(request: Request, etag: string): boolean {
  const wanted = request.headers.get("if-match");
  return wanted === null || matchesEtag(wanted, etag, { isWeak: false });
}

/** If-Range: a range of another view's bytes is of no use, the whole content then is. */
function isRangeValid(request: Request, etag: string): boolean {
  const wanted = request.headers.get("if-range");
  return wanted === null || wanted.trim() === etag;
}

function addExtentsRoute(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/exports/{export}/extents",
    tag,
    summary: "The map of an export",
    description: "Runs from `offset` on, without gaps; neighbours differ.",
    params: ExportParams,
    query: ExtentsQuery,
    answers: [{ status: 200, description: "Runs", body: ExtentsSchema }],
    problems: ["exportNotFound", "outOfRange", "notSupported", "ioError"],
  }, async ({ params, query }) => {
    const { name, sizeBytes } = service.exports.get(params.export);
    const machine = service.machineOfExport(name);
    return json(
      await answerMap(
        query,
        sizeBytes,
        (context, part) => machine.call("exportExtents", { exportName: name, context, ...part }),
      ),
    );
  });
}

function addNbdRoutes(router: Router, service: Service, options: ExportRouteOptions): void {
  const { auth, sockets, relayWebSocket } = options;
  const subjectOf = (name: string) => `export:${name}:${service.exports.get(name).tag}`;

  router.add({
    method: "get",
    path: "/v1/exports/{export}/nbd",
    tag,
    summary: "NBD in a WebSocket",
    description:
      "Binary frames carry the byte stream of an NBD session; where a frame ends means " +
      "nothing. Offer the subprotocol `nbd`, and from a browser a ticket's beside it. Only this " +
      "export can be opened in the session.",
    params: ExportParams,
    access: "ticket",
    answers: [{ status: 101, description: "A WebSocket" }],
    problems: ["exportNotFound", "upgradeRequired", "limitReached"],
  }, async ({ request, params }) => {
    // A ticket's subject names the view: without the token nobody learns which exports exist.
    const known = service.exports.find(params.export);
    auth.requireTokenOrTicket(request, known === undefined ? "" : subjectOf(known.name));
    const machine = service.machineOfExport(params.export);
    requireUpgrade(request);
    const { port1, port2 } = new MessageChannel();
    try {
      await machine.call("nbdOpen", { exportName: params.export, port: port2 }, [port2]);
      const { socket, response } = sockets.upgrade(request, { protocol: "nbd" });
      void relayWebSocket(socket, port1);
      return response;
    } catch (error) {
      port1.close();
      throw error;
    }
  });

  router.add({
    method: "post",
    path: "/v1/exports/{export}/tickets",
    tag,
    summary: "A ticket for a browser",
    description: `Opens one WebSocket to this export within ${limits.ticketLifeMs / 1000} seconds.`,
    params: ExportParams,
    answers: [{ status: 201, description: "Good for one use", body: TicketSchema }],
    problems: ["exportNotFound"],
  }, ({ params }) => {
    const { ticket, protocol, expiresAt } = auth.tickets.issue(subjectOf(params.export));
    return json({ ticket, protocol, expiresAt: expiresAt.toISOString() }, { status: 201 });
  });
}
