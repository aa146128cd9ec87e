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

/** What the tiers of running machines did, by machine. */
function addTranslatorGauges(service: Service, registers: MetricRegistry[]): void {
  const gauge = (
    name: string,
    options: { help: string; label?: string; of: (figures: TranslatorFigures) => Figures },
  ) => {
    const labels = options.label === undefined ? [] : [options.label];
    new Gauge({
      name: `ovis_translator_${name}`,
      help: options.help,
      labelNames: ["machine", ...labels],
      registers,
      collect() {
        this.reset();
        const machines = service.machines.list({ after: "", limit: Number.MAX_SAFE_INTEGER });
        for (const { record, translator } of machines) {
          if (translator === null) continue;
          for (const [value, figure] of Object.entries(options.of(translator))) {
            const label = options.label === undefined ? {} : { [options.label]: value };
            this.set({ machine: record.name, ...label }, figure);
          }
        }
      },
    });
  };
  gauge("regions", {
    help: "Pieces of translated code that exist",
    of: ({ regions }) => ({ regions }),
  });
  gauge("module_bytes", {
    help: "WebAssembly of translated code",
    of: ({ moduleBytes }) => ({ moduleBytes }),
  });
  gauge("compile_seconds", {
    help: "Time harts waited for modules",
    of: ({ compileMs }) => ({ seconds: compileMs / 1000 }),
  });
  gauge("instructions", {
    help: "Executed, by tier",
    label: "tier",
    of: ({ instructions, interpreted }) => ({ translated: instructions, interpreter: interpreted }),
  });
  gauge("seconds", {
    help: "Time of the harts while they ran, by tier",
    label: "tier",
    of: ({ timeMs }) =>
      Object.fromEntries(Object.entries(timeMs).map(([tier, ms]) => [tier, ms / 1000])),
  });
  gauge("exits", {
    help: "How often translated code was left",
    label: "reason",
    of: ({ exits }) => exits,
  });
}

/** Figures by the value of their label. */
type Figures = Record<string, number>;
