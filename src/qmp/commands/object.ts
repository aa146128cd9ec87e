/** Commands on objects: throttle groups, credentials, and the drives of a machine's devices. @module */

import { BlockError } from "../../block/errors.ts";
import type { JsonObject, JsonValue } from "../../block/open/json.ts";
import {
  any,
  bool,
  type Fields,
  int,
  oneOf,
  optional,
  type Parsed,
  rootPlace,
  str,
  struct,
  union,
} from "../../block/open/qapi.ts";
import { command, commandOf, type QmpCommand } from "../command.ts";
import type { QmpDisk } from "../machine.ts";
import type { Monitor } from "../monitor.ts";
import { checkCredentials, THROTTLE_LIMIT_NAMES, type TlsCredentials } from "../objects.ts";

const limitFields: Fields = Object.fromEntries(
  THROTTLE_LIMIT_NAMES.map((name) => [name, optional(int)]),
);
const throttleLimits = struct("ThrottleLimits", limitFields);

const throttleFields: Fields = {
  limits: optional(throttleLimits),
  ...Object.fromEntries(THROTTLE_LIMIT_NAMES.map((name) => [`x-${name}`, optional(int)])),
};

const x509Fields = {
  "verify-peer": optional(bool),
  dir: optional(str),
  endpoint: optional(oneOf("QCryptoTLSCredsEndpoint", ["client", "server"])),
  priority: optional(str),
  "sanity-check": optional(bool),
  passwordid: optional(str),
} satisfies Fields;

const iothreadFields: Fields = {
  "poll-max-ns": optional(int),
  "poll-grow": optional(int),
  "poll-shrink": optional(int),
  "aio-max-batch": optional(int),
  "thread-pool-min": optional(int),
  "thread-pool-max": optional(int),
};

const objectOptions = union("ObjectOptions", {
  base: {
    "qom-type": oneOf("ObjectType", ["iothread", "throttle-group", "tls-creds-x509"]),
    id: str,
  },
  tag: "qom-type",
  variants: () =>
    new Map<string, Fields>([
      ["iothread", iothreadFields],
      ["throttle-group", throttleFields],
      ["tls-creds-x509", x509Fields],
    ]),
});

function addObject(
  monitor: Monitor,
  { id, type, options }: { id: string; type: string; options: Record<string, unknown> },
): void {
  const { objects } = monitor;
  objects.add(id, () => {
    switch (type) {
      case "throttle-group":
        return objects.createThrottleGroup(id, groupLimits(options));
      case "tls-creds-x509":
        return { type: "tls-creds-x509", credentials: credentials(options, monitor) };
      // Its work is done where the block layer runs: here there is one loop for all.
      default:
        return { type: "iothread" };
    }
  });
}

function groupLimits(options: Record<string, unknown>): Record<string, number> {
  const found: Record<string, number> = {
    ...(options.limits as unknown as Record<string, number>),
  };
  for (const name of THROTTLE_LIMIT_NAMES) {
    const value = options[`x-${name}`];
    if (typeof value === "number") found[name] = value;
  }
  return found;
}

function credentials(options: Record<string, unknown>, monitor: Monitor): TlsCredentials {
  const parsed = options as Parsed<typeof x509Fields>;
  if (parsed.dir === undefined) throw new BlockError("EINVAL", "Missing 'dir' property value");
  if (!monitor.mayOpen(parsed.dir)) {
    throw new BlockError("EPERM", `'${parsed.dir}' is not in an allowed folder`);
  }
  const made: TlsCredentials = {
    endpoint: parsed.endpoint ?? "client",
    directory: parsed.dir,
    mustVerifyPeer: parsed["verify-peer"] ?? true,
  };
  checkCredentials(made);
  return made;
}

/** A device of the machine, by its name or a path that ends with it. */
function diskAt(monitor: Monitor, path: string): QmpDisk | undefined {
  const last = path.slice(path.lastIndexOf("/") + 1);
  return monitor.machine?.disks().find(({ name, qdev }) => qdev === path || name === last);
}

async function setDrive(monitor: Monitor, disk: QmpDisk, value: JsonValue): Promise<void> {
  if (typeof value !== "string") {
    throw new BlockError("EINVAL", "Invalid parameter type for 'drive', expected: string");
  }
  const { graph } = monitor.block;
  const node = graph.find(value);
  if (node === undefined) {
    throw new BlockError("ENOENT", `Cannot find device='${value}' nor node-name='${value}'`);
  }
  const { backend } = disk;
  if (node === backend.node) return;
  if (node.sizeBytes !== backend.sizeBytes) {
    throw new BlockError(
      "EINVAL",
      `Node '${value}' has ${node.sizeBytes} bytes, not ${backend.sizeBytes} as the device`,
    );
  }
  await graph.drained([backend.node, node], () => graph.replaceChild(backend.root, node));
  await graph.sweep();
}

function noProperty(path: string, property: string): BlockError {
  return new BlockError("EINVAL", `Property '${path}.${property}' not found`);
}

function listProperties(path: string, monitor: Monitor): JsonValue[] {
  const entry = (name: string, type: string): JsonObject => ({ name, type });
  if (path === "/") return [entry("type", "string"), entry("objects", "child<container>")];
  if (path === "/objects") {
    const objects = [...monitor.objects.list()];
    return [
      entry("type", "string"),
      ...objects.map(([id, { type }]) => entry(id, `child<${type}>`)),
    ];
  }
  if (diskAt(monitor, path) !== undefined) return [entry("type", "string"), entry("drive", "str")];
  const object = monitor.objects.atPath(path);
  const own = object.type === "throttle-group"
    ? [
      entry("limits", "ThrottleLimits"),
      ...THROTTLE_LIMIT_NAMES.map((name) => entry(`x-${name}`, "int")),
    ]
    : [];
  return [entry("type", "string"), ...own];
}

/** See the module's head. */
export const objectCommands: readonly QmpCommand[] = [
  commandOf("object-add", () => objectOptions, ({ base, tag, variant }, monitor) => {
    addObject(monitor, { id: base.id, type: tag, options: variant });
  }),
  command("object-del", { id: str }, ({ id }, monitor) => monitor.objects.remove(id)),
  command("qom-list", { path: str }, ({ path }, monitor) => listProperties(path, monitor)),
  command("qom-get", { path: str, property: str }, ({ path, property }, monitor) => {
    const disk = diskAt(monitor, path);
    if (disk !== undefined) {
      if (property === "drive") return disk.backend.node.nodeName;
      throw noProperty("virtio-blk-device", property);
    }
    const object = monitor.objects.atPath(path);
    if (property === "type") return object.type;
    if (object.type !== "throttle-group") throw noProperty(object.type, property);
    if (property === "limits") return { ...object.limits };
    const value = object.limits[property.replace(/^x-/, "")];
    if (value === undefined || !property.startsWith("x-")) throw noProperty(object.type, property);
    return value;
  }),
  command("qom-set", { path: str, property: str, value: any }, (args, monitor) => {
    const { path, property, value } = args;
    const disk = diskAt(monitor, path);
    if (disk !== undefined) {
      if (property === "drive") return setDrive(monitor, disk, value);
      throw noProperty("virtio-blk-device", property);
    }
    const object = monitor.objects.atPath(path);
    if (object.type !== "throttle-group") throw noProperty(object.type, property);
    if (property !== "limits") throw noProperty(object.type, property);
    const limits = throttleLimits.parse(value, rootPlace());
    monitor.objects.setLimits(object, limits as unknown as Record<string, number>);
  }),
];
