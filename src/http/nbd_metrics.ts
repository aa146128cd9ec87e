/**
 * Figures of the machines' NBD servers, for Prometheus. They are a machine's since it was started.
 *
 * @module
 */

import { Counter, Gauge, type Registry } from "prom-client";
import { limits } from "../limits.ts";
import type { NbdStatistics } from "../machine/messages.ts";

/** See the module's description. */
export class NbdMetrics {
  readonly #now: Record<"open" | "inFlight" | "buffered", Gauge>;
  readonly #ever: Record<"connections" | "requests" | "bytes" | "failed", Counter>;

  /** Adds its metrics to the registry. */
  constructor(registry: Registry) {
    const registers = [registry];
    const gauge = (name: string, help: string) =>
      new Gauge({ name, help, labelNames: ["machine"], registers });
    const counter = (name: string, help: string, ...labels: string[]) =>
      new Counter({ name, help, labelNames: ["machine", ...labels], registers });
    this.#now = {
      open: gauge("ovis_nbd_connections", "Open NBD connections"),
      inFlight: gauge("ovis_nbd_requests_in_flight", "NBD requests that are being worked on"),
      buffered: gauge("ovis_nbd_buffered_bytes", "Bytes of NBD requests and replies held"),
    };
    this.#ever = {
      connections: counter(
        "ovis_nbd_connections_total",
        "NBD connections: accepted, refused (too many), cutOff (idle or stalled), secured (TLS)",
        "outcome",
      ),
      requests: counter("ovis_nbd_requests_total", "NBD requests by command", "command"),
      bytes: counter("ovis_nbd_bytes_total", "Bytes that NBD requests were about", "command"),
      failed: counter("ovis_nbd_failed_requests_total", "NBD requests answered with an error"),
    };
    const max = new Gauge({
      name: "ovis_nbd_limit",
      help: "Limits of each machine's NBD server",
      labelNames: ["limit"],
      registers,
    });
    max.set({ limit: "connections" }, limits.nbdConnectionsPerVm);
    max.set({ limit: "bufferedBytes" }, limits.nbdBufferedBytesPerVm);
    max.set({ limit: "requestsInFlightPerConnection" }, limits.nbdRequestsInFlight);
    max.set({ limit: "bytesInFlightPerConnection" }, limits.nbdBytesInFlight);
    max.set({ limit: "handshakeSeconds" }, limits.nbdHandshakeMs / 1000);
    max.set({ limit: "stallSeconds" }, limits.nbdStallMs / 1000);
    max.set({ limit: "idleSeconds" }, limits.nbdIdleMs / 1000);
  }

  /** Takes over what the servers count now. */
  update(figures: ReadonlyMap<string, NbdStatistics>): void {
    for (const metric of [...Object.values(this.#now), ...Object.values(this.#ever)]) {
      metric.reset();
    }
    for (const [machine, { connections, requests, ...rest }] of figures) {
      this.#now.open.set({ machine }, connections.open);
      this.#now.inFlight.set({ machine }, rest.inFlight);
      this.#now.buffered.set({ machine }, rest.bufferedBytes);
      this.#ever.failed.inc({ machine }, rest.failedRequests);
      const { open: _, ...outcomes } = connections;
      for (const [outcome, count] of Object.entries(outcomes)) {
        this.#ever.connections.inc({ machine, outcome }, count);
      }
      for (const [command, { count, bytes }] of Object.entries(requests)) {
        this.#ever.requests.inc({ machine, command }, count);
        this.#ever.bytes.inc({ machine, command }, bytes);
      }
    }
  }
}
