import { assertEquals, assertThrows } from "@std/assert";
import { BlockError } from "../../../src/block/errors.ts";
import { parseKeyval, parseOptionText } from "../../../src/block/open/keyval.ts";
import {
  bool,
  int,
  list,
  oneOf,
  optional,
  parseSize,
  rootPlace,
  size,
  str,
  struct,
  uint32,
} from "../../../src/block/open/qapi.ts";

function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value));
}

Deno.test("parseKeyval() makes objects of dots and lists of numbers", () => {
  assertEquals(plain(parseKeyval("a=1,b.c=x=y,,z,b.d=,l.1=q,l.0=p", null)), {
    a: "1",
    b: { c: "x=y,z", d: "" },
    l: ["p", "q"],
  });
  assertEquals(plain(parseKeyval("qcow2,file=f", "driver")), { driver: "qcow2", file: "f" });
  assertEquals(plain(parseKeyval("a=1,a=2,", null)), { a: "2" });
  assertEquals(plain(parseKeyval("", "driver")), {});
});

Deno.test("parseKeyval() says what is wrong as QEMU does", () => {
  const cases: [string, string][] = [
    ["a.b=1,a=2", "Parameters 'a.*' used inconsistently"],
    ["a=1,a.b=2", "Parameters 'a.*' used inconsistently"],
    ["a.0=1,a.b=2", "Parameters 'a.*' used inconsistently"],
    ["a.1=1", "Parameter 'a.0' missing"],
    ["=1", "Invalid parameter ''"],
    ["a..b=1", "Invalid parameter 'a..b'"],
    ["1a=1", "Invalid parameter '1a'"],
    [`${"k".repeat(128)}=1`, `Parameter '${"k".repeat(128)}' is too long`],
    ["a", "No implicit parameter name for value 'a'"],
    ["__proto__=1", "Invalid parameter '__proto__'"],
  ];
  for (const [text, message] of cases) {
    const error = assertThrows(() => parseKeyval(text, null), BlockError);
    assertEquals(error.message, message, text);
  }
});

Deno.test("types convert key=value, and take JSON as it is", () => {
  const type = struct("T", {
    s: str,
    b: optional(bool),
    i: optional(int),
    u: optional(uint32),
    z: optional(size),
    e: optional(oneOf("E", ["x", "y"])),
    l: optional(list(struct("L", { n: int }))),
  });
  const parse = (text: string) => {
    const { object, isKeyval } = parseOptionText(text, null);
    return type.parse(object, rootPlace({ isKeyval }));
  };
  const parsed = { s: "1", b: true, i: -5, u: 16, z: 65536, e: "x" as const, l: [{ n: 1 }] };
  assertEquals(parse("s=1,b=on,i=-5,u=0x10,z=64k,e=x,l.0.n=1"), parsed);
  assertEquals(
    parse('{"s":"1","b":true,"i":-5,"u":16,"z":65536,"e":"x","l":[{"n":1}]}'),
    parsed,
  );
  const cases: [string, string][] = [
    ["b=on", "Parameter 's' is missing"],
    ["s=1,b=yes", "Parameter 'b' expects 'on' or 'off'"],
    ["s=1,i=1.5", "Parameter 'i' expects integer"],
    ["s=1,u=4294967296", "Parameter 'u' expects uint32_t"],
    ["s=1,e=z", "Parameter 'e' does not accept value 'z'"],
    ["s.a=1", "Parameters 's.*' are unexpected"],
    ["s=1,x.y=1", "Parameter 'x' is unexpected"],
    ["s=1,l.0.m=1", "Parameter 'l.0.n' is missing"],
    ["s=1,l.0=1", "Invalid parameter type for 'l.0', expected: object"],
    ['{"s":"1","l":[{"n":1},{}]}', "Parameter 'l[1].n' is missing"],
    ['{"s":1}', "Invalid parameter type for 's', expected: string"],
    ["[]", "Invalid parameter '[]'"],
    ["{}}", "JSON parse error, expecting end of input"],
  ];
  for (const [text, message] of cases) {
    const error = assertThrows(() => parse(text), BlockError);
    assertEquals(error.message, message, text);
  }
});

Deno.test("parseSize() knows units and fractions", () => {
  const cases: [string, number | undefined][] = [
    ["0", 0],
    ["512", 512],
    ["64k", 65536],
    ["1.5G", 1.5 * 1024 ** 3],
    ["0x10", 16],
    ["1b", 1],
    ["1kk", undefined],
    ["-1", undefined],
    ["", undefined],
    ["16E", undefined],
  ];
  for (const [text, bytes] of cases) assertEquals(parseSize(text), bytes, text);
});
