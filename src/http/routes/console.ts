/** A machine's console: its log, typing on it, both in a WebSocket. @module */

import { limits } from "../../limits.ts";
import type { Machine } from "../../vm/machine.ts";
import type { Service } from "../../vm/service.ts";
import { readBody } from "../body.ts";
import { serveConsole } from "../console_socket.ts";
import { noContent, type Router } from "../router.ts";
import { LogQuery, VmParams } from "../schemas.ts";
import { requireUpgrade, type SocketSet } from "../sockets.ts";

const tag = "Console";
const TEXT = "text/plain; charset=utf-8";

/** Adds the routes. `stopping` ends the followed logs. */
export function addConsoleRoutes(
  router: Router,
  service: Service,
  options: { sockets: SocketSet; stopping: AbortSignal },
): void {
  router.add({
    method: "get",
    path: "/v1/vms/{vm}/console/log",
    tag,
    summary: "What the guest wrote",
    description: `The last ${limits.consoleLogBytes} bytes since the service started, ` +
      "exactly as the guest sent them. With `?follow` the answer goes on until the client leaves " +
      "or the machine is deleted; a note in brackets stands where a slow reader missed something.",
    params: VmParams,
    query: LogQuery,
    answers: [{ status: 200, description: "The log", body: "text/plain" }],
    problems: ["vmNotFound"],
  }, ({ params, query }) => {
    const machine = service.machines.get(params.vm);
    const body = query.follow
      ? followLog(machine, options.stopping)
      : machine.console.read(0).bytes;
    return new Response(body, { headers: { "content-type": TEXT } });
  });

  router.add({
    method: "post",
    path: "/v1/vms/{vm}/console/input",
    tag,
    summary: "Type on the console",
    description: "Answered when the console's input buffer has taken everything, in order with " +
      "other input. A guest that does not read its console is waited for five seconds.",
    params: VmParams,
    rawBody: `What to type, at most ${limits.requestBodyBytes} bytes`,
    answers: [{ status: 204, description: "Taken" }],
    problems: ["vmNotFound", "wrongState", "tooLarge", "consoleBusy", "limitReached", "stopping"],
  }, async ({ request, params }) => {
    const machine = service.machines.get(params.vm);
    const bytes = await readBody(request, limits.requestBodyBytes);
    await machine.consoleInput(bytes, options.stopping);
    return noContent();
  });

  router.add({
    method: "get",
    path: "/v1/vms/{vm}/console",
    tag,
    summary: "The console as a WebSocket",
    description:
      "Binary frames from the guest, beginning with the last 16 KiB that it wrote; text " +
      "or binary frames to the guest.",
    params: VmParams,
    answers: [{ status: 101, description: "A WebSocket" }],
    problems: ["vmNotFound", "upgradeRequired"],
  }, ({ request, params }) => {
    const machine = service.machines.get(params.vm);
    requireUpgrade(request);
    const { socket, response } = options.sockets.upgrade(request, { protocol: null });
    serveConsole(socket, machine);
    return response;
  });
}

function followLog(machine: Machine, signal: AbortSignal): ReadableStream<Uint8Array> {
  const log = machine.console;
  const gone = new AbortController();
  const ended = AbortSignal.any([signal, gone.signal]);
  let position = log.begin;
  return new ReadableStream({
    async pull(controller) {
      await log.wait(position, ended);
      const { bytes, next, lost } = log.read(position);
      position = next;
      if (bytes.length === 0 || ended.aborted) return controller.close();
      if (lost > 0) controller.enqueue(new TextEncoder().encode(`\n[${lost} bytes missed]\n`));
      controller.enqueue(bytes);
    },
    cancel: () => gone.abort(),
  }, { highWaterMark: 1 });
}
