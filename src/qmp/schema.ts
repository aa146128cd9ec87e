/**
 * query-qmp-schema: the commands, their arguments and the events, as QAPI's introspection describes
 * them (docs/devel/qapi-code-gen.rst, "Client JSON Protocol introspection"), made of the types that
 * check the arguments. Types have numbers for names, as QEMU's.
 *
 * @module
 */

import type { JsonObject, JsonValue } from "../block/open/json.ts";
import type { QapiMember, QapiType } from "../block/open/qapi.ts";
import type { Monitor } from "./monitor.ts";

const EVENTS = [
  "BLOCK_EXPORT_DELETED",
  "BLOCK_JOB_CANCELLED",
  "BLOCK_JOB_COMPLETED",
  "BLOCK_JOB_ERROR",
  "BLOCK_JOB_PENDING",
  "BLOCK_JOB_READY",
  "JOB_STATUS_CHANGE",
];
const MACHINE_EVENTS = ["POWERDOWN", "RESET", "RESUME", "SHUTDOWN", "STOP"];

/** The whole schema. */
export function describeCommands(monitor: Monitor): JsonValue[] {
  const schema = new Schema();
  const nothing = schema.emptyObject();
  for (const command of monitor.commands.values()) {
    schema.entries.push({
      name: command.name,
      "meta-type": "command",
      "arg-type": schema.nameOf(command.arguments(monitor.context.drivers.types)),
      // What commands give back is not described: anything.
      "ret-type": schema.builtin("any", "value"),
      "allow-oob": false,
    });
  }
  for (const event of [...EVENTS, ...monitor.machine === null ? [] : MACHINE_EVENTS]) {
    schema.entries.push({ name: event, "meta-type": "event", "arg-type": nothing });
  }
  return schema.entries;
}

class Schema {
  readonly entries: JsonObject[] = [];
  /** By the type itself, and for types that are made anew each time by their names. */
  readonly #names = new Map<QapiType<unknown> | string, string>();
  #count = 0;

  emptyObject(): string {
    const name = this.#newName();
    this.entries.push({ name, "meta-type": "object", members: [] });
    return name;
  }

  builtin(name: string, kind: string): string {
    if (!this.#names.has(name)) {
      this.#names.set(name, name);
      this.entries.push({ name, "meta-type": "builtin", "json-type": kind });
    }
    return name;
  }

  /** The name of a type, which is described where that has not happened yet. */
  nameOf(type: QapiType<unknown>): string {
    const known = this.#names.get(type);
    if (known !== undefined) return known;
    const shape = type.shape();
    if (shape.meta === "builtin") return this.builtin(shape.name, shape.kind);
    if (shape.meta === "array") return this.#array(type, shape.element);
    const same = this.#names.get(shape.name);
    if (same !== undefined) return same;
    const name = this.#newName();
    this.#names.set(type, name);
    this.#names.set(shape.name, name);
    const entry: JsonObject = { name, "meta-type": shape.meta };
    this.entries.push(entry);
    switch (shape.meta) {
      case "enum":
        entry.members = shape.values.map((value) => ({ name: value }));
        entry.values = [...shape.values];
        break;
      case "alternate":
        entry.members = shape.members.map((member) => ({ type: this.nameOf(member) }));
        break;
      case "object":
        entry.members = this.#members(shape.members);
        if (shape.tag === undefined) break;
        entry.tag = shape.tag;
        entry.variants = (shape.variants ?? []).map(({ value, members }) => ({
          case: value,
          type: this.#variant(members),
        }));
    }
    return name;
  }

  #array(type: QapiType<unknown>, element: QapiType<unknown>): string {
    const elementName = this.nameOf(element);
    const name = `[${elementName}]`;
    this.#names.set(type, name);
    if (!this.#names.has(name)) {
      this.#names.set(name, name);
      this.entries.push({ name, "meta-type": "array", "element-type": elementName });
    }
    return name;
  }

  #variant(members: readonly QapiMember[]): string {
    const name = this.#newName();
    const entry: JsonObject = { name, "meta-type": "object" };
    this.entries.push(entry);
    entry.members = this.#members(members);
    return name;
  }

  #members(members: readonly QapiMember[]): JsonValue[] {
    return members.map(({ name, type, isOptional }) => ({
      name,
      type: this.nameOf(type),
      // Only that the member may be left out counts, not what it is then.
      ...(isOptional ? { default: null } : {}),
    }));
  }

  #newName(): string {
    return String(this.#count++);
  }
}
