/** Random commands with arguments that are nearly right: each is answered, none is a bug. */
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { BlockLayer } from "../../src/block/block_layer.ts";
import { formatJson, type JsonObject, type JsonValue } from "../../src/block/open/json.ts";
import { limits } from "../../src/limits.ts";
import { Monitor } from "../../src/qmp/monitor.ts";
import { compileKernels, Kernels } from "../../src/wasm/kernels.ts";

const module = await compileKernels();
const RUNS = Number(Deno.env.get("OVIS_FUZZ_RUNS") ?? 60);
const CLASSES = ["GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound"];
/** Those that would end the test, or wait for somebody elsewhere. */
const LEFT_OUT = new Set(["quit", "nbd-server-start"]);

interface Shape {
  meta: string;
  kind?: string;
  values?: readonly string[];
  element?: { shape(): Shape };
  members?: readonly unknown[];
  tag?: string;
  variants?: readonly { value: string; members: readonly unknown[] }[];
}

interface Member {
  name: string;
  type: { shape(): unknown };
  isOptional: boolean;
}

const names = ["d", "n", "q", "b", "cbw", "j", "e", "g", "gone", ""];
const numbers = [0, 1, -1, 512, 65536, 4 * 1024 * 1024, 2 ** 31, 2 ** 53, 1000];
/** What members of these names are likely to be, so that commands get somewhere. */
const LIKELY: Record<string, readonly JsonValue[]> = {
  device: ["d", "n", "q", "j"],
  node: ["d", "n", "q"],
  "node-name": ["q", "cbw", "n", "d"],
  file: ["d", "n", "q"],
  target: ["n", "b", "q", "d"],
  overlay: ["n", "q"],
  name: ["b", "e"],
  bitmap: ["b"],
  id: ["j", "e", "g"],
  "job-id": ["j", "q"],
  size: [65536],
  speed: [0, 1],
  sync: ["full", "none", "bitmap"],
  path: ["g", "/objects/g"],
  "throttle-group": ["g"],
};

const word: fc.Arbitrary<string> = fc.constantFrom(...names);

/** A value that is nearly of a type. */
function valueOf(shape: Shape, depth: number): fc.Arbitrary<JsonValue> {
  const odd: fc.Arbitrary<JsonValue> = fc.constantFrom<JsonValue>(
    null,
    1,
    "x",
    [],
    {},
    true,
    2n ** 63n,
  );
  const right = rightValue(shape, depth);
  return fc.oneof({ weight: 30, arbitrary: right }, { weight: 1, arbitrary: odd });
}

function rightValue(shape: Shape, depth: number): fc.Arbitrary<JsonValue> {
  if (shape.meta === "enum") return fc.constantFrom(...shape.values ?? []);
  if (shape.meta === "array") {
    const element = shape.element?.shape();
    if (element === undefined || depth > 4) return fc.constant([]);
    return fc.array(valueOf(element, depth + 1), { maxLength: 3 });
  }
  if (shape.meta === "alternate") {
    const members = (shape.members ?? []) as { shape(): Shape }[];
    return fc.oneof(...members.map((member) => valueOf(member.shape(), depth + 1)));
  }
  if (shape.meta === "object") return objectOf(shape, depth);
  switch (shape.kind) {
    case "string":
      return word;
    case "int":
      return fc.constantFrom(...numbers);
    case "boolean":
      return fc.boolean();
    default:
      return fc.constant(null);
  }
}

function membersOf(members: readonly Member[], depth: number): fc.Arbitrary<JsonObject> {
  const entries = members.filter(({ isOptional }) => !isOptional || depth < 3).map((member) => {
    const any = valueOf(member.type.shape() as Shape, depth + 1);
    const likely = LIKELY[member.name];
    const value = likely === undefined
      ? any
      : fc.oneof({ weight: 3, arbitrary: fc.constantFrom(...likely) }, {
        weight: 1,
        arbitrary: any,
      });
    const isWanted = member.name === "node-name" || member.name === "job-id";
    return fc.tuple(value, fc.nat(19)).map(([made, roll]) =>
      (member.isOptional && !isWanted ? roll < 2 : roll > 0) ? [[member.name, made] as const] : []
    );
  });
  return fc.tuple(...entries).map((lists) => Object.fromEntries(lists.flat()) as JsonObject);
}

