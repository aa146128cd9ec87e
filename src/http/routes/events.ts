/** What happens in the service, as server-sent events. @module */

import { limits } from "../../limits.ts";
import type { EventLog, ServiceEvent } from "../../vm/event_log.ts";
import type { Service } from "../../vm/service.ts";
import type { Router } from "../router.ts";

const HEARTBEAT_MS = 15_000;

/** Adds the route. `stopping` ends what goes on for ever. */
export function addEventRoute(
  router: Router,
  service: Service,
  options: { stopping: AbortSignal },
): void {
  router.add({
    method: "get",
    path: "/v1/events",
    tag: "Events",
    summary: "What happens, as it happens",
    description:
      "Server-sent events with rising ids: `vm.state`, `fleecing.started`, `fleecing.broken` " +
      "(with the reason), `fleecing.ended`, `job.changed` (at most once a second for progress), " +
      "`job.dismissed`, " +
      "`disk.created`, `disk.changed`, `disk.deleted`. `data` is JSON with `time`. A client that " +
      `lost its connection sends \`Last-Event-ID\` and gets what it missed, of the last ` +
      `${limits.eventsKept} events; where that is too long ago it gets \`reset\` and should read ` +
      "everything anew. A comment comes every 15 seconds. A client that does not read is " +
      "disconnected.",
    answers: [{ status: 200, description: "Events, without an end", body: "text/event-stream" }],
    problems: [],
  }, ({ request }) => {
    const lastId = Number(request.headers.get("last-event-id") ?? NaN);
    const body = request.method === "HEAD"
      ? null
      : followEvents(service.events, { lastId, stopping: options.stopping });
    return new Response(body, {
      headers: { "content-type": "text/event-stream", "cache-control": "no-store" },
    });
  });
}

function followEvents(
  log: EventLog,
  { lastId, stopping }: { lastId: number; stopping: AbortSignal },
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let end = () => {};
  return new ReadableStream({
    start(controller) {
      const send = (text: string) => {
        if ((controller.desiredSize ?? 0) <= 0) return end();
        controller.enqueue(encoder.encode(text));
      };
      const unfollow = log.follow((event) => send(format(event)));
      const heartbeat = setInterval(() => send(":\n\n"), HEARTBEAT_MS);
      end = () => {
        end = () => {};
        unfollow();
        clearInterval(heartbeat);
        stopping.removeEventListener("abort", onStop);
        try {
          controller.close();
        } catch {
          // the client has left already
        }
      };
      const onStop = () => end();
      stopping.addEventListener("abort", onStop);
      // Headers go out at once, and the client knows where it stands.
      controller.enqueue(encoder.encode(`: since ${log.lastId}\n\n`));
      if (Number.isNaN(lastId)) return;
      const missed = Number.isSafeInteger(lastId) ? log.after(lastId) : null;
      const texts = missed === null
        ? [`id: ${log.lastId}\nevent: reset\ndata: {}\n\n`]
        : missed.map(format);
      controller.enqueue(encoder.encode(texts.join("")));
    },
    cancel: () => end(),
  }, { highWaterMark: limits.eventsQueued });
}

function format({ id, type, time, data }: ServiceEvent): string {
  return `id: ${id}\nevent: ${type}\ndata: ${JSON.stringify({ time, ...data })}\n\n`;
}
