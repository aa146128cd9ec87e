import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { chooseRange, matchesEtag } from "../../src/http/range.ts";

Deno.test("chooseRange() takes single ranges as RFC 9110 says", () => {
  const cases: [string | null, number, string | [number, number]][] = [
    [null, 10, "whole"],
    ["bytes=0-0", 10, [0, 1]],
    ["bytes=0-", 10, [0, 10]],
    ["bytes=3-5", 10, [3, 3]],
    ["Bytes = 3-5", 10, [3, 3]],
    ["bytes=9-100", 10, [9, 1]],
    ["bytes=-3", 10, [7, 3]],
    ["bytes=-100", 10, [0, 10]],
    ["bytes=-0", 10, "unsatisfiable"],
    ["bytes=10-", 10, "unsatisfiable"],
    ["bytes=99999999999999999999-", 10, "unsatisfiable"],
    ["bytes=0-99999999999999999999", 10, [0, 10]],
    ["bytes=5-3", 10, "whole"],
    ["bytes=0-1,3-4", 10, "whole"],
    ["bytes=-", 10, "whole"],
    ["bytes=x-", 10, "whole"],
    ["items=0-1", 10, "whole"],
    ["bytes=0x1-2", 10, "whole"],
    ["bytes=0-0", 0, "unsatisfiable"],
  ];
  for (const [header, size, expected] of cases) {
    const choice = chooseRange(header, size);
    const seen = choice.kind === "part" ? [choice.offset, choice.length] : choice.kind;
    assertEquals(seen, expected, `${header} of ${size}`);
  }
});

Deno.test("chooseRange() agrees with slicing", () => {
  const number = fc.option(fc.integer({ min: 0, max: 40 }), { nil: null });
  fc.assert(fc.property(number, number, fc.integer({ min: 0, max: 32 }), (first, last, size) => {
    const content = Array.from({ length: size }, (_, index) => index);
    const choice = chooseRange(`bytes=${first ?? ""}-${last ?? ""}`, size);
    let expected: number[] | null;
    if (first === null) expected = last === null ? null : last === 0 ? [] : content.slice(-last);
    else expected = last !== null && last < first ? null : content.slice(first, (last ?? size) + 1);
    if (expected === null) return choice.kind === "whole";
    if (choice.kind !== "part") return choice.kind === "unsatisfiable" && expected.length === 0;
    const seen = content.slice(choice.offset, choice.offset + choice.length);
    return seen.length > 0 && JSON.stringify(seen) === JSON.stringify(expected);
  }));
});

Deno.test("matchesEtag() compares strongly or weakly", () => {
  assertEquals(matchesEtag("*", '"a"', { isWeak: false }), true);
  assertEquals(matchesEtag('"b", "a"', '"a"', { isWeak: false }), true);
  assertEquals(matchesEtag('W/"a"', '"a"', { isWeak: false }), false);
  assertEquals(matchesEtag('W/"a"', '"a"', { isWeak: true }), true);
  assertEquals(matchesEtag('"ab"', '"a"', { isWeak: true }), false);
});
