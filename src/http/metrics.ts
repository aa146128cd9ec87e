/**
 * Figures for Prometheus.
 *
 * @module
 */

import { Counter, Gauge, Histogram, Registry as MetricRegistry } from "prom-client";
import type { TranslatorFigures } from "../vm/driver.ts";
import type { Service } from "../vm/service.ts";
import { NbdMetrics } from "./nbd_metrics.ts";
import type { Observer } from "./router.ts";
import type { SocketSet } from "./sockets.ts";

const SECONDS_BUCKETS = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10];

/** The service's figures. */
export class Metrics {
  readonly #registry = new MetricRegistry();
  readonly #requests = new Counter({
    name: "ovis_http_requests_total",
    help: "Answered HTTP requests",
    labelNames: ["method", "route", "status"],
    registers: [this.#registry],
  });
  readonly #seconds = new Histogram({
    name: "ovis_http_request_seconds",
    help: "Time until the head of the answer",
    labelNames: ["method", "route"],
    buckets: SECONDS_BUCKETS,
    registers: [this.#registry],
  });

  readonly #nbd = new NbdMetrics(this.#registry);
  readonly #service: Service;

  /** Figures of the service and its sockets are taken when they are asked for. */
  constructor(service: Service, sockets: SocketSet) {
    const registers = [this.#registry];
    this.#service = service;
    new Gauge({
      name: "ovis_machines",
      help: "Machines by state",
      labelNames: ["state"],
      registers,
      collect() {
        this.reset();
        for (const [state, count] of service.machines.countByState()) this.set({ state }, count);
      },
    });
    new Gauge({
      name: "ovis_exports",
      help: "Exports that can be read",
      registers,
      collect() {
        this.set(service.exports.size);
      },
    });
    new Gauge({
      name: "ovis_websockets",
      help: "Open WebSockets",
      registers,
      collect() {
        this.set(sockets.size);
      },
    });
    addTranslatorGauges(service, registers);
    new Gauge({
      name: "ovis_memory_bytes",
      help: "Memory of the process, the machines' included",
      registers,
      collect() {
        this.set(Deno.memoryUsage().rss);
      },
    });
  }

  /** Counts an answered request. */
  readonly observe: Observer = ({ method, route, status, seconds }) => {
    this.#requests.inc({ method, route, status });
    this.#seconds.observe({ method, route }, seconds);
  };

  /** The figures as Prometheus text. */
  async text(): Promise<{ body: string; contentType: string }> {
    this.#nbd.update(await this.#service.machines.nbdStatistics());
    return { body: await this.#registry.metrics(), contentType: this.#registry.contentType };
  }
}

/** What the translators of running machines did, by machine. */
function addTranslatorGauges(service: Service, registers: MetricRegistry[]): void {
  const figures: [string, string, (figures: TranslatorFigures) => number][] = [
    ["regions", "Pieces of translated code that exist", ({ regions }) => regions],
    ["module_bytes", "WebAssembly of translated code", ({ moduleBytes }) => moduleBytes],
    ["compile_seconds", "Time harts waited for modules", ({ compileMs }) => compileMs / 1000],
    ["instructions", "Executed in translated code", ({ instructions }) => instructions],
  ];
  for (const [name, help, of] of figures) {
    new Gauge({
      name: `ovis_translator_${name}`,
      help,
      labelNames: ["machine"],
      registers,
      collect() {
        this.reset();
        const machines = service.machines.list({ after: "", limit: Number.MAX_SAFE_INTEGER });
        for (const { record, translator } of machines) {
          if (translator !== null) this.set({ machine: record.name }, of(translator));
        }
      },
    });
  }
}
