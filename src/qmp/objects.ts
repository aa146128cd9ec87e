/**
 * What object-add makes: limits that throttle nodes share, and certificates for TLS.
 *
 * @module
 */

import fs from "node:fs";
import type { Clock } from "../block/clock.ts";
import { BlockError } from "../block/errors.ts";
import { ThrottleGroup, type ThrottleLimits } from "../block/filters/throttle_group.ts";
import { limits } from "../limits.ts";
import type { ClientTls, ServerTls } from "../nbd/transports/tls.ts";
import { QmpError } from "./errors.ts";

/** QEMU's ThrottleLimits: rates a second, and how long bursts last. */
export type QmpThrottleLimits = Record<string, number>;

/** Where certificates are, as tls-creds-x509 has them. */
export interface TlsCredentials {
  /** For clients or for servers. */
  endpoint: "client" | "server";
  /** The folder with ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, ... */
  directory: string;
  /** Peers must show a certificate that the authority signed. */
  mustVerifyPeer: boolean;
}

/** An object of the monitor. */
export type MonitorObject =
  | { type: "throttle-group"; group: ThrottleGroup; limits: QmpThrottleLimits }
  | { type: "tls-creds-x509"; credentials: TlsCredentials }
  | { type: "iothread" };

const QUANTITIES = ["iops-total", "iops-read", "iops-write", "bps-total", "bps-read", "bps-write"];

/** The names of all limits of a throttle group. */
export const THROTTLE_LIMIT_NAMES: readonly string[] = [
  ...QUANTITIES.flatMap((name) => [name, `${name}-max`, `${name}-max-length`]),
  "iops-size",
];

/** See the module's head. */
export class MonitorObjects {
  readonly #clock: Clock;
  readonly #objects = new Map<string, MonitorObject>();

  /** `clock`: for throttle groups. */
  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** All objects by id, in the order of their coming. */
  list(): ReadonlyMap<string, MonitorObject> {
    return this.#objects;
  }

  /** Adds an object. Throws a BlockError in QEMU's words. */
  add(id: string, create: () => MonitorObject): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) {
      throw new BlockError("EINVAL", "Parameter 'id' expects an identifier");
    }
    if (this.#objects.size >= limits.qmpObjects) {
      throw new BlockError("EINVAL", `There are ${limits.qmpObjects} objects already`);
    }
    const object = create();
    if (this.#objects.has(id)) {
      throw new BlockError(
        "EINVAL",
        `attempt to add duplicate property '${id}' to object (type 'container')`,
      );
    }
    this.#objects.set(id, object);
  }

  /** Throws a BlockError where there is none of that id, or it is in use. */
  remove(id: string): void {
    const object = this.#objects.get(id);
    if (object === undefined) throw new BlockError("ENOENT", `object '${id}' not found`);
    if (object.type === "throttle-group" && object.group.memberCount > 0) {
      throw new BlockError("EBUSY", `object '${id}' is in use, can not be deleted`);
    }
    this.#objects.delete(id);
  }

  /** A new group's object. Throws a BlockError on limits that make no sense. */
  createThrottleGroup(id: string, values: QmpThrottleLimits): MonitorObject {
    const complete = completeLimits(values);
    const group = new ThrottleGroup(id, throttleLimits(complete), this.#clock);
    return { type: "throttle-group", group, limits: complete };
  }

  /** The group of that id, if there is one. */
  throttleGroup(id: string): ThrottleGroup | undefined {
    const object = this.#objects.get(id);
    return object?.type === "throttle-group" ? object.group : undefined;
  }

  /** The object behind a path of qom-get: `/objects/ID` or the id alone. Throws a QmpError. */
  atPath(path: string): MonitorObject {
    const id = /^(?:\/objects\/)?([^/]+)$/.exec(path)?.[1] ?? "";
    const object = this.#objects.get(id);
    if (object === undefined) throw new QmpError("DeviceNotFound", `Device '${path}' not found`);
    return object;
  }

  /** Changes some limits of a group. Throws a BlockError and changes none where they make no sense. */
  setLimits(object: MonitorObject & { type: "throttle-group" }, values: QmpThrottleLimits): void {
    const merged = completeLimits({ ...object.limits, ...values });
    object.group.setLimits(throttleLimits(merged));
    Object.assign(object.limits, merged);
  }

  /** The certificate that a server shows. Throws a BlockError. */
  serverTls(id: string): ServerTls {
    const { directory, mustVerifyPeer } = this.#credentials(id, "server");
    return {
      cert: readPem(directory, "server-cert.pem"),
      key: readPem(directory, "server-key.pem"),
      ...(mustVerifyPeer ? { clientCa: readPem(directory, "ca-cert.pem") } : {}),
    };
  }

  /** What a client trusts and shows. Throws a BlockError. */
  clientTls(id: string, hostname: string): ClientTls {
    const { directory } = this.#credentials(id, "client");
    const hasOwn = fs.existsSync(`${directory}/client-cert.pem`);
    return {
      hostname,
      ca: readPem(directory, "ca-cert.pem"),
      ...(hasOwn
        ? {
          cert: readPem(directory, "client-cert.pem"),
          key: readPem(directory, "client-key.pem"),
        }
        : {}),
    };
  }

  #credentials(id: string, endpoint: "client" | "server"): TlsCredentials {
    const object = this.#objects.get(id);
    if (object === undefined) throw new BlockError("ENOENT", `No TLS credentials with id '${id}'`);
    if (object.type !== "tls-creds-x509") {
      throw new BlockError("EINVAL", `Object with id '${id}' is not TLS credentials`);
    }
    if (object.credentials.endpoint !== endpoint) {
      throw new BlockError("EINVAL", `Expecting TLS credentials with a ${endpoint} endpoint`);
    }
    return object.credentials;
  }
}