function objectOf(shape: Shape, depth: number): fc.Arbitrary<JsonObject> {
  const base = membersOf((shape.members ?? []) as Member[], depth);
  const { tag, variants = [] } = shape;
  if (tag === undefined || variants.length === 0) return base;
  const usable = depth > 3 ? variants.filter(({ value }) => value === "null-co") : variants;
  const chosen = usable.length > 0 ? usable : variants.slice(0, 1);
  return fc.constantFrom(...chosen).chain(({ value, members }) =>
    fc.tuple(base, membersOf(members as Member[], depth + 1)).map(([common, own]) => ({
      ...common,
      ...own,
      [tag]: value,
    }))
  );
}

Deno.test("every command is answered, whatever its arguments", async () => {
  const describe = new Monitor({
    block: new BlockLayer(new Kernels(module)),
    mayOpen: () => false,
    mayListen: () => false,
    quit: () => {},
  });
  const { types } = describe.context.drivers;
  const commands = [...describe.commands.values()].filter(({ name }) => !LEFT_OUT.has(name));
  const command = fc.constantFrom(...commands).chain(({ name, arguments: type }) =>
    objectOf(type(types).shape() as Shape, 0).map((args) => ({ execute: name, arguments: args }))
  );
  await describe.close();
  await fc.assert(
    fc.asyncProperty(fc.array(command, { minLength: 10, maxLength: 40 }), async (script) => {
      const block = new BlockLayer(new Kernels(module));
      const exports = new Set<unknown>();
      const monitor = new Monitor({
        block,
        mayOpen: () => false,
        mayListen: () => false,
        quit: () => {},
        exportHost: {
          added: (blockExport) => exports.add(blockExport),
          removed: (blockExport) => Promise.resolve(void exports.delete(blockExport)),
          hasClients: () => false,
          offerAt: () => Promise.resolve(() => Promise.resolve()),
        },
      });
      const setUp: JsonObject[] = [
        {
          execute: "blockdev-add",
          arguments: { driver: "null-co", "node-name": "n", size: 65536 },
        },
        {
          execute: "blockdev-add",
          arguments: { driver: "null-co", "node-name": "d", size: 65536 },
        },
        { execute: "object-add", arguments: { "qom-type": "throttle-group", id: "g" } },
        { execute: "block-dirty-bitmap-add", arguments: { node: "d", name: "b" } },
      ];
      try {
        for (const request of [...setUp, ...script]) {
          const answer = await monitor.dispatch(request as JsonValue);
          const error = answer.error as { class: string; desc: string } | undefined;
          if (error === undefined) assertEquals("return" in answer, true);
          else {
            assertEquals(CLASSES.includes(error.class), true);
            assertEquals(error.desc === "Internal error", false, formatJson(request));
          }
        }
      } finally {
        await monitor.close();
        await block.close();
        assertEquals([exports.size, block.graph.list().length], [0, 0]);
      }
    }),
    { numRuns: RUNS },
  );
});

Deno.test("arguments that are nested as deep as a message may be are refused, not a crash", async () => {
  const block = new BlockLayer(new Kernels(module));
  const monitor = new Monitor({
    block,
    mayOpen: () => false,
    mayListen: () => false,
    quit: () => {},
  });
  let args: JsonObject = { driver: "null-co" };
  for (let depth = 0; depth < limits.jsonDepth; depth++) args = { driver: "raw", file: args };
  args["node-name"] = "deep";
  const answer = await monitor.dispatch({ execute: "blockdev-add", arguments: args });
  const { desc } = answer.error as { desc: string };
  assertEquals(/^More than \d+ nodes stand above each other$/.test(desc), true, desc);
  assertEquals(block.graph.list(), []);
  await monitor.close();
  await block.close();
});
