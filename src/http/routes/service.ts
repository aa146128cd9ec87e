/** The service itself: health, figures, description, and a first page for people. @module */

import { limits } from "../../limits.ts";
import type { Service } from "../../vm/service.ts";
import type { Metrics } from "../metrics.ts";
import { json, type Router } from "../router.ts";
import { HealthSchema, InfoSchema } from "../schemas.ts";

const tag = "Service";
const DESCRIPTION = `Runs RISC-V machines and lets readers see their disks as they were at a moment,
while the guests go on writing.

    curl -H "Authorization: Bearer $TOKEN" -X POST $U/v1/vms -d '{"name":"demo","image":"demo"}'
    curl -H "Authorization: Bearer $TOKEN" -X POST $U/v1/vms/demo/fleecings -d '{}'

Sizes are bytes, times RFC 3339, names ${"`[a-z0-9][a-z0-9._-]*`"}. Errors are problem+json
(RFC 9457) whose \`code\` comes from a closed list. A repeated POST with the \`Idempotency-Key\` of
an earlier one gets the earlier answer.`;

/** Adds the routes. Call it last: the OpenAPI document has the routes that were added before. */
export function addServiceRoutes(
  router: Router,
  service: Service,
  options: { metrics: Metrics; version: string },
): void {
  const { metrics, version } = options;
  addHealthRoutes(router, service);
  addFigureRoutes(router, service, { metrics, version });
  addPages(router, version);
}

function addHealthRoutes(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/healthz",
    tag,
    summary: "Whether the process lives",
    access: "public",
    answers: [{ status: 200, description: "It does", body: HealthSchema }],
    problems: [],
  }, () => json({ status: "ok" }));

  router.add(
    {
      method: "get",
      path: "/readyz",
      tag,
      summary: "Whether it takes work",
      access: "public",
      answers: [
        { status: 200, description: "It does", body: HealthSchema },
        { status: 503, description: "It is going down", body: HealthSchema },
      ],
      problems: [],
    },
    () =>
      service.isStopping
        ? json({ status: "stopping" }, { status: 503 })
        : json({ status: "ready" }),
  );
}

function addFigureRoutes(
  router: Router,
  service: Service,
  { metrics, version }: { metrics: Metrics; version: string },
): void {
  router.add({
    method: "get",
    path: "/v1/info",
    tag,
    summary: "Versions and limits",
    answers: [{ status: 200, description: "About this service", body: InfoSchema }],
    problems: [],
  }, () =>
    json({
      name: "ovis",
      version,
      deno: Deno.version.deno,
      startedAt: service.startedAt.toISOString(),
      limits,
    }));

  router.add({
    method: "get",
    path: "/metrics",
    tag,
    summary: "Figures for Prometheus",
    answers: [{ status: 200, description: "Prometheus text", body: "text/plain" }],
    problems: [],
  }, async () => {
    const { body, contentType } = await metrics.text();
    return new Response(body, { headers: { "content-type": contentType } });
  });
}

function addPages(router: Router, version: string): void {
  router.add({
    method: "get",
    path: "/",
    tag,
    summary: "A first page for people",
    access: "public",
    answers: [{ status: 200, description: "A page", body: "text/html" }],
    problems: [],
  }, () =>
    new Response(PAGE, {
      headers: {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; " +
          "script-src 'self'; connect-src 'self'",
      },
    }));

  let document: unknown = null;
  router.add({
    method: "get",
    path: "/openapi.json",
    tag,
    summary: "This document",
    access: "public",
    answers: [{ status: 200, description: "OpenAPI 3.1", body: "application/json" }],
    problems: [],
  }, () => json(document ??= router.document({ version, description: DESCRIPTION })));
}

const PAGE = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Ovis</title>
<style>
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }
pre { overflow: auto; padding: .8rem; border: 1px solid; border-radius: .3rem }
</style>
<h1>Ovis</h1>
<p>RISC-V machines whose disks can be read as they were, while they write.</p>
<p><a href="/files">The files of a snapshot</a>, shown in this browser.</p>
<p>The API: <a href="/openapi.json">/openapi.json</a>.
Health: <a href="/healthz">/healthz</a>, <a href="/readyz">/readyz</a>.</p>
<p>With the token that was printed at the first start:</p>
<pre>curl -H "Authorization: Bearer $TOKEN" -X POST $U/v1/vms -d '{"name":"demo","image":"demo"}'
curl -H "Authorization: Bearer $TOKEN" "$U/v1/vms/demo/console/log"
curl -H "Authorization: Bearer $TOKEN" -X POST $U/v1/vms/demo/fleecings -d '{}'
curl -H "Authorization: Bearer $TOKEN" -o monday.img "$U/v1/exports/NAME/content"
curl -H "Authorization: Bearer $TOKEN" -X POST "$U/v1/exports/NAME/tickets"</pre>
<p>With such a ticket this browser reads the same; in its developer console, on this page:</p>
<pre>const { connect } = await import("/client/client.js");
const disk = await connect("/v1/exports/NAME/nbd", { ticket: "..." });
await disk.read(0, 512);</pre>
</html>
`;