/** Throws a BlockError where a server could not use them. */
export function checkCredentials({ endpoint, directory }: TlsCredentials): void {
  readPem(directory, "ca-cert.pem");
  if (endpoint === "client") return;
  readPem(directory, "server-cert.pem");
  readPem(directory, "server-key.pem");
}

const PEM_BYTES_MAX = 1024 * 1024;

function readPem(directory: string, name: string): string {
  const path = `${directory}/${name}`;
  try {
    const { size } = fs.statSync(path);
    if (size > PEM_BYTES_MAX) throw new Error("the file is too large");
    return fs.readFileSync(path, "utf8");
  } catch (error) {
    throw new BlockError(
      "ENOENT",
      `Unable to access credentials ${path}: ${
        error instanceof Deno.errors.NotFound || (error as { code?: string }).code === "ENOENT"
          ? "No such file or directory"
          : (error as Error).message
      }`,
    );
  }
}

function completeLimits(values: QmpThrottleLimits): QmpThrottleLimits {
  return Object.fromEntries(
    THROTTLE_LIMIT_NAMES.map((name) => [
      name,
      values[name] ?? (name.endsWith("-max-length") ? 1 : 0),
    ]),
  );
}

/** The texts are QEMU's (util/throttle.c). */
function throttleLimits(values: QmpThrottleLimits): ThrottleLimits {
  const value = (name: string): number => values[name] ?? 0;
  for (const unit of ["iops", "bps"]) {
    for (const kind of ["", "-max"]) {
      const isTotal = value(`${unit}-total${kind}`) > 0;
      if (!isTotal || (value(`${unit}-read${kind}`) === 0 && value(`${unit}-write${kind}`) === 0)) {
        continue;
      }
      throw new BlockError(
        "EINVAL",
        "bps/iops/max total values and read/write values cannot be used at the same time",
      );
    }
  }
  if (
    value("iops-size") > 0 && !["total", "read", "write"].some((way) => value(`iops-${way}`) > 0)
  ) {
    throw new BlockError("EINVAL", "iops size requires an iops value to be set");
  }
  const rates = Object.fromEntries(QUANTITIES.map((name) => [name, rate(name, value)]));
  const named = (name: string, as: keyof ThrottleLimits): Partial<ThrottleLimits> => {
    const found = rates[name];
    return found === undefined || found === null ? {} : { [as]: found };
  };
  return {
    ...named("bps-total", "bytesTotal"),
    ...named("bps-read", "bytesRead"),
    ...named("bps-write", "bytesWrite"),
    ...named("iops-total", "requestsTotal"),
    ...named("iops-read", "requestsRead"),
    ...named("iops-write", "requestsWrite"),
    ...(value("iops-size") > 0 ? { requestBytes: value("iops-size") } : {}),
  };
}

const THROTTLE_VALUE_MAX = 1_000_000_000_000_000;

function rate(name: string, value: (name: string) => number) {
  const [average, burst, burstSeconds] = [
    value(name),
    value(`${name}-max`),
    value(`${name}-max-length`),
  ];
  if (average < 0 || burst < 0 || average > THROTTLE_VALUE_MAX || burst > THROTTLE_VALUE_MAX) {
    throw new BlockError(
      "EINVAL",
      `bps/iops/max values must be within [0, ${THROTTLE_VALUE_MAX}]`,
    );
  }
  if (burstSeconds < 1) throw new BlockError("EINVAL", "the burst length cannot be 0");
  if (burstSeconds > 1 && burst === 0) {
    throw new BlockError("EINVAL", "burst length set without burst rate");
  }
  if (burst > 0 && average === 0) {
    throw new BlockError("EINVAL", "bps_max/iops_max require corresponding bps/iops values");
  }
  if (burst > 0 && burst < average) {
    throw new BlockError("EINVAL", "bps_max/iops_max cannot be lower than bps/iops");
  }
  if (burst > 0 && burstSeconds > THROTTLE_VALUE_MAX / burst) {
    throw new BlockError("EINVAL", "burst length too high for this burst rate");
  }
  if (average === 0) return null;
  return { average, ...(burst > 0 ? { burst, burstSeconds } : {}) };
}
