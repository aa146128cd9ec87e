/**
 * Tokens and tickets.
 *
 * A token comes as `Authorization: Bearer TOKEN`. A browser can't set that header on a WebSocket,
 * so it asks for a ticket first: good for one use, one thing, and sixty seconds. It is sent as a
 * second subprotocol, `base64url.bearer.authorization.TICKET`, which is never echoed, and never in
 * the URL, which reaches logs.
 *
 * @module
 */

import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { limits } from "../limits.ts";
import { HttpError } from "./problem.ts";

const TICKET_BYTES = 24;
const TICKET_PREFIX = "base64url.bearer.authorization.";

/** Decides whether a request may pass. */
export class Authenticator {
  readonly #digest: Uint8Array | null;
  /** The tickets that it accepts in place of the token. */
  readonly tickets: TicketBook;

  /** `token` null: everybody may pass. */
  constructor(token: string | null, tickets: TicketBook) {
    this.#digest = token === null ? null : sha256(token);
    this.tickets = tickets;
  }

  /** Throws unauthorized unless the request carries the token. */
  requireToken(request: Request): void {
    if (this.#digest === null) return;
    const header = request.headers.get("authorization");
    if (header === null) {
      throw new HttpError(
        "unauthorized",
        "send the token as Authorization: Bearer TOKEN; it was printed at the first start and " +
          "stands in the file `token` of the data folder",
      );
    }
    const match = /^Bearer +([\x21-\x7e]+)$/i.exec(header);
    // Digests have one length and say nothing about the token's bytes: compared in constant time.
    if (match?.[1] === undefined || !timingSafeEqual(sha256(match[1]), this.#digest)) {
      throw new HttpError("unauthorized", "the token is not right");
    }
  }

  /**
   * Throws unauthorized unless a WebSocket's request carries the token or a ticket for `subject`.
   */
  requireTokenOrTicket(request: Request, subject: string): void {
    const ticket = offeredProtocols(request).find((offer) => offer.startsWith(TICKET_PREFIX));
    if (ticket === undefined) return this.requireToken(request);
    if (!this.tickets.redeem(ticket.slice(TICKET_PREFIX.length), subject)) {
      throw new HttpError(
        "unauthorized",
        "the ticket was used already, is older than sixty seconds, or is for something else",
      );
    }
  }
}

/** The subprotocols that a WebSocket's request offers. */
export function offeredProtocols(request: Request): string[] {
  const header = request.headers.get("sec-websocket-protocol") ?? "";
  return header.split(",").map((offer) => offer.trim()).filter((offer) => offer !== "");
}

/** A ticket as its holder sees it. */
export interface Ticket {
  /** 32 characters of base64url. */
  ticket: string;
  /** The subprotocol that carries it. */
  protocol: string;
  /** limits.ticketLifeMs after it was issued. */
  expiresAt: Date;
}

/** Tickets that were given out and not used. At most limits.ticketCount: the oldest go first. */
export class TicketBook {
  readonly #now: () => number;
  /** In the order of their making, so the oldest first. Keys are digests: lookups leak nothing. */
  readonly #tickets = new Map<string, { subject: string; expiresMs: number }>();

  /** `now`: milliseconds, as Date.now; tests give a clock of their own. */
  constructor(now: () => number = Date.now) {
    this.#now = now;
  }

  /** A ticket for one use of `subject`. */
  issue(subject: string): Ticket {
    this.#dropOld();
    const ticket = randomBytes(TICKET_BYTES).toString("base64url");
    const expiresMs = this.#now() + limits.ticketLifeMs;
    this.#tickets.set(keyOf(ticket), { subject, expiresMs });
    return { ticket, protocol: TICKET_PREFIX + ticket, expiresAt: new Date(expiresMs) };
  }

  /** Uses a ticket up; false if it is not good for `subject` now. */
  redeem(ticket: string, subject: string): boolean {
    const key = keyOf(ticket);
    const entry = this.#tickets.get(key);
    this.#tickets.delete(key);
    return entry !== undefined && entry.subject === subject && this.#now() < entry.expiresMs;
  }

  #dropOld(): void {
    for (const [key, { expiresMs }] of this.#tickets) {
      if (expiresMs > this.#now() && this.#tickets.size < limits.ticketCount) break;
      this.#tickets.delete(key);
    }
  }
}

function keyOf(ticket: string): string {
  return createHash("sha256").update(ticket).digest("base64");
}

function sha256(text: string): Uint8Array {
  return createHash("sha256").update(text).digest();
}
