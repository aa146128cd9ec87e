import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { BlockError } from "../../../src/block/errors.ts";
import { formatJson, JsonFloat, type JsonValue } from "../../../src/block/open/json.ts";
import { type JsonMessage, JsonStream, parseJson } from "../../../src/block/open/json_parser.ts";
import { limits } from "../../../src/limits.ts";

const encoder = new TextEncoder();
const RUNS = Number(Deno.env.get("OVIS_FUZZ_RUNS") ?? 300);

/** Our values as the platform's: floats are numbers, objects have a prototype. */
function plain(value: JsonValue): unknown {
  if (value instanceof JsonFloat) return value.value;
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, plain(member)]));
}

Deno.test("parseJson() reads what JSON.stringify() writes", () => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), (value) => {
      // Noncharacters and exponents without a point are beyond what QEMU reads.
      const text = JSON.stringify(value);
      if (/[\ufdd0-\ufdef\ufffe\uffff]/.test(text) || /\\u[dD][89a-fA-F]/.test(text)) return;
      assertEquals(plain(parseJson(text)), JSON.parse(text));
    }),
    { numRuns: RUNS },
  );
});

Deno.test("formatJson() writes what parseJson() reads as the same, in ASCII", () => {
  const value = fc.letrec((tie) => ({
    value: fc.oneof(
      { depthSize: "small" },
      fc.constant(null),
      fc.boolean(),
      fc.maxSafeInteger(),
      fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }),
      fc.string(),
      fc.array(tie("value"), { maxLength: 4 }),
      fc.dictionary(fc.string(), tie("value"), { maxKeys: 4 }),
    ),
  })).value as fc.Arbitrary<JsonValue>;
  fc.assert(
    fc.property(value, fc.boolean(), (value, isPretty) => {
      const text = formatJson(value, { isPretty });
      assertEquals(/^[\n -~]*$/.test(text), true);
      assertEquals(plain(parseJson(text)), plain(value));
    }),
    { numRuns: RUNS },
  );
});

Deno.test("JsonStream answers alike however its bytes are cut", () => {
  const alphabet = [..."{}[]:,\"'\\ \n0123456789.-eEtrufalsn@u\u00e4\u0001"];
  const text = fc.array(fc.constantFrom(...alphabet), { maxLength: 60 }).map((chars) =>
    chars.join("")
  );
  fc.assert(
    fc.property(text, fc.array(fc.nat(20), { maxLength: 20 }), (text, cuts) => {
      const bytes = encoder.encode(text);
      const whole = new JsonStream();
      const expected = [...whole.feed(bytes), ...whole.end()];
      const pieces = new JsonStream();
      const found: JsonMessage[] = [];
      let at = 0;
      for (const length of cuts) {
        found.push(...pieces.feed(bytes.subarray(at, at + length)));
        at += length;
      }
      found.push(...pieces.feed(bytes.subarray(at)), ...pieces.end());
      assertEquals(found, expected);
    }),
    { numRuns: RUNS * 3 },
  );
});

Deno.test("JsonStream reads on after whatever came before a line's end and closing brackets", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (garbage) => {
      const stream = new JsonStream();
      stream.feed(garbage);
      // Ends a string, an error, and what is open, whatever there was.
      stream.feed(encoder.encode("\n\n\u0001\n"));
      stream.feed(encoder.encode(`${"]".repeat(90)}${"}".repeat(90)}\n`));
      stream.feed(encoder.encode(`${"}".repeat(90)}${"]".repeat(90)}\n`));
      assertEquals(
        stream.feed(encoder.encode('{"a": 1} ')).map((message) =>
          "value" in message ? plain(message.value) : message
        ),
        [{ a: 1 }],
      );
    }),
    { numRuns: RUNS },
  );
});

Deno.test("JsonStream bounds size, count and depth, and keeps nothing of what is beyond", () => {
  const small = new JsonStream({ maxBytes: 1000 });
  assertEquals(small.feed(encoder.encode(`"${"x".repeat(2000)}"\n`))[0], {
    error: "JSON token size limit exceeded",
  });
  const read = new JsonStream({ maxBytes: 1000 });
  const pieces = Array.from({ length: 200 }, () => '"123456",').join("");
  assertEquals(read.feed(encoder.encode(`[${pieces}`))[0], {
    error: "JSON token size limit exceeded",
  });
  const many = new JsonStream();
  assertEquals(many.feed(encoder.encode(`[${"1,".repeat(limits.qmpTokens)}`))[0], {
    error: "JSON token count limit exceeded",
  });
  const deep = new JsonStream();
  assertEquals(deep.feed(encoder.encode("[".repeat(limits.jsonDepth + 1))), [{
    error: "JSON nesting depth limit exceeded",
  }]);
  assertEquals(deep.feed(encoder.encode("[1]")), [{ value: [1] }]);
});

Deno.test("parseJson() refuses more than one value, and none", () => {
  assertThrows(() => parseJson(""), BlockError, "JSON parse error, expecting value");
  assertThrows(() => parseJson("1 2"), BlockError, "JSON parse error, expecting end of input");
  assertThrows(() => parseJson('{"a": 1'), BlockError, "JSON parse error, premature EOI");
  assertThrows(() => parseJson('{"__proto__": 1, "__proto__": 2}'), BlockError, "duplicate key");
});
