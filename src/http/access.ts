/**
 * Who may talk to the service at all: the Host and Origin checks.
 *
 * A web page elsewhere can make its reader's browser send requests to a service on localhost,
 * directly (then the browser says so in Origin or Sec-Fetch-Site) or through a name that the page's
 * owner points at 127.0.0.1 (DNS rebinding: then the name is in Host). Both are checked always,
 * also with a token.
 *
 * @module
 */

import { isIP } from "node:net";
import { HttpError } from "./problem.ts";

/** What is allowed beside what is always safe. */
export interface AccessPolicy {
  /** Names, without port, that this service answers to beside IP addresses and localhost. */
  hosts: readonly string[];
  /** Origins of web pages that may call, beside the service's own: `https://tools.example`. */
  origins: readonly string[];
}

/** Throws hostNotAllowed or originNotAllowed. */
export function checkAccess(request: Request, policy: AccessPolicy): void {
  const host = checkHost(request, policy);
  checkOrigin(request, { host, policy });
}

/** How long a browser may remember a preflight's answer. */
const PREFLIGHT_SECONDS = "600";

/**
 * What lets a page of an allowed origin read an answer (Fetch standard, "CORS protocol"). Nothing
 * for the service's own pages, which need nothing.
 */
export function corsHeaders(request: Request, policy: AccessPolicy): Record<string, string> {
  const origin = request.headers.get("origin");
  if (origin === null || !policy.origins.includes(origin)) return {};
  return {
    "access-control-allow-origin": origin,
    "access-control-expose-headers": "content-range, etag, location, accept-ranges",
    "cross-origin-resource-policy": "cross-origin",
    vary: "origin",
  };
}

/** The answer to a browser that asks whether a page of an allowed origin may send a request. */
export function answerPreflight(request: Request, policy: AccessPolicy): Response {
  checkAccess(request, policy);
  return new Response(null, {
    status: 204,
    headers: {
      ...corsHeaders(request, policy),
      "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE",
      "access-control-allow-headers":
        "authorization, content-type, idempotency-key, range, if-match, if-none-match, if-range",
      "access-control-max-age": PREFLIGHT_SECONDS,
    },
  });
}

/** Whether a request is a preflight: it carries no credentials and asks for another one. */
export function isPreflight(request: Request): boolean {
  return request.method === "OPTIONS" && request.headers.has("access-control-request-method");
}

/** An address can't be rebound, only a name can: so every IP address is fine. */
function checkHost(request: Request, policy: AccessPolicy): string {
  const host = (request.headers.get("host") ?? new URL(request.url).host).toLowerCase();
  let name: string;
  try {
    name = new URL(`http://${host}`).hostname.replace(/^\[|\]$/g, "");
  } catch {
    throw new HttpError("hostNotAllowed", "the Host header is not a host");
  }
  const isKnown = isIP(name) !== 0 || name === "localhost" || name.endsWith(".localhost") ||
    policy.hosts.some((allowed) => allowed.toLowerCase() === name);
  if (!isKnown) {
    throw new HttpError(
      "hostNotAllowed",
      `the service does not answer as ${name}; allow it with --allow-host ${name}`,
    );
  }
  return host;
}

function checkOrigin(
  request: Request,
  { host, policy }: { host: string; policy: AccessPolicy },
): void {
  const origin = request.headers.get("origin");
  if (origin !== null) {
    const isOwn = origin === `http://${host}` || origin === `https://${host}`;
    if (isOwn || policy.origins.includes(origin)) return;
    throw new HttpError(
      "originNotAllowed",
      `a page of ${origin.slice(0, 200)} may not use this service; ` +
        "allow it with --allow-origin",
    );
  }
  // Browsers leave Origin out of plain GETs (images, scripts); following a link is harmless.
  const site = request.headers.get("sec-fetch-site");
  const isElsewhere = site === "cross-site" || site === "same-site";
  if (isElsewhere && request.headers.get("sec-fetch-mode") !== "navigate") {
    throw new HttpError("originNotAllowed", "another site's page may not use this service");
  }
}
